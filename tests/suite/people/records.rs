//! Records in `outbox.waiting` and `outbox.dead` belong to a message, not to a position. Positions of any number.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use test_support::eventually;

use crate::{
    commands::ok,
    people::write,
    world::{Run, SOON, World, repository, world},
};

const CHANGED: &str = "tables or sequence of the outbox were changed";

/// A dead message, and records of each kind that waits, one key each, at the positions 1 to 5.
async fn five_records(world: &World) {
    world.insert(Some("0"), "old", "1", "headers = '[]'").await;
    for key in 1..5 {
        world
            .insert(
                Some(&key.to_string()),
                "old",
                "1",
                "available_at = clock_timestamp() + interval '300 days'",
            )
            .await;
    }
    world.until("the dead one", "outbox.dead", 1).await;
    world.until("the others to wait", "outbox.waiting", 4).await;
    world
        .sql(
            "UPDATE outbox.waiting SET cause = 'retry', due_at = clock_timestamp() + interval '1 h', attempts = 7, \
                    reason = 'unroutable', last_error = 'old', replay = true WHERE id = 3; \
             UPDATE outbox.waiting SET cause = 'held', due_at = NULL, destination = 1, failed_probes = 1 WHERE id = 4; \
             UPDATE outbox.waiting SET cause = 'behind', due_at = NULL WHERE id = 5",
        )
        .await;
    world.ledger.withdraw(world.ledger.ids());
}

async fn five_new(world: &World, columns: &str) {
    for key in 0..5 {
        world
            .insert(Some(&key.to_string()), "new", "1", columns)
            .await;
    }
}

const FAR_BACKOFF: (&str, &str) = ("OUTBOXD__RELAY__BACKOFF_MAX", "2h");

#[tokio::test]
async fn a_record_of_a_deleted_message_hides_no_new_event_at_its_position() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[FAR_BACKOFF]);
    five_records(&world).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world
        .sql("DELETE FROM outbox.message; ALTER SEQUENCE outbox.message_id_seq RESTART")
        .await;
    five_new(&world, "").await;
    let status: Value = serde_json::from_str(&ok(&world, &["status", "--json"]).await).unwrap();
    assert!(
        status["due"].as_i64() >= Some(5) && status["oldest_due_age_seconds"].as_f64() > Some(0.0),
        "{status}"
    );
    let _relay = world.relay(&[FAR_BACKOFF]);
    world.none_lost_but_the_dead(&consumer).await;
    world.until("old records to go", "outbox.waiting", 0).await;
    // A dead record of a deleted message stays, and is not mistaken for the message that is there now.
    let dead: Value = serde_json::from_str(&ok(&world, &["dead", "list", "--json"]).await).unwrap();
    assert_eq!(
        (&dead[0]["position"], &dead[0]["event_type"]),
        (&1.into(), &Value::Null),
        "{dead}"
    );
    assert_eq!(dead.as_array().map(Vec::len), Some(1));
    // It protects nothing from retention, and does not keep the message from a replay.
    world.passed_but_the_dead().await;
    let run = ok(&world, &["replay", "--type", "new", "--dry-run"]).await;
    assert!(run.starts_with("5 messages"), "{run}");
    // The first event is the one at the dead record's position.
    let first: uuid::Uuid = world
        .one("SELECT message_id FROM outbox.message WHERE id = 1")
        .await;
    let found = ok(&world, &["where", &first.to_string(), "--json"]).await;
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["found"][0]["state"], "sent", "{found}");
    ok(&world, &["prune", "--older-than", "0s"]).await;
    assert_eq!(world.count("outbox.message").await, 0);
}

#[tokio::test]
async fn positions_that_begin_again_under_old_records_are_said_and_hide_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[FAR_BACKOFF]);
    five_records(&world).await;
    write(&world, &world.client, "passes", 300).await;
    world.passed_by_marks().await;
    world
        .sql("SET session_replication_role = replica; BEGIN; TRUNCATE outbox.message RESTART IDENTITY")
        .await;
    five_new(&world, "").await;
    world.sql("COMMIT").await;
    relay
        .line("positions of the outbox begin again", SOON)
        .await;
    world.none_lost_but_the_dead(&consumer).await;
}

/// PostgreSQL writes new files of the table and of its sequence, with the same contents.
#[tokio::test]
async fn a_rewrite_of_the_table_is_no_position_that_begins_again() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    write(&world, &world.client, "before", 300).await;
    world.passed().await;
    world.sql("ALTER TABLE outbox.message SET UNLOGGED").await;
    relay
        .line("ALTER TABLE outbox.message SET LOGGED", SOON)
        .await;
    let check = world.outboxd(&["check", "--connect"], &[]).await;
    check.ends(78, &["ALTER TABLE outbox.message SET LOGGED"]);
    let second = world.relay(&[]);
    second
        .line("ALTER TABLE outbox.message SET LOGGED", SOON)
        .await;
    for rewrite in [
        "ALTER TABLE outbox.message SET LOGGED",
        "BEGIN; ALTER TABLE outbox.message SET UNLOGGED; ALTER TABLE outbox.message SET LOGGED; COMMIT",
        "VACUUM FULL outbox.message",
        "CLUSTER outbox.message USING message_pkey",
    ] {
        let said = relay
            .lines()
            .iter()
            .filter(|line| line.contains(CHANGED))
            .count();
        world.sql(rewrite).await;
        write(&world, &world.client, "after", 10).await;
        eventually("the change to be noticed", SOON, async || {
            let lines = relay.lines();
            let now = lines.iter().filter(|line| line.contains(CHANGED)).count();
            (now > said).then_some(())
        })
        .await;
    }
    world.all_arrived(&consumer).await;
    for relay in [relay, second] {
        relay.never_said("begin again");
    }
}

#[tokio::test]
async fn a_record_at_a_reused_position_is_renewed_as_a_whole() {
    let world = world().await;
    world.declare_exchange("events").await;
    let mut relay = world.relay(&[FAR_BACKOFF]);
    five_records(&world).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world
        .sql("DELETE FROM outbox.message; ALTER SEQUENCE outbox.message_id_seq RESTART")
        .await;
    // Nobody takes them: each is tried again.
    five_new(&world, "").await;
    let _relay = world.relay(&[FAR_BACKOFF, ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h")]);
    let renewed = "outbox.waiting w JOIN outbox.message m USING (lane, id, message_id) \
                   WHERE NOT w.replay AND w.attempts = 1 AND w.last_error <> 'old' AND w.reason IS NOT NULL \
                     AND w.key_hash = outbox.key_hash(m.aggregate_type, m.aggregate_id) \
                     AND w.due_since <= clock_timestamp()";
    world.until("new records", renewed, 5).await;
    world
        .sql("UPDATE outbox.message SET headers = '[]'; UPDATE outbox.waiting SET due_at = clock_timestamp()")
        .await;
    let dead = "outbox.dead d JOIN outbox.message m USING (lane, id, message_id)";
    world.until("new dead records", dead, 5).await;
    assert_eq!(world.count("outbox.dead").await, 5);
}

impl World {
    async fn none_lost_but_the_dead(&self, consumer: &crate::world::Consumer) {
        let here = self
            .client
            .query("SELECT message_id FROM outbox.message", &[])
            .await
            .unwrap();
        let here: BTreeSet<uuid::Uuid> = here.iter().map(|row| row.get(0)).collect();
        let mut kept = self.ledger.ids();
        kept.retain(|id| here.contains(id));
        assert!(kept.len() >= 5);
        consumer.until_all(&kept).await;
        self.until("all to be sent", "outbox.message WHERE sent_at IS NULL", 0)
            .await;
    }

    async fn passed_but_the_dead(&self) {
        self.until(
            "the marks to pass what was sent",
            "outbox.message m LEFT JOIN outbox.lane l USING (lane) WHERE m.id > coalesce(l.low_water, -1)",
            0,
        )
        .await;
    }
}

/// A copy, or another tool, brings any position.
#[tokio::test]
async fn a_message_of_any_position_is_sent_replayed_and_pruned() {
    let world = world().await;
    let consumer = world.consumer().await;
    let positions = [i64::MIN, -5, 0, i64::MAX];
    for id in positions {
        world
            .sql(&format!(
                "INSERT INTO outbox.message (id, aggregate_type, aggregate_id, event_type, payload) \
                 OVERRIDING SYSTEM VALUE VALUES ({id}, 'order', '1', 'placed', '1')"
            ))
            .await;
    }
    // The largest distance, in one lane.
    world
        .sql("UPDATE outbox.lane SET low_water = -9223372036854775808")
        .await;
    ok(&world, &["status"]).await;
    let mut relay = world.relay(&[]);
    consumer.until(positions.len()).await;
    world.drained().await;
    let ids = world
        .all("SELECT message_id::text FROM outbox.message ORDER BY id")
        .await;
    let found = |report: &str| report.matches("\"position\"").count();
    for id in &ids {
        for hint in [
            &[][..],
            &["--key", "order/1"],
            &["--since", "1h"],
            &["--scan"],
        ] {
            let args = [&["where", "--json", id.get(0)], hint].concat();
            assert_eq!(found(&ok(&world, &args).await), 1, "{args:?}");
        }
    }
    let all = ok(&world, &["where", "--json", "--key", "order/1"]).await;
    assert_eq!(found(&all), positions.len(), "{all}");
    for args in [
        &["--correlation-id", "none", "--scan"][..],
        &["9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "--scan"],
        &["9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "--key", "order/1"],
    ] {
        let nothing = world.outboxd(&[&["where"], args].concat(), &[]).await;
        nothing.ends(1, &["was found"]);
    }
    ok(&world, &["replay", "--type", "placed", "--why", "all"]).await;
    consumer.until(2 * positions.len()).await;
    world.drained().await;
    for id in &ids {
        ok(&world, &["replay", id.get(0), "--why", "each"]).await;
    }
    consumer.until(3 * positions.len()).await;
    world.drained().await;
    // It would take back a mark above every drawn position.
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world.sql("UPDATE outbox.lane SET low_water = 0").await;
    let pruned = ok(&world, &["prune", "--older-than", "0s"]).await;
    assert!(pruned.starts_with("3 sent messages"), "{pruned}");
    world
        .sql("UPDATE outbox.lane SET low_water = 9223372036854775807")
        .await;
    let pruned = ok(&world, &["prune", "--older-than", "0s"]).await;
    assert!(pruned.starts_with("1 sent messages"), "{pruned}");
    let lines = relay.lines();
    assert!(
        !lines.iter().any(|line| line.contains("panicked")),
        "{lines:?}"
    );
}

/// A replay that waits for the first, which commits then.
async fn replay_behind(world: &World, first: &tokio_postgres::Client) -> Run {
    let args = [
        "replay",
        "--aggregate-type",
        "order",
        "--why",
        "x",
        "--json",
    ];
    let second = world.outboxd(&args, &[]);
    let commit = async {
        let waits =
            "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        world.until("the second to wait", waits, 1).await;
        first.batch_execute("COMMIT").await.unwrap();
    };
    let (second, ()) = tokio::join!(second, commit);
    second
}

/// When the second has waited for the first, the relay has published what the first filed, and marked one more message.
#[tokio::test]
async fn a_replay_that_meets_another_one_proves_only_what_it_chose() {
    let world = world().await;
    world.commit_many(4, 1).await;
    world
        .sql(
            "UPDATE outbox.message SET sent_at = clock_timestamp() WHERE id < 4; \
             CREATE FUNCTION public.published() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN DELETE FROM outbox.waiting WHERE reason = ''first''; RETURN NULL; END'; \
             CREATE TRIGGER published AFTER INSERT ON outbox.waiting EXECUTE FUNCTION public.published()",
        )
        .await;
    let first = world.postgres().connect(&world.database).await.unwrap();
    let files_two = "SET session_replication_role = replica; BEGIN; \
         INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, replay, due_at, due_since, reason) \
         SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id), 'replay', true, \
                clock_timestamp(), clock_timestamp(), 'first' \
         FROM outbox.message m ORDER BY m.lane, m.id LIMIT 2; \
         UPDATE outbox.message SET sent_at = clock_timestamp() WHERE sent_at IS NULL";
    first.batch_execute(files_two).await.unwrap();
    let second = replay_behind(&world, &first).await;
    // The two that were published are sent once more, and the fourth is none of this replay's.
    second.ends(0, &["3"]);
    assert_eq!(world.count("outbox.waiting WHERE replay").await, 3);
    let recorded =
        "SELECT sum(affected)::bigint, sum(cardinality(message_ids))::bigint FROM outbox.operation";
    let row = world.row(recorded).await;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3, 3));
}

/// The first replay has filed two of three messages, and has not committed yet.
#[tokio::test]
async fn two_replays_at_once_file_each_message_once_and_report_what_they_filed() {
    let world = world().await;
    world.commit_many(3, 1).await;
    world
        .sql("UPDATE outbox.message SET sent_at = clock_timestamp()")
        .await;
    let first = world.postgres().connect(&world.database).await.unwrap();
    let files_two = "BEGIN; \
         INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, replay, due_at, due_since) \
         SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id), 'replay', true, \
                clock_timestamp(), clock_timestamp() \
         FROM outbox.message m ORDER BY m.lane, m.id LIMIT 2";
    first.batch_execute(files_two).await.unwrap();
    let second = replay_behind(&world, &first).await;
    assert_eq!(second.code, 0, "{}", second.stderr);
    let report: Value = serde_json::from_str(&second.stdout).unwrap();
    assert_eq!(report["messages"], 1, "{report}");
    assert_eq!(world.count("outbox.waiting WHERE replay").await, 3);
    let recorded = "outbox.operation WHERE action = 'replay' AND affected = 1 AND cardinality(message_ids) = 1";
    assert_eq!(world.count(recorded).await, 1);
}

/// Each word of the statements, as a team's own column of each table.
async fn add_columns(world: &World) {
    let mut words = BTreeSet::new();
    for file in fs::read_dir(repository().join("src/outbox/sql")).unwrap() {
        let sql = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in sql.lines() {
            let code = line.split("--").next().unwrap_or_default();
            let name = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            let found = code
                .split(name)
                .filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase()) && w.len() < 40);
            words.extend(found.map(str::to_owned));
        }
    }
    assert!(words.contains("place") && words.contains("n") && words.len() > 100);
    for table in ["message", "lane", "waiting", "dead", "relay", "operation"] {
        let taken = world
            .client
            .query(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = ('outbox.' || $1)::regclass",
                &[&table],
            )
            .await
            .unwrap();
        let taken: BTreeSet<String> = taken.iter().map(|row| row.get(0)).collect();
        let columns: Vec<String> = words
            .difference(&taken)
            .map(|word| format!("ADD COLUMN \"{word}\" text"))
            .collect();
        world
            .sql(&format!(
                "ALTER TABLE outbox.{table} {}",
                columns.join(", ")
            ))
            .await;
    }
}

#[tokio::test]
async fn a_teams_own_columns_break_no_statement_whatever_their_names() {
    let world = world().await;
    add_columns(&world).await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[
        ("OUTBOXD__RETENTION__SENT", "1h"),
        ("OUTBOXD__RETENTION__INTERVAL", "1s"),
    ]);
    world.commit_many(300, 20).await;
    let big = format!("\"{}\"", "x".repeat(3_000_000));
    let correlated = "headers = '{\"correlation_id\":\"c\"}'";
    world.insert(Some("big"), "created", &big, correlated).await;
    let later = "available_at = clock_timestamp() + interval '1 s'";
    world.insert(Some("later"), "created", "1", later).await;
    for n in 0..3 {
        let key = n.to_string();
        world.insert(Some(&key), "bad", "1", "headers = '[]'").await;
    }
    world.until("the bad ones to die", "outbox.dead", 3).await;
    consumer.until(302).await;
    world.drained().await;
    ok(&world, &["dead", "list"]).await;
    ok(&world, &["dead", "redrive", "--all", "--why", "x"]).await;
    world.until("them to die again", "outbox.dead", 3).await;
    ok(&world, &["status"]).await;
    ok(&world, &["where", "--key", "order/1"]).await;
    ok(&world, &["where", "--correlation-id", "c"]).await;
    ok(&world, &["check", "--connect"]).await;
    ok(&world, &["replay", "--type", "created", "--why", "x"]).await;
    consumer.until(604).await;
    world.drained().await;
    ok(&world, &["dead", "discard", "--all", "--why", "x"]).await;
    // A mark that hides a message, and a record that waits for nothing.
    world.passed().await;
    world
        .sql("UPDATE outbox.message SET sent_at = NULL WHERE id = (SELECT min(m.id) FROM outbox.message m)")
        .await;
    relay.line("lay where no relay looks", SOON).await;
    consumer.until(605).await;
    world.drained().await;
    world
        .sql("UPDATE outbox.message SET sent_at = clock_timestamp() - interval '2 h'")
        .await;
    // The relay's retention has passed over messages that it met unsent; the command begins anew.
    ok(&world, &["prune", "--older-than", "1h"]).await;
    assert_eq!(world.count("outbox.message").await, 0);
    let lines = relay.lines();
    let bad = |line: &&String| line.contains("failed") || line.contains("ambiguous");
    assert_eq!(lines.iter().find(bad), None);
}

/// A redrive sends old positions late, and a person can write any time.
#[tokio::test]
async fn rows_that_are_younger_than_those_after_them_keep_nothing_from_retention() {
    let world = world().await;
    world.commit_many(4000, 300).await;
    let old = "outbox.message WHERE sent_at < clock_timestamp() - interval '1 h'";
    world
        .sql(
            "UPDATE outbox.message SET sent_at = clock_timestamp() - interval '2 h'; \
             UPDATE outbox.lane SET low_water = 1000000; \
             UPDATE outbox.message m SET sent_at = CASE WHEN f.n % 2 = 0 THEN clock_timestamp() ELSE 'infinity' END \
             FROM (SELECT lane, id, row_number() OVER (PARTITION BY lane ORDER BY id) AS n FROM outbox.message) f \
             WHERE f.lane = m.lane AND f.id = m.id AND (f.n <= 2 OR f.n % 20 = 0)",
        )
        .await;
    let young = 4000 - world.count(old).await;
    {
        let _relay = world.relay(&[
            ("OUTBOXD__RETENTION__SENT", "1h"),
            ("OUTBOXD__RETENTION__STEP_ROWS", "10"),
            ("OUTBOXD__RETENTION__INTERVAL", "1s"),
        ]);
        world.until("the old ones to go", old, 0).await;
    }
    assert_eq!(world.count("outbox.message").await, young);
    // The command reads every row, however many younger ones come first.
    world.sql("INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, sent_at) \
             SELECT 'order', 'one', 'created', '1', \
                    clock_timestamp() - CASE WHEN i <= 500 THEN interval '0 s' ELSE interval '2 h' END \
             FROM generate_series(1, 600) i; \
             UPDATE outbox.lane SET low_water = 1000000").await;
    let pruned = ok(&world, &["prune", "--older-than", "1h"]).await;
    assert!(pruned.starts_with("100 sent messages"), "{pruned}");
}
