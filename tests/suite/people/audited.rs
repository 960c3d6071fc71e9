//! The audit goes on, whatever somebody else does.

use nix::sys::signal::Signal;

use crate::{
    people::write,
    world::{World, world},
};

const AUDITED: &str = "outbox.relay WHERE audited_at IS NOT NULL";

/// Below every mark, and with nothing that tells of it.
async fn hide_one(world: &World) {
    world
        .sql(
            "INSERT INTO outbox.message (id, aggregate_type, event_type, payload) OVERRIDING SYSTEM VALUE \
             VALUES (-1, 'order', 'hidden', '1')",
        )
        .await;
}

/// Advisory locks are anybody's who may connect. No relay may leave the audit to whoever holds one.
#[tokio::test]
async fn nobody_who_may_only_connect_keeps_the_audit_from_going_on() {
    let world = world().await;
    let consumer = world.consumer().await;
    let producer = world
        .postgres()
        .url_for("producer", "producer", &world.database);
    let (neighbour, connection) = tokio_postgres::connect(&producer, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    // `obxaudit`: the lock of the one that audited, once.
    neighbour
        .batch_execute("SELECT pg_advisory_lock(8026109845904320884)")
        .await
        .unwrap();
    let _relay = world.relay(&[]);
    write(&world, &world.client, "k", 60).await;
    world.passed().await;
    world.until("the audit after the start", AUDITED, 1).await;
    hide_one(&world).await;
    consumer.until(61).await;
    world.drained().await;
}

/// The relay that goes on auditing stands still. The other one has seen the sign, too.
#[tokio::test]
async fn a_sign_of_changed_tables_is_answered_by_every_relay_that_sees_it() {
    let world = world().await;
    let consumer = world.consumer().await;
    let first = world.relay(&[]);
    world.until("the first", AUDITED, 1).await;
    let _second = world.relay(&[]);
    world.until("the second", AUDITED, 2).await;
    write(&world, &world.client, "before", 300).await;
    world.passed().await;
    first.signal(Signal::SIGSTOP).unwrap();
    world
        .sql("SET session_replication_role = replica; BEGIN; TRUNCATE outbox.message RESTART IDENTITY")
        .await;
    write(&world, &world.client, "hidden", 400).await;
    world.sql("COMMIT").await;
    world.none_lost(&consumer).await;
    first.signal(Signal::SIGCONT).unwrap();
}

/// Nobody hands the audit over when a process is killed.
#[tokio::test]
async fn when_the_relay_that_audits_is_killed_another_one_goes_on() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut first = world.relay(&[]);
    world.until("the first", AUDITED, 1).await;
    let _second = world.relay(&[]);
    world.until("the second", AUDITED, 2).await;
    first.kill().await.unwrap();
    hide_one(&world).await;
    consumer.until(1).await;
    world.drained().await;
}
