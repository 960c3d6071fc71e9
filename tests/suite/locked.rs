//! Rows that another transaction has locked: their messages wait alone, and the transaction is named. See also row 65 of the fault
//! matrix.

use test_support::eventually;
use tokio_postgres::Client;

use crate::{
    kit::{BATCH, SETTINGS, WORKERS, named},
    seeing::answers,
    world::{SOON, World, own_world, world},
};

/// Somebody who holds these locks.
async fn person(world: &World, name: &str, locks: &str) -> Client {
    let client = world.postgres().connect(&world.database).await.unwrap();
    let sql = format!("SET application_name = '{name}'; BEGIN; {locks}");
    client.batch_execute(&sql).await.unwrap();
    client
}

/// So many keys in one lane.
const IN_ONE_LANE: &str = "SELECT i::text AS key FROM generate_series(1000, 30000) i \
                           WHERE hashtextextended(i::text, hashtextextended('order', 0)) & 63 = 7 ORDER BY i LIMIT 60";

impl World {
    /// Sixty due records in one lane, the first thirty of them locked.
    async fn half_locked(&self) -> Client {
        self.sql(&format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', key, 'created', '{{}}' FROM ({IN_ONE_LANE}) keys; \
             INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, due_at, due_since) \
             SELECT lane, id, message_id, outbox.key_hash(aggregate_type, aggregate_id), 'retry', \
                    clock_timestamp() - interval '1 hour' + id * interval '1 second', clock_timestamp() FROM outbox.message"
        ))
        .await;
        let lock =
            "SELECT FROM (SELECT FROM outbox.waiting ORDER BY due_at LIMIT 30 FOR UPDATE) locked";
        person(self, "a-person", lock).await
    }
}

/// The lock time-out is five seconds, and a claim has 48. With this batch a claim could read all sixty.
#[tokio::test]
async fn thirty_locked_records_take_no_claim_s_time_and_keep_no_healthy_message() {
    let world = world().await;
    let consumer = world.consumer().await;
    let person = world.half_locked().await;
    let (relay, port) = world.watched(&[]);
    world.commit_many(300, 300).await;
    named(&relay, port, "a-person", &[]).await;
    let unsent = "outbox.message WHERE sent_at IS NULL";
    world.until("the others to be sent", unsent, 30).await;
    person.batch_execute("COMMIT").await.unwrap();
    world.until("the locked ones", unsent, 0).await;
    consumer.until(360).await;
}

/// Half a batch is 25, so no claim reads more than that of what is due.
#[tokio::test]
async fn more_locked_records_than_a_claim_reads_keep_no_due_message_of_their_lane() {
    let world = world().await;
    let consumer = world.consumer().await;
    let person = world.half_locked().await;
    let (relay, port) = world.watched(&SETTINGS);
    named(&relay, port, "a-person", &[]).await;
    let unsent = "outbox.message WHERE sent_at IS NULL";
    world.until("the others to be sent", unsent, 30).await;
    person.batch_execute("COMMIT").await.unwrap();
    world.until("the locked ones", unsent, 0).await;
    consumer.until(60).await;
}

/// Only the head's own record is free.
#[tokio::test]
async fn a_message_waits_while_a_record_behind_it_is_locked() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let (relay, port) = world.watched(&[
        SETTINGS[0],
        SETTINGS[1],
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000"),
    ]);
    world.insert(Some("head"), "nobody", "0", "").await;
    world.until("the head to wait", "outbox.waiting", 1).await;
    for n in 1..5 {
        world.insert(Some("head"), "good", &n.to_string(), "").await;
    }
    world
        .until("the others behind it", "outbox.waiting", 5)
        .await;
    let lock = "SELECT FROM outbox.waiting WHERE cause = 'behind' FOR UPDATE";
    let person = person(&world, "a-person", lock).await;
    world.bind("all", "order.nobody", &[]).await;
    named(&relay, port, "a-person", &[]).await;
    world.commit(&[(Some("other"), "good", "1")]).await;
    let other = "outbox.message WHERE sent_at IS NOT NULL AND aggregate_id = 'other'";
    world.until("another key", other, 1).await;
    let duplicates = world.ledger.duplicates(&consumer).await.unwrap();
    assert!(duplicates <= 2 * WORKERS, "{duplicates} duplicates");
    person.batch_execute("COMMIT").await.unwrap();
    world.clean(&consumer, 4 * WORKERS).await;
}

/// A row with several lockers names them through a multixact.
#[tokio::test]
async fn two_sessions_that_share_a_lock_are_named() {
    for (locks, created) in [
        ("SELECT FROM outbox.lane FOR SHARE", "interval '1 minute'"),
        ("SELECT FROM outbox.message FOR SHARE", "interval '0'"),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        world.commit_many(100, 20).await;
        world
            .sql(&format!(
                "UPDATE outbox.message SET created_at = created_at - {created}"
            ))
            .await;
        let one = person(&world, "a-person", locks).await;
        let other = person(&world, "another-person", locks).await;
        let (relay, port) = world.watched(&SETTINGS);
        named(&relay, port, "a-person", &[]).await;
        relay.line("another-person", SOON).await;
        one.batch_execute("COMMIT").await.unwrap();
        other.batch_execute("COMMIT").await.unwrap();
        world.clean(&consumer, WORKERS * BATCH).await;
    }
}

/// A server of its own that allows prepared transactions. `World::client` ended with the restart.
pub async fn with_prepared_transactions() -> World {
    let mut world = own_world().await;
    world
        .sql("ALTER SYSTEM SET max_prepared_transactions = 5")
        .await;
    world.own().postgres.stop().await.unwrap();
    world.own().postgres.restart().await.unwrap();
    world
}

/// The row names the subtransaction, which no longer has a lock. JDBC's autosave and Django's atomic() work like this.
#[tokio::test]
async fn a_session_that_locked_inside_a_released_savepoint_is_named() {
    for locks in [
        "SELECT FROM outbox.lane FOR UPDATE",
        "SELECT FROM outbox.message FOR UPDATE",
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        world.commit_many(100, 20).await;
        world
            .sql("UPDATE outbox.message SET created_at = created_at - interval '1 minute'")
            .await;
        let savepoint = format!("SAVEPOINT django; {locks}; RELEASE SAVEPOINT django");
        let one = person(&world, "a-person", &savepoint).await;
        // Began later, so it cannot be the one.
        let other = person(&world, "a-stranger", "SELECT pg_current_xact_id()").await;
        let (relay, port) = world.watched(&SETTINGS);
        named(&relay, port, "a-person", &[]).await;
        relay.line("a released savepoint", SOON).await;
        relay.never_said("a-stranger");
        one.batch_execute("COMMIT").await.unwrap();
        drop(other);
        world.clean(&consumer, WORKERS * BATCH).await;
    }
}

/// It has no session, and outlives a restart of the server.
#[tokio::test]
async fn a_prepared_transaction_is_named() {
    let world = with_prepared_transactions().await;
    let client = world.postgres().connect(&world.database).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, created_at) \
             SELECT 'order', i::text, 'created', '{}', clock_timestamp() - interval '1 minute' \
             FROM generate_series(1, 100) i",
        )
        .await
        .unwrap();
    world.declare_exchange("events").await;
    let consumer = world.consumer().await;
    for locks in [
        "SELECT FROM outbox.lane FOR UPDATE",
        "LOCK TABLE outbox.message IN SHARE MODE",
    ] {
        let prepare = format!("BEGIN; {locks}; PREPARE TRANSACTION 'left-behind'");
        client.batch_execute(&prepare).await.unwrap();
        let (relay, port) = world.watched(&SETTINGS);
        named(&relay, port, "the prepared transaction 'left-behind'", &[]).await;
        relay.line("ROLLBACK PREPARED", SOON).await;
        assert_eq!(consumer.len(), 0);
        client
            .batch_execute("ROLLBACK PREPARED 'left-behind'")
            .await
            .unwrap();
    }
    let _relay = world.relay(&SETTINGS);
    consumer.until(100).await;
}

/// The relay gives the session up after its time-out, and the server keeps the lanes locked for it.
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_named() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let reload = "SELECT pg_reload_conf()";
    world
        .sql("ALTER SYSTEM SET synchronous_commit = local")
        .await;
    world.sql(reload).await;
    eventually("the setting", SOON, async || {
        let now: String = world.one("SHOW synchronous_commit").await;
        (now == "local").then_some(())
    })
    .await;
    world
        .sql("ALTER ROLE relay SET synchronous_commit = on")
        .await;
    world
        .sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await;
    world.sql(reload).await;
    let (_relay, port) = world.watched(&[("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "2s")]);
    world.commit_many(100, 100).await;
    answers(port, 503, &["locked by pid", "outboxd/"]).await;
    world
        .sql("ALTER SYSTEM RESET synchronous_standby_names")
        .await;
    world.sql(reload).await;
    consumer.until(100).await;
    world.drained().await;
    answers(port, 200, &[]).await;
}
