//! The relay does not publish messages that it cannot mark: whatever prevents the mark, one incident makes no more duplicates
//! than the workers had in flight. And one message at a time probes a destination that fails.

use lapin::types::AMQPValue;
use test_support::{Daemon, eventually, free_port};

use crate::seeing::{get, until};
use crate::world::{Consumer, SOON, World, repository, world};

const WORKERS: usize = 2;
const BATCH: usize = 50;

fn settings<'s>(more: &[(&'s str, &'s str)]) -> Vec<(&'s str, &'s str)> {
    let mut all = vec![
        ("OUTBOXD__RELAY__BATCH_SIZE", "50"),
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", "200ms"),
    ];
    all.extend(more);
    all
}

/// A relay works, meets an obstacle for several attempts, and then the obstacle is gone.
async fn obstructed(obstacle: &str, cure: &str, said: &str) {
    let world = world().await;
    let consumer = world.consumer().await;
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let relay = world.relay(&settings(&[("OUTBOXD__ADMIN__LISTEN", &listen)]));
    world.commit_many(200, 20).await;
    consumer.until(200).await;
    world.drained().await;
    metric(port, "outbox_can_mark", 1.0).await;

    let owner = world.postgres().connect(&world.database).await.unwrap();
    owner.batch_execute(obstacle).await.unwrap();
    world.commit_many(400, 40).await;
    relay.line("messages cannot be marked", SOON).await;
    metric(port, "outbox_can_mark", 0.0).await;
    let (code, body) = get(port, "/readyz").await.unwrap();
    assert!(code == 503 && body.contains("cannot_mark"), "{code} {body}");
    several_attempts(&relay, 8).await;
    let before = arrived(&world, &consumer).await;
    several_attempts(&relay, 16).await;
    let during = consumer.len() - before;
    assert!(
        during <= 8,
        "{during} more deliveries while nothing can be marked"
    );
    relay.line(said, SOON).await;
    owner.batch_execute(cure).await.unwrap();
    clean(&world, &consumer, WORKERS * BATCH + 24).await;
    relay.line("messages are marked as sent again", SOON).await;
}

/// The number of deliveries, once everything that was published before has arrived: a message of the test marks the end.
async fn arrived(world: &World, consumer: &Consumer) -> usize {
    world.ledger.duplicates(consumer).await.unwrap();
    consumer.len()
}

async fn metric(port: u16, name: &str, expected: f64) {
    until(port, name, |value| value == expected).await;
}

async fn several_attempts(relay: &Daemon, n: usize) {
    eventually("attempts", SOON, async || {
        let lines = relay.lines();
        (lines.iter().filter(|l| l.contains("backing off")).count() >= n).then_some(())
    })
    .await;
}

async fn clean(world: &World, consumer: &Consumer, duplicates: usize) {
    world.drained().await;
    let report = world.judge(consumer).await;
    assert!(
        report.is_clean() && report.duplicates <= duplicates,
        "{report}; {duplicates} duplicates are allowed"
    );
}

#[tokio::test]
async fn a_table_lock_that_lets_reads_pass_costs_no_duplicate_and_is_named() {
    for table in ["message", "lane", "waiting", "dead"] {
        let world = world().await;
        let consumer = world.consumer().await;
        world.commit_many(100, 20).await;
        let person = world.postgres().connect(&world.database).await.unwrap();
        let lock = format!(
            "SET application_name = 'index-builder'; BEGIN; LOCK TABLE outbox.{table} IN SHARE MODE"
        );
        person.batch_execute(&lock).await.unwrap();
        let relay = world.relay(&settings(&[]));
        relay.line("messages cannot be marked", SOON).await;
        relay.line("index-builder", SOON).await;
        several_attempts(&relay, 8).await;
        assert_eq!(consumer.len(), 0, "with outbox.{table} locked");
        person.batch_execute("COMMIT").await.unwrap();
        clean(&world, &consumer, 0).await;
    }
}

/// Later requests queue behind a session that waits for a lock, so that session blocks them as much as the holder does.
#[tokio::test]
async fn a_table_lock_that_is_only_asked_for_is_named() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.commit_many(100, 20).await;
    let producer = world.postgres().connect(&world.database).await.unwrap();
    let insert = "BEGIN; INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('order', 'x', '1')";
    producer.batch_execute(insert).await.unwrap();
    let person = world.postgres().connect(&world.database).await.unwrap();
    let lock = "SET application_name = 'index-builder'; LOCK TABLE outbox.message IN SHARE MODE";
    let asking = tokio::spawn(async move { person.batch_execute(lock).await });
    let asked = "pg_locks WHERE NOT granted AND mode = 'ShareLock' AND relation = 'outbox.message'::regclass";
    world.until("the lock to be asked for", asked, 1).await;
    let relay = world.relay(&settings(&[]));
    relay.line("index-builder", SOON).await;
    assert_eq!(consumer.len(), 0);
    asking.abort();
    producer.batch_execute("ROLLBACK").await.unwrap();
    clean(&world, &consumer, 0).await;
}

#[tokio::test]
async fn a_serializable_database_costs_no_duplicate() {
    let world = world().await;
    let database = &world.database;
    let serializable =
        format!("ALTER DATABASE {database} SET default_transaction_isolation = serializable");
    world.client.batch_execute(&serializable).await.unwrap();
    let consumer = world.consumer().await;
    let _relays = [world.relay(&settings(&[])), world.relay(&settings(&[]))];
    for _ in 0..10 {
        world.commit_many(200, 40).await;
    }
    clean(&world, &consumer, 0).await;
}

#[tokio::test]
async fn a_revoked_privilege_bounds_the_duplicates() {
    obstructed(
        "REVOKE UPDATE (sent_at) ON outbox.message FROM outbox_relay",
        "GRANT UPDATE (sent_at) ON outbox.message TO outbox_relay",
        "permission denied",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_that_swallows_the_mark_bounds_the_duplicates() {
    obstructed(
        "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER append_only BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION append_only()",
        "DROP TRIGGER append_only ON outbox.message",
        "trigger",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_that_raises_at_the_mark_or_at_the_commit_bounds_the_duplicates() {
    let raises = "CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql \
                  AS 'BEGIN RAISE ''rows are immutable''; END'; ";
    for trigger in [
        "CREATE TRIGGER raises BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION raises()",
        "CREATE TRIGGER raises AFTER UPDATE ON outbox.message EXECUTE FUNCTION raises()",
        "CREATE CONSTRAINT TRIGGER raises AFTER UPDATE ON outbox.message DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION raises()",
    ] {
        obstructed(
            &format!("{raises}{trigger}"),
            "DROP TRIGGER raises ON outbox.message",
            "rows are immutable",
        )
        .await;
    }
}

#[tokio::test]
async fn a_publication_with_a_row_filter_bounds_the_duplicates() {
    let version = world()
        .await
        .client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap();
    if version.get::<_, i32>(0) < 150_000 {
        eprintln!("not on this server: row filters came with PostgreSQL 15");
        return;
    }
    obstructed(
        "CREATE PUBLICATION filtered FOR TABLE outbox.message WHERE (event_type = 'created')",
        "DROP PUBLICATION filtered",
        "row filter",
    )
    .await;
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_waits_alone() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.commit_many(200, 200).await;
    let person = world.postgres().connect(&world.database).await.unwrap();
    person
        .batch_execute(
            "SET application_name = 'a-person'; BEGIN; \
             SELECT FROM outbox.message WHERE aggregate_id IN ('7', '77') FOR UPDATE",
        )
        .await
        .unwrap();
    let relay = world.relay(&settings(&[]));
    consumer.until(198).await;
    world
        .until(
            "the locked rows wait",
            "outbox.waiting WHERE reason = 'unmarkable'",
            2,
        )
        .await;
    // The other messages are sent, and so are later ones.
    let before = consumer.len();
    for _ in 0..5 {
        world.commit_many(40, 5).await;
    }
    consumer.until(before + 200).await;
    relay.line("a-person", SOON).await;
    person.batch_execute("COMMIT").await.unwrap();
    // Each of two workers met each of the two rows once, in a batch.
    clean(&world, &consumer, 2 * WORKERS * BATCH).await;
}

#[tokio::test]
async fn a_trigger_that_refuses_one_row_costs_its_neighbours_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&settings(&[]));
    world
        .client
        .batch_execute(
            "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN IF OLD.aggregate_id = ''13'' THEN RAISE ''not this one''; END IF; RETURN NEW; END'; \
             CREATE TRIGGER picky BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION picky()",
        )
        .await
        .unwrap();
    for _ in 0..10 {
        world.commit_many(60, 60).await;
    }
    world
        .until(
            "all but one key are sent",
            "outbox.message WHERE sent_at IS NULL AND aggregate_id <> '13'",
            0,
        )
        .await;
    world
        .client
        .batch_execute("DROP TRIGGER picky ON outbox.message")
        .await
        .unwrap();
    clean(&world, &consumer, 2 * WORKERS * BATCH).await;
}

#[tokio::test]
async fn lanes_that_somebody_has_locked_are_named() {
    let world = world().await;
    let consumer = world.consumer().await;
    let person = world.postgres().connect(&world.database).await.unwrap();
    person
        .batch_execute(
            "SET application_name = 'a-person'; BEGIN; SELECT FROM outbox.lane FOR UPDATE",
        )
        .await
        .unwrap();
    world.commit_many(100, 10).await;
    world
        .client
        .batch_execute("UPDATE outbox.message SET created_at = created_at - interval '1 minute'")
        .await
        .unwrap();
    let relay = world.relay(&settings(&[]));
    relay.line("a-person", SOON).await;
    assert_eq!(consumer.len(), 0);
    person.batch_execute("COMMIT").await.unwrap();
    clean(&world, &consumer, 0).await;
}

/// Each attempt costs one more copy in the healthy queue.
#[tokio::test]
async fn a_full_queue_beside_a_healthy_one_is_probed_by_one_message_at_a_time() {
    let world = world().await;
    let consumer = world.consumer().await;
    let full = [
        ("x-max-length", AMQPValue::LongLongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    world.bind("full", "#", &full).await;
    let slow = settings(&[
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "100ms"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1s"),
    ]);
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let mut slow = slow;
    slow.push(("OUTBOXD__ADMIN__LISTEN", &listen));
    let relay = world.relay(&slow);
    let began = std::time::Instant::now();
    world.commit_many(600, 300).await;
    metric(port, "outbox_failing_destinations", 1.0).await;
    relay
        .line("everything to this destination fails", SOON)
        .await;
    world
        .until(
            "the others are held",
            "outbox.waiting WHERE cause NOT IN ('held', 'probe', 'behind', 'retry')",
            0,
        )
        .await;
    eventually("a few probes", SOON, async || {
        let attempts =
            "outbox.message m JOIN outbox.waiting w USING (lane, id) WHERE w.attempts > 1";
        (world.count(attempts).await >= 3).then_some(())
    })
    .await;
    let copies = consumer.len();
    // At most 300 heads were published before the circuit opened: each worker's batches until its first answers. After that there
    // is one probe a second, or two with a short jitter. A slower machine makes more of them.
    let probes = 60 + 4 * usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(copies <= 2 * WORKERS * BATCH + probes, "{copies} copies");
    // Now the queue gets room.
    let _drain = world.consume("full").await;
    world.drained().await;
    relay
        .line("the destination takes messages again", SOON)
        .await;
    metric(port, "outbox_failing_destinations", 0.0).await;
    let report = world.judge(&consumer).await;
    assert!(report.lost.is_empty() && report.is_clean(), "{report}");
}

#[tokio::test]
async fn held_messages_of_a_relay_that_died_are_sent_by_the_next() {
    let world = world().await;
    world.declare_exchange("events").await;
    let mut relay = world.relay(&settings(&[]));
    world.commit_many(100, 50).await;
    world
        .until(
            "all are held, or behind one that is",
            "outbox.waiting WHERE cause IN ('held', 'probe', 'behind')",
            100,
        )
        .await;
    relay.kill().await.unwrap();
    let consumer = world.consumer().await;
    let _relay = world.relay(&settings(&[]));
    clean(&world, &consumer, 0).await;
}

#[tokio::test]
async fn a_destination_that_never_works_is_given_up_after_max_attempts() {
    let world = world().await;
    world.declare_exchange("events").await;
    let _relay = world.relay(&settings(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "5")]));
    world.commit_many(200, 50).await;
    world
        .until(
            "all of them dead",
            "outbox.dead WHERE reason = 'unroutable' AND attempts >= 5",
            200,
        )
        .await;
    assert_eq!(world.count("outbox.waiting").await, 0);
}

#[tokio::test]
async fn a_failing_destination_holds_up_no_other() {
    let world = world().await;
    world.bind("good", "order.good", &[]).await;
    let consumer = world.consume("good").await;
    let _relay = world.relay(&settings(&[]));
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
               SELECT 'order', i::text, CASE WHEN i % 100 = 0 THEN 'good' ELSE 'bad' END, '{}' \
               FROM generate_series(1, 4000) i";
    world.client.batch_execute(sql).await.unwrap();
    consumer.until(40).await;
    world
        .until(
            "no message of the failing destination was sent",
            "outbox.message WHERE event_type = 'bad' AND sent_at IS NOT NULL",
            0,
        )
        .await;
}

/// The relay measures JSON that compresses 200 times without decompressing it, and the message dies only because of its size.
#[tokio::test]
async fn small_rows_that_decompress_to_much_hold_nobody_up() {
    let world = world().await;
    let consumer = world.consumer().await;
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
               SELECT 'order', i::text, 'created', \
                      CASE WHEN i % 2 = 0 THEN to_json(repeat('x', 20000000)) ELSE '{}' END, \
                      CASE WHEN i % 2 = 1 THEN json_build_object('x', repeat('x', 20000000)) END \
               FROM generate_series(1, 12) i";
    world.client.batch_execute(sql).await.unwrap();
    world.commit_many(100, 20).await;
    let _relay = world.relay(&settings(&[]));
    consumer.until_all(&world.ledger.ids()).await;
    world.drained().await;
    let dead = "outbox.dead WHERE reason IN ('payload_too_large', 'headers_too_large')";
    assert_eq!(world.count(dead).await, 12);
}

/// Bytes without an equivalent in the encoding of the relay's session.
#[tokio::test]
async fn a_row_that_cannot_be_read_is_given_up_and_its_neighbours_flow() {
    let world = world().await;
    let consumer = world.consumer().await;
    let postgres = world.postgres();
    let name = format!("{}_latin", world.database);
    let create = format!(
        "CREATE DATABASE {name} ENCODING 'WIN1252' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    );
    eventually("a database", SOON, async || {
        postgres.execute("postgres", &create).await.ok()
    })
    .await;
    let client = postgres.connect(&name).await.unwrap();
    client
        .batch_execute("SET outboxd.shared_roles = on")
        .await
        .unwrap();
    for file in [
        "migrations/outbox/0001_outbox.sql",
        "deploy/postgres/roles.sql",
    ] {
        let sql = std::fs::read_to_string(repository().join(file)).unwrap();
        client.batch_execute(&sql).await.unwrap();
    }
    let bad = "convert_from('\\x81'::bytea, 'WIN1252')";
    let insert = |columns: &str| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT {columns} FROM generate_series(1, 60) i;"
        )
    };
    let good = insert("'order', i::text, 'created', '{}'");
    let one =
        |columns: &str| insert(columns).replace("generate_series(1, 60)", "generate_series(1, 1)");
    let sql = [
        good.clone(),
        one(&format!("'order', '1', {bad}, '{{}}'")),
        one(&format!("'order', {bad}, 'created', '{{}}'")),
        good.clone(),
        one(&format!("'order', '2', 'created', to_json({bad})")),
        good,
    ]
    .concat();
    client.batch_execute(&sql).await.unwrap();
    let url = postgres.url_for("relay", "relay-canary-password", &name);
    let _relay = world.relay(&settings(&[("DATABASE_URL", &url)]));
    consumer.until(180).await;
    eventually("the three are dead", SOON, async || {
        let sql = "SELECT count(*) FROM outbox.dead WHERE reason = 'unreadable'";
        let dead: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        (dead == 3).then_some(())
    })
    .await;
    assert_eq!(consumer.len(), 180, "no duplicate");
    let listed = world
        .outboxd(&["dead", "list", "--json"], &[("DATABASE_URL", &url)])
        .await;
    assert_eq!(
        listed.stdout.matches("\"unreadable\"").count(),
        3,
        "{}",
        listed.stderr
    );
}

/// A replaced function of the schema fails every read, so no message is to blame.
#[tokio::test]
async fn a_read_that_fails_for_no_row_s_fault_gives_no_message_up() {
    let world = world().await;
    let consumer = world.consumer().await;
    let original: String = world
        .client
        .query_one("SELECT pg_get_functiondef('outbox.key_hash'::regproc)", &[])
        .await
        .unwrap()
        .get(0);
    let relay = world.relay(&settings(&[]));
    world.commit_many(50, 10).await;
    consumer.until(50).await;
    world
        .client
        .batch_execute(
            "CREATE OR REPLACE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint \
             LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS 'BEGIN RAISE ''changed''; END'",
        )
        .await
        .unwrap();
    world.commit_many(100, 20).await;
    several_attempts(&relay, 8).await;
    assert_eq!(world.count("outbox.dead").await, 0);
    world.client.batch_execute(&original).await.unwrap();
    clean(&world, &consumer, 0).await;
}

/// The lane goes from worker to worker, and each worker reads other lanes in between. Two time-outs still count together.
#[tokio::test]
async fn a_row_whose_read_never_ends_is_given_up_while_all_others_flow() {
    let world = world().await;
    let consumer = world.consumer().await;
    let endless = "CREATE OR REPLACE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint \
                   LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$ BEGIN \
                       IF aggregate_id = 'endless' THEN PERFORM pg_sleep(3600); END IF; \
                       RETURN hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0)); \
                   END $$";
    world.client.batch_execute(endless).await.unwrap();
    let timeout = ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    let _relay = world.relay(&settings(&[timeout]));
    world.insert(Some("endless"), "created", "1", "").await;
    let mut rounds = 0;
    while world.count("outbox.dead").await == 0 {
        world.commit_many(50, 50).await;
        consumer.until(50 * rounds).await;
        rounds += 1;
        assert!(rounds < 500, "it is never given up");
    }
    world
        .until("its end", "outbox.dead WHERE reason = 'unreadable'", 1)
        .await;
    clean(&world, &consumer, 0).await;
}
