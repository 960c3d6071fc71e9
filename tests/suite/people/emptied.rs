//! TRUNCATE and DELETE, of one table or all.

use crate::{
    people::write,
    seeing::answers,
    world::{FAR, FARTHER, Gate, SOON, world},
};

const REFILL: &str = "BEGIN; TRUNCATE outbox.message RESTART IDENTITY";

/// The trigger takes the marks back at once. Where it does not run, the audit finds the rows below the marks.
#[tokio::test]
async fn marks_that_nobody_took_back_hide_nothing_for_long() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    write(&world, &world.client, "first", 300).await;
    world.passed().await;
    world
        .sql("SET session_replication_role = replica; BEGIN; TRUNCATE outbox.message RESTART IDENTITY")
        .await;
    write(&world, &world.client, "hidden", 400).await;
    world
        .sql("UPDATE outbox.message SET available_at = clock_timestamp() + interval '2 s' WHERE id % 10 = 0; COMMIT")
        .await;
    relay.line("lay where no relay looks", SOON).await;
    // Messages above the marks went first: hidden messages have no promised order.
    let report = world.judge(&consumer).await;
    assert!(report.lost.is_empty() && report.duplicates == 0, "{report}");
    world.drained().await;
}

/// A cleaner names the tables in any order. No claim may wait for a table while it holds a lane.
#[tokio::test]
async fn tables_truncated_together_in_any_order_under_load_neither_deadlock_nor_hide_what_follows()
{
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[("OUTBOXD__RELAY__WORKERS", "4")]);
    let load = world.postgres().connect(&world.database).await.unwrap();
    let load = tokio::spawn(async move {
        loop {
            let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                       SELECT 'load', i::text, 'x', '{}' FROM generate_series(1, 50) i";
            if load.batch_execute(sql).await.is_err() {
                return;
            }
        }
    });
    for tables in [
        "outbox.message, outbox.lane, outbox.waiting, outbox.dead",
        "outbox.lane, outbox.message",
        "outbox.dead, outbox.waiting, outbox.lane, outbox.message",
        "outbox.waiting, outbox.message, outbox.operation, outbox.relay",
        "outbox.lane",
        "outbox.message",
    ] {
        for _ in 0..3 {
            world
                .sql(&format!("TRUNCATE {tables} RESTART IDENTITY CASCADE"))
                .await;
        }
    }
    load.abort();
    let _ = load.await;
    world.drained().await;
    world.sql(REFILL).await;
    write(&world, &world.client, "last", 120).await;
    world.sql("COMMIT").await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(
        report.lost.is_empty() && report.reordered.is_empty(),
        "{report}"
    );
}

/// TRUNCATE locks the table and then the sequence. If a poll for work held the sequence and waited for the table, the server would
/// end one of the two.
#[tokio::test]
async fn a_truncate_and_a_look_for_work_never_deadlock() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", "1m"),
        ("OUTBOXD__RELAY__POLL_INTERVAL", "200ms"),
    ]);
    write(&world, &world.client, "first", 100).await;
    world.passed().await;
    // On a connection of its own: within a transaction pg_stat_activity stays as it was when it was first read.
    let dba = world.postgres().connect(&world.database).await.unwrap();
    dba.batch_execute("BEGIN; LOCK TABLE outbox.message IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let looks = "pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND l.mode = 'AccessShareLock' \
                 AND l.relation = 'outbox.message'::regclass AND a.query LIKE '-- Finds the lanes that have work%'";
    test_support::eventually("a look for work", SOON, async || {
        (world.count(looks).await > 0).then_some(())
    })
    .await;
    dba.batch_execute("TRUNCATE outbox.message RESTART IDENTITY; COMMIT")
        .await
        .unwrap();
    write(&world, &world.client, "second", 100).await;
    world.drained().await;
    world.all_arrived(&consumer).await;
    relay.never_said("deadlock");
}

/// The search for a message that cannot be read holds a lane and then reads the table. A TRUNCATE holds the table and then
/// takes back the mark of each lane.
#[tokio::test]
async fn a_truncate_and_a_search_for_an_unreadable_message_never_deadlock() {
    let world = world().await;
    let consumer = world.consumer().await;
    let gate = Gate::new();
    world
        .sql(
            "CREATE OR REPLACE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint \
             LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$ BEGIN \
                 IF aggregate_id = 'bad' THEN RAISE data_exception; END IF; \
                 RETURN hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0)); \
             END $$; \
             INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', 'bad', 'x', '1')",
        )
        .await;
    let relay = world.relay(&[
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", FAR),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", FAR),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
        ("OUTBOXD_FAILPOINT", &gate.at("unreadable.lane_held")),
    ]);
    relay.line("failpoint reached", SOON).await;
    let dba = world.postgres().connect(&world.database).await.unwrap();
    let truncating =
        tokio::spawn(async move { dba.batch_execute("TRUNCATE outbox.message").await });
    let waits = "pg_stat_activity WHERE query = 'TRUNCATE outbox.message' AND wait_event_type = 'Lock' \
                 AND datname = current_database()";
    world.until("it to wait for the relay", waits, 1).await;
    gate.open();
    truncating.await.unwrap().unwrap();
    write(&world, &world.client, "after", 60).await;
    world.drained().await;
    world.all_arrived(&consumer).await;
    relay.never_said("deadlock");
}

/// A claim that finds a table locked asks by whom, and reads a table for that. A person who has it and wants another is not
/// ended.
#[tokio::test]
async fn tables_truncated_one_by_one_and_the_question_who_blocks_never_deadlock() {
    let world = world().await;
    world.bind("all", "#", &[]).await;
    let gate = Gate::new();
    // So that the server would find the person to end, and not the relay.
    world
        .sql(&format!(
            "ALTER ROLE relay IN DATABASE {} SET deadlock_timeout = '1h'",
            world.database
        ))
        .await;
    write(&world, &world.client, "backlog", 60).await;
    let relay = world.relay(&[
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__BATCH_SIZE", "1"),
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", FAR),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", FAR),
        ("OUTBOXD_FAILPOINT", &gate.at("settle.after_commit")),
    ]);
    relay.line("failpoint reached", SOON).await;
    let dba = world.postgres().connect(&world.database).await.unwrap();
    dba.batch_execute("BEGIN; TRUNCATE outbox.lane")
        .await
        .unwrap();
    gate.open();
    let asks = "pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND l.relation = 'outbox.lane'::regclass \
                AND a.query LIKE '-- Transactions that keep this one%' AND a.application_name LIKE '%/0'";
    test_support::eventually("a worker to ask who blocks", SOON, async || {
        (world.count(asks).await > 0).then_some(())
    })
    .await;
    dba.batch_execute("TRUNCATE outbox.message; COMMIT")
        .await
        .unwrap();
    write(&world, &world.client, "after", 60).await;
    world.marked(60).await;
}

#[tokio::test]
async fn lanes_that_are_deleted_come_back_and_status_never_says_0_without_them() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.sql("DELETE FROM outbox.lane").await;
    write(&world, &world.client, "before", 30).await;
    let row = world
        .row("SELECT pending, oldest_due_age_seconds > 0 FROM outbox.status")
        .await;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (30, true));
    let relay = world.relay(&[]);
    relay.line("rows of outbox.lane were missing", SOON).await;
    world.passed().await;
    // While the relay works: first one table, then all, then in a transaction that also writes.
    world
        .sql("DELETE FROM outbox.lane WHERE lane % 2 = 0")
        .await;
    write(&world, &world.client, "one", 30).await;
    world.passed().await;
    world.sql("BEGIN; TRUNCATE outbox.lane").await;
    write(&world, &world.client, "all", 30).await;
    world.sql("COMMIT").await;
    world.passed().await;
    assert_eq!(world.count("outbox.lane").await, 64);
    world.all_arrived(&consumer).await;
}

/// A script empties all tables of the database, this schema included.
#[tokio::test]
async fn every_table_of_the_schema_emptied_at_once_is_survived_and_said() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, port) = world.watched(&[]);
    write(&world, &world.client, "before", 50).await;
    world.passed().await;
    world
        .sql(
            "DO $$ DECLARE t text; BEGIN \
             FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r' \
             LOOP EXECUTE format('TRUNCATE outbox.%I RESTART IDENTITY CASCADE', t); END LOOP; END $$; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'relay'",
        )
        .await;
    // None of the relay's sessions of before can send these.
    write(&world, &world.client, "after", 120).await;
    world.passed().await;
    relay
        .line("the schema is not as it was at the start", SOON)
        .await;
    answers(port, 503, &["outboxd migrate"]).await;
    world.all_arrived(&consumer).await;
}

/// The messages of the deleted records are still unsent: they are sent, and the messages behind them go on.
#[tokio::test]
async fn waiting_and_dead_messages_whose_record_is_deleted_are_sent_all_the_same() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let _relay = world.relay(&[
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "2"),
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ]);
    for key in ["a", "b", "c"] {
        // Each message has a destination of its own, because a destination that fails for two messages would hold both.
        world
            .insert(Some(key), &format!("nobody{key}"), "0", "")
            .await;
        world
            .until(
                "the head to wait",
                &format!("outbox.waiting WHERE key_hash = outbox.key_hash('order', '{key}')"),
                1,
            )
            .await;
        for n in 1..10 {
            world.insert(Some(key), "good", &n.to_string(), "").await;
        }
    }
    world.insert(None, "good", "1", "headers = '[]'").await;
    world.until("all to be filed", "outbox.waiting", 30).await;
    world.until("the dead one", "outbox.dead", 1).await;
    world.passed_by_marks().await;
    // The routes exist from here on.
    for key in ["a", "b", "c"] {
        world.bind("all", &format!("order.nobody{key}"), &[]).await;
    }
    world
        .sql(
            "UPDATE outbox.message SET headers = NULL WHERE headers IS NOT NULL; TRUNCATE outbox.dead; \
             DELETE FROM outbox.waiting WHERE cause = 'retry' AND key_hash = outbox.key_hash('order', 'a'); \
             DELETE FROM outbox.waiting WHERE key_hash = outbox.key_hash('order', 'b'); \
             DELETE FROM outbox.waiting WHERE id = (SELECT max(id) FROM outbox.message WHERE aggregate_id = 'c'); \
             UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'",
        )
        .await;
    world.clean(&consumer, 0).await;
}

/// People delete records to have messages sent again.
#[tokio::test]
async fn a_mark_that_is_taken_back_by_hand_sends_the_message_again() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    write(&world, &world.client, "k", 60).await;
    world.passed().await;
    world
        .sql("UPDATE outbox.message SET sent_at = NULL WHERE id % 3 = 0")
        .await;
    consumer.until(80).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean() && report.duplicates == 20, "{report}");
}
