//! What keeps messages from being marked or read, and destinations that fail; see also rows 65 to 67 of the fault matrix.

use std::time::Instant;

use lapin::{BasicProperties, options::BasicPublishOptions, types::AMQPValue};
use test_support::{eventually, probe};

use crate::{
    kit::{BATCH, SETTINGS, WORKERS, several_attempts},
    unwritten::{drop_trigger, named},
    world::{SOON, World, plan, world},
};

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
    let relay = world.relay(&SETTINGS);
    relay.line("index-builder", SOON).await;
    assert_eq!(consumer.len(), 0);
    asking.abort();
    producer.batch_execute("ROLLBACK").await.unwrap();
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn a_serializable_database_costs_no_duplicate() {
    let world = world().await;
    let database = &world.database;
    let serializable =
        format!("ALTER DATABASE {database} SET default_transaction_isolation = serializable");
    world.sql(&serializable).await;
    let consumer = world.consumer().await;
    let _relays = [world.relay(&SETTINGS), world.relay(&SETTINGS)];
    for _ in 0..10 {
        world.commit_many(200, 40).await;
    }
    world.clean(&consumer, 0).await;
}

/// A publication for logical replication refuses the marks of a relay at work.
async fn refused_by_a_publication(obstacle: &str, cure: &str, said: &str) {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&SETTINGS);
    world.commit_many(200, 20).await;
    world.drained().await;
    let owner = world.postgres().connect(&world.database).await.unwrap();
    owner.batch_execute(obstacle).await.unwrap();
    world.commit_many(400, 40).await;
    relay.line("messages cannot be marked", SOON).await;
    relay.line(said, SOON).await;
    several_attempts(&relay).await;
    owner.batch_execute(cure).await.unwrap();
    world.clean(&consumer, WORKERS * BATCH + 24).await;
}

/// `FOR ALL TABLES` does not publish `outbox.message.lane`, which is generated and part of the key.
#[tokio::test]
async fn a_publication_without_the_generated_key_bounds_the_duplicates() {
    let version = "SELECT current_setting('server_version_num')::int";
    let world = world().await;
    let row = world.row(version).await;
    if row.get::<_, i32>(0) < 180_000 {
        eprintln!("not on this server: PostgreSQL 18 checks generated columns");
        return;
    }
    refused_by_a_publication(
        "CREATE PUBLICATION every FOR ALL TABLES",
        "ALTER PUBLICATION every SET (publish_generated_columns = stored)",
        "publish_generated_columns = stored",
    )
    .await;
}

#[tokio::test]
async fn a_published_table_without_a_replica_identity_bounds_the_duplicates() {
    refused_by_a_publication(
        "ALTER TABLE outbox.message REPLICA IDENTITY NOTHING; \
         CREATE PUBLICATION one FOR TABLE outbox.message",
        "DROP PUBLICATION one; ALTER TABLE outbox.message REPLICA IDENTITY DEFAULT",
        "REPLICA IDENTITY DEFAULT",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_that_refuses_one_row_costs_its_neighbours_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&SETTINGS);
    world.sql("CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN IF OLD.aggregate_id = ''13'' THEN RAISE ''not this one''; END IF; RETURN NEW; END'; \
             CREATE TRIGGER picky BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION picky()").await;
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
    world.sql("DROP TRIGGER picky ON outbox.message").await;
    world.clean(&consumer, 2 * WORKERS * BATCH).await;
}

/// A queue that rejects every message, because it has one.
async fn full_queue(world: &World, name: &str, binding: &str) {
    let full = [
        ("x-max-length", AMQPValue::LongLongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    world.bind(name, binding, &full).await;
    let how = BasicPublishOptions::default();
    let channel = world.channel().await;
    let publish =
        channel.basic_publish("".into(), name.into(), how, b"", BasicProperties::default());
    publish.await.unwrap().await.unwrap();
}

const A_KEY_FOR_EACH_AGGREGATE: &[(&str, &str)] = &[
    (
        "OUTBOXD__ROUTING__ROUTING_KEY",
        "{aggregate_type}.{aggregate_id}",
    ),
    ("OUTBOXD__RELAY__BACKOFF_INITIAL", "100ms"),
    ("OUTBOXD__RELAY__BACKOFF_MAX", "1s"),
];

/// What an incident may copy besides each worker's batches until the first answers: a probe in each back-off, and a new
/// message for each `backoff_initial`. A slower machine makes more of them.
fn probes(began: Instant) -> usize {
    60 + 16 * usize::try_from(began.elapsed().as_secs()).unwrap()
}

/// The queue of the orders is full; the payments have another one.
#[tokio::test]
async fn a_full_queue_of_some_routing_keys_stops_no_other_and_copies_each_message_about_once() {
    let world = world().await;
    let consumer = world.consumer().await;
    full_queue(&world, "full", "order.*").await;
    let relay = world.relay(&[&SETTINGS[..], A_KEY_FOR_EACH_AGGREGATE].concat());
    let began = Instant::now();
    world.commit_many(400, 400).await;
    relay
        .line(
            "many destinations of this exchange fail in the same way",
            SOON,
        )
        .await;
    for round in 0..5 {
        let sql = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT kind, '{round}-' || i, 'x', '{{}}' \
             FROM generate_series(1, 100) i, (VALUES ('payment'), ('order')) k (kind)"
        );
        world.sql(&sql).await;
        let unpaid = "outbox.message WHERE aggregate_type = 'payment' AND sent_at IS NULL";
        world.until("all payments to be sent", unpaid, 0).await;
    }
    let sent = "outbox.message WHERE aggregate_type = 'order' AND sent_at IS NOT NULL";
    assert_eq!(world.count(sent).await, 0);
    let copies = consumer.len() - 500;
    let allowed = 900 + probes(began);
    assert!(copies <= allowed, "{copies} copies of 900 orders");
    let _drain = world.consume("full").await;
    world.drained().await;
}

#[tokio::test]
async fn held_messages_of_a_relay_that_died_are_sent_by_the_next() {
    let world = world().await;
    world.declare_exchange("events").await;
    let mut relay = world.relay(&SETTINGS);
    world.commit_many(100, 50).await;
    world
        .waiting("cause IN ('held', 'probe', 'behind')", 100)
        .await;
    relay.kill().await.unwrap();
    let consumer = world.consumer().await;
    let _relay = world.relay(&SETTINGS);
    world.clean(&consumer, 0).await;
}

/// The relay measures JSON that compresses 200 times without decompressing it, and the message dies only because of its size.
#[tokio::test]
async fn small_rows_that_decompress_to_much_hold_nobody_up() {
    let world = world().await;
    let consumer = world.consumer().await;
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
               SELECT 'order', i::text, 'created', \
                      CASE WHEN i % 2 = 0 THEN to_json(repeat('x', 40000000)) ELSE '{}' END, \
                      CASE WHEN i % 2 = 1 THEN json_build_object('x', repeat('x', 40000000)) END \
               FROM generate_series(1, 12) i";
    let relay = world.relay(&SETTINGS);
    relay.line("connected to both servers", SOON).await;
    let peak = || probe::peak_kib(relay.pid()).unwrap();
    let before = peak();
    world.sql(sql).await;
    world.commit_many(100, 20).await;
    consumer.until_all(&world.ledger.ids()).await;
    world.drained().await;
    let dead = "outbox.dead WHERE reason IN ('payload_too_large', 'headers_too_large')";
    assert_eq!(world.count(dead).await, 12);
    // Whoever fetches one to refuse it takes its 40 MB.
    let after = peak();
    assert!(after < before + 24 * 1024, "{before} KiB became {after}");
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
    plan().install(postgres, &name).await.unwrap();
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
    let _relay = world.relay(&[&SETTINGS[..], &[("DATABASE_URL", &url)]].concat());
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
        .one("SELECT pg_get_functiondef('outbox.key_hash'::regproc)")
        .await;
    let relay = world.relay(&SETTINGS);
    world.commit_many(50, 10).await;
    consumer.until(50).await;
    world.sql("CREATE OR REPLACE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint \
             LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS 'BEGIN RAISE ''changed''; END'").await;
    world.commit_many(100, 20).await;
    several_attempts(&relay).await;
    assert_eq!(world.count("outbox.dead").await, 0);
    world.sql(&original).await;
    world.clean(&consumer, 0).await;
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
    world.sql(endless).await;
    let timeout = ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    let _relay = world.relay(&[&SETTINGS[..], &[timeout]].concat());
    world.insert(Some("endless"), "created", "1", "").await;
    let mut rounds = 0;
    while world.count("outbox.dead").await == 0 {
        world.commit_many(50, 50).await;
        consumer.until(50 * rounds).await;
        rounds += 1;
        assert!(rounds < 500, "it is never given up");
    }
    world.dead("reason = 'unreadable'", 1).await;
    world.clean(&consumer, 0).await;
}

/// The rehearsal cannot see it: the trigger refuses only the COMMIT itself, as a foreign server would. Each publish of the message
/// is followed by a longer wait.
#[tokio::test]
async fn a_message_whose_mark_is_refused_at_commit_waits_longer_each_time() {
    let world = world().await;
    let consumer = world.consumer().await;
    world
        .sql(
            "CREATE FUNCTION public.refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF NEW.sent_at IS NOT NULL AND NEW.aggregate_id = 'poison' AND current_query() = 'COMMIT' THEN \
                     RAISE 'refused at commit'; \
                 END IF; RETURN NULL; END $$; \
             CREATE CONSTRAINT TRIGGER refuses AFTER UPDATE ON outbox.message DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION public.refuses()",
        )
        .await;
    let (relay, port) = world.watched(&[
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "20ms"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ]);
    world.insert(Some("poison"), "created", "1", "").await;
    named(&relay, port, "refused at commit").await;
    world.commit_many(50, 50).await;
    let waits = "outbox.waiting WHERE reason = 'unmarkable' AND attempts >= 4";
    world.until("several attempts", waits, 1).await;
    let unsent = "outbox.message WHERE sent_at IS NULL";
    world.until("all others to be sent", unsent, 1).await;
    let attempts: i32 = world.one("SELECT attempts FROM outbox.waiting").await;
    // Each time it may be published among others, and then alone. The last time it may not be filed yet.
    let most = 2 * usize::try_from(attempts).unwrap() + 2;
    let id: uuid::Uuid = world.one("SELECT message_id FROM outbox.waiting").await;
    let seen = consumer.seen();
    let published = seen
        .iter()
        .filter(|seen| seen.message_id == id.to_string())
        .count();
    assert!(
        published <= most,
        "{published} publishes, {attempts} attempts"
    );
    drop_trigger(&world, "refuses", "message").await;
    world.sql("UPDATE outbox.waiting SET due_at = now()").await;
    world.drained().await;
}
