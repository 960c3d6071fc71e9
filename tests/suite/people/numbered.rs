//! The sequence, while the relay is stopped. Row 59 of the fault matrix changes it at work.

use crate::{
    people::write,
    world::{SOON, world},
};

#[tokio::test]
async fn a_sequence_restarted_below_the_marks_hides_nothing_while_the_relay_is_stopped() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    write(&world, &world.client, "before", 500).await;
    world.passed().await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world
        .sql("DELETE FROM outbox.message; ALTER SEQUENCE outbox.message_id_seq RESTART")
        .await;
    write(&world, &world.client, "after", 600).await;
    let _relay = world.relay(&[]);
    world.none_lost(&consumer).await;
}

/// Positions below zero lie below the first mark of each lane.
#[tokio::test]
async fn a_sequence_restarted_below_zero_hides_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    write(&world, &world.client, "before", 500).await;
    world.passed().await;
    for start in ["-1000", "-9223372036854775808"] {
        world
            .sql(&format!(
                "DELETE FROM outbox.message; \
                 ALTER SEQUENCE outbox.message_id_seq MINVALUE -9223372036854775808 RESTART WITH {start}"
            ))
            .await;
        write(&world, &world.client, start, 100).await;
        world.drained().await;
    }
    world.none_lost(&consumer).await;
}
