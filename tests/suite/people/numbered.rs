//! The sequence: restarted, set, cached.

use test_support::eventually;

use crate::{
    people::write,
    seeing::{get, scrape},
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

#[tokio::test]
async fn a_sequence_set_forward_and_back_while_the_relay_works_hides_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    write(&world, &world.client, "before", 50).await;
    world.passed().await;
    for (round, position) in [1_000_000_i64, 5_000, 900_000_000_000, 2_000]
        .into_iter()
        .enumerate()
    {
        world
            .sql(&format!(
                "BEGIN; SELECT setval('outbox.message_id_seq', {position})"
            ))
            .await;
        write(&world, &world.client, &format!("set{round}-"), 100).await;
        world.sql("COMMIT").await;
        world.drained().await;
    }
    world
        .sql("BEGIN; ALTER SEQUENCE outbox.message_id_seq RESTART WITH 200")
        .await;
    write(&world, &world.client, "restarted", 100).await;
    world.sql("COMMIT").await;
    world.none_lost(&consumer).await;
}

/// Each session draws fifty positions in advance: messages that an idle session writes later are below the marks.
#[tokio::test]
async fn a_sequence_that_is_cached_while_the_relay_works_is_said_and_hides_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let relay = world.relay(&[("OUTBOXD__ADMIN__LISTEN", &listen)]);
    write(&world, &world.client, "before", 20).await;
    world.passed().await;
    eventually("readiness", SOON, async || {
        (get(port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
    let other = world.postgres().connect(&world.database).await.unwrap();
    world
        .sql("ALTER SEQUENCE outbox.message_id_seq CACHE 50")
        .await;
    relay
        .line("the schema is not as it was at the start", SOON)
        .await;
    for n in 0..4 {
        write(&world, &other, &format!("idle{n}-"), 5).await;
        write(&world, &world.client, &format!("busy{n}-"), 500).await;
        world.passed().await;
    }
    world.none_lost(&consumer).await;
    let (status, body) = get(port, "/readyz").await.unwrap();
    assert!(status == 503 && body.contains("CACHE 1"), "{status} {body}");
    let metrics = scrape(port).await.unwrap();
    assert_eq!(metrics["outbox_schema_ok"], 0.0);
    assert!(metrics["outbox_stranded_messages_total"] > 0.0);
    assert_eq!(metrics["outbox_stranded_messages"], 0.0);
    world
        .sql("ALTER SEQUENCE outbox.message_id_seq CACHE 1")
        .await;
    eventually("readiness again", SOON, async || {
        (get(port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
}
