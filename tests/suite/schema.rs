//! The schema: as plain SQL, under least privilege, and cheap.

use std::time::Instant;

use test_support::eventually;

use crate::world::{SOON, World, repository, world};

async fn as_role(world: &World, role: &str, sql: &str) -> Result<String, String> {
    let password = if role == "relay" {
        "relay-canary-password"
    } else {
        role
    };
    world
        .postgres()
        .psql(role, password, &world.database, sql)
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_producer_may_insert_and_neither_read_nor_forge() {
    let world = world().await;
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) VALUES ('a','1','b','{}')";
    as_role(&world, "producer", insert).await.unwrap();
    let id = as_role(
        &world,
        "producer",
        "SELECT outbox.enqueue('order', '1', 'created', '{}')",
    )
    .await
    .unwrap();
    world
        .has(
            &format!("outbox.message WHERE message_id = '{}'", id.trim()),
            1,
        )
        .await;
    let binary = "SELECT outbox.enqueue_binary('order', NULL, 'scanned', '\\x00ff', 'image/png')";
    as_role(&world, "producer", binary).await.unwrap();
    let debezium = "INSERT INTO outbox.debezium (id, aggregatetype, aggregateid, type, payload) \
                    VALUES (gen_random_uuid(), 'order', '1', 'created', '{}')";
    as_role(&world, "producer", debezium).await.unwrap();
    assert_eq!(world.count("outbox.message").await, 4);

    let forged = |column: &str, value: &str| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, event_type, payload, {column}) VALUES ('a', 'b', '1', {value})"
        )
    };
    for forbidden in [
        "SELECT * FROM outbox.message".to_owned(),
        "SELECT * FROM outbox.status".to_owned(),
        "UPDATE outbox.message SET sent_at = now()".to_owned(),
        "DELETE FROM outbox.message".to_owned(),
        "INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) VALUES (0,1,gen_random_uuid(),'x',1,'x')".to_owned(),
        "SELECT * FROM outbox.lane".to_owned(),
        forged("sent_at", "now()"),
        forged("id", "1").replace("VALUES", "OVERRIDING SYSTEM VALUE VALUES"),
        forged("tx", "'1'"),
        forged("created_at", "now()"),
    ] {
        let refused = as_role(&world, "producer", &forbidden).await.unwrap_err();
        assert!(refused.contains("permission denied"), "{forbidden}: {refused}");
    }
}

#[tokio::test]
async fn a_monitor_sees_counts_and_never_a_message() {
    let world = world().await;
    world.commit_many(3, 3).await;
    assert_eq!(
        as_role(&world, "monitor", "SELECT pending, due FROM outbox.status")
            .await
            .unwrap()
            .trim(),
        "3|3"
    );
    for table in ["message", "dead", "waiting"] {
        assert!(
            as_role(&world, "monitor", &format!("SELECT * FROM outbox.{table}"))
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn a_relay_cannot_write_or_change_an_event() {
    let world = world().await;
    for forbidden in [
        "INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('a', 'b', '1')",
        "UPDATE outbox.message SET payload = '2'",
        "UPDATE outbox.message SET message_id = gen_random_uuid()",
    ] {
        assert!(
            as_role(&world, "relay", forbidden)
                .await
                .unwrap_err()
                .contains("permission denied")
        );
    }
}

#[tokio::test]
async fn exactly_one_payload_is_asked_for() {
    let world = world().await;
    for columns in ["", ", payload, binary_payload"] {
        let values = if columns.is_empty() {
            ""
        } else {
            ", '1', '\\x00'"
        };
        let sql = format!(
            "INSERT INTO outbox.message (aggregate_type, event_type{columns}) VALUES ('a', 'b'{values})"
        );
        let refused = as_role(&world, "producer", &sql).await.unwrap_err();
        assert!(refused.contains("message_has_one_payload"), "{refused}");
    }
}

/// The transaction id is assigned before the position is drawn; the low-water mark depends on this order.
#[tokio::test]
async fn the_transaction_id_comes_before_the_position() {
    let world = world().await;
    let rows = world.all("EXPLAIN (VERBOSE, COSTS OFF) INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('a', 'b', '1')").await;
    let plan: String = rows.iter().map(|row| row.get::<_, String>(0)).collect();
    let at = |text: &str| {
        plan.find(text)
            .unwrap_or_else(|| panic!("{text} in {plan}"))
    };
    assert!(at("pg_current_xact_id()") < at("nextval("), "{plan}");
}

#[tokio::test]
async fn the_mark_is_a_heap_only_update() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.commit_many(20_000, 500).await;
    // This snapshot keeps every first version on its page.
    let old = world.postgres().connect(&world.database).await.unwrap();
    let snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.message";
    old.batch_execute(snapshot).await.unwrap();
    let mut relay = world.relay(&[]);
    consumer.until(20_000).await;
    world.drained().await;
    // On PostgreSQL 14 an idle session keeps its last statistics; a session that ends reports them.
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    let stats = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname = 'message'";
    let (all, hot) = eventually("the statistics", SOON, async || {
        let row = world.row(stats).await;
        let (all, hot): (i64, i64) = (row.get(0), row.get(1));
        (all >= 20_000).then_some((all, hot))
    })
    .await;
    assert_eq!(all, 20_000, "one update a message");
    assert_eq!(hot, all, "heap-only updates");
}

#[tokio::test]
async fn every_table_and_column_is_described() {
    let world = world().await;
    let bare = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                WHERE n.nspname = 'outbox' AND c.relkind = 'r' \
                  AND (obj_description(c.oid) IS NULL OR col_description(c.oid, a.attnum) IS NULL)";
    assert_eq!(world.count(bare).await, 0);
}

/// The lag shows without a running relay. Reading it is cheap: no sequential scan of the messages.
#[tokio::test]
async fn the_status_view_is_exact_when_small_and_cheap_when_large() {
    let world = world().await;
    world.sql("INSERT INTO outbox.message (aggregate_type, event_type, payload, available_at) VALUES ('a', 'b', '1', 'infinity')").await;
    world.commit_many(9, 3).await;
    let began = Instant::now();
    world.sql("UPDATE outbox.message SET created_at = clock_timestamp() - interval '90 s' WHERE id = (SELECT min(id) FROM outbox.message WHERE available_at IS NULL)").await;
    let row = world
        .row("SELECT pending, dead, oldest_due_age_seconds, pending_is_capped FROM outbox.status")
        .await;
    assert_eq!(
        (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, bool>(3)
        ),
        (10, 0, false)
    );
    let age: f64 = row.get(2);
    let most = 91.0 + began.elapsed().as_secs_f64();
    assert!((89.0..most).contains(&age), "{age}");

    world.sql("INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'a', (i % 5000)::text, 'b', '1' FROM generate_series(1, 300000) i; ANALYZE outbox.message").await;
    // Use the counts of this transaction: a session reports older counts late, and PostgreSQL 14 has no way to force it.
    world.sql("BEGIN").await;
    let scans = async || {
        let sql = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE schemaname = 'outbox' AND relname = 'message'";
        let row = world.row(sql).await;
        row.get::<_, i64>(0)
    };
    let before = scans().await;
    let row = world
        .row("SELECT pending, pending_is_capped FROM outbox.status")
        .await;
    let pending: i64 = row.get(0);
    assert!(
        row.get::<_, bool>(1) && (240_000..360_000).contains(&pending),
        "{pending}"
    );
    assert_eq!(scans().await, before, "no sequential scan");
    world.sql("COMMIT").await;
    let about = format!("{pending} pending (about), ");
    let lag = world.outboxd(&["check-lag", "--warning", "1h", "--critical", "1h"], &[]);
    lag.await.ends(0, &[&about]);
    let status = world.outboxd(&["status"], &[]).await;
    status.ends(0, &[&format!("pending  {pending} (about)")]);
    // The test counts the buffers that the view reads, index included, and not the time.
    let explain = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) SELECT * FROM outbox.status";
    let rows = world.client.simple_query(explain).await.unwrap();
    let text = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: serde_json::Value = serde_json::from_str(text.unwrap()).unwrap();
    let pages = |what: &str| plan[0]["Plan"][what].as_i64().unwrap();
    let read = pages("Shared Hit Blocks") + pages("Shared Read Blocks");
    assert!(read < 20_000, "{read} pages");
}

#[tokio::test]
async fn what_is_due_is_counted_beside_any_number_of_scheduled_messages() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, cause, replay, due_at, due_since) \
             SELECT i % 64, i, gen_random_uuid(), cause, replay, now() + due_in * interval '1 hour', \
                    now() + since * interval '1 hour' \
             FROM (VALUES (1, 10001, 'scheduled', false, 1, 1), (20001, 25000, 'retry', false, 1, -1), \
                          (30001, 30007, 'replay', true, -1, -1), (40001, 40009, 'replay', true, 1, -1), \
                          (50001, 50003, 'retry', false, 1, 0.5)) AS w (first, last, cause, replay, due_in, since), \
                  generate_series(first, last) i",
        )
        .await;
    let sql = "SELECT due, pending, pending_is_capped FROM outbox.status";
    let row = world.row(sql).await;
    // The last three were written by a clock that was ahead; a replay is due at its own time.
    assert_eq!(row.get::<_, i64>(0), 5000 + 7 + 3);
    assert_eq!(row.get::<_, i64>(1), 10_001);
    assert!(row.get::<_, bool>(2));
}

/// While no relay sleeps, a commit costs no notification. While a relay sleeps, the commit wakes it.
#[tokio::test]
async fn a_sleeping_relay_is_woken_by_a_commit_and_an_awake_one_costs_no_notification() {
    let world = world().await;
    let consumer = world.consumer().await;
    let listener = Listener::start(&world).await;
    world.commit_many(10, 3).await;
    assert_eq!(listener.heard().await, 0, "nobody sleeps: nobody is told");
    // Without a notification this relay would poll once an hour.
    let relay = world.relay(&[("OUTBOXD__RELAY__POLL_INTERVAL", "1h")]);
    consumer.until(10).await;
    for n in 0..5 {
        asleep(&world).await;
        world.commit(&[(Some("1"), "created", "{}")]).await;
        consumer.until(11 + n).await;
    }
    // Each of the five was woken for, or came while the relay was still getting up for the one before.
    assert!(listener.heard().await >= 1);
    drop(relay);
}

async fn asleep(world: &World) {
    let holds = "pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' \
                 AND l.mode = 'ExclusiveLock' AND d.datname = current_database() AND l.classid = 28533";
    world.until("the relay to sleep", holds, 1).await;
}

struct Listener {
    client: tokio_postgres::Client,
    heard: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Listener {
    async fn start(world: &World) -> Self {
        let url = world.postgres().url(&world.database);
        let (client, mut connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        let heard = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = heard.clone();
        tokio::spawn(async move {
            while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let Ok(tokio_postgres::AsyncMessage::Notification(_)) = message {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        client.batch_execute("LISTEN outbox_wake").await.unwrap();
        Self { client, heard }
    }

    /// Waits until all earlier notifications have arrived: the server delivers in order.
    async fn heard(&self) -> usize {
        self.client.batch_execute("SELECT 1").await.unwrap();
        self.heard.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[tokio::test]
async fn retention_deletes_what_is_old_in_steps_and_nothing_else() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[
        ("OUTBOXD__RETENTION__SENT", "1h"),
        ("OUTBOXD__RETENTION__STEP_ROWS", "100"),
        ("OUTBOXD__RETENTION__INTERVAL", "1s"),
    ]);
    let waits = world
        .insert(None, "later", "1", "available_at = 'infinity'")
        .await;
    world.commit_many(3000, 50).await;
    consumer.until(3000).await;
    world.marked(3000).await;
    world
        .sql(
            "UPDATE outbox.message SET sent_at = sent_at - interval '2 h' \
             WHERE id <= (SELECT min(id) + 1499 FROM outbox.message WHERE sent_at IS NOT NULL)",
        )
        .await;
    // Retention reads only rows at or below a lane's mark, and the marks move when the relay is idle.
    let old = "outbox.message WHERE sent_at < clock_timestamp() - interval '1 h'";
    world.until("the old half to go", old, 0).await;
    world
        .has("outbox.message WHERE sent_at IS NOT NULL", 1500)
        .await;
    world
        .has(&format!("outbox.message WHERE message_id = '{waits}'"), 1)
        .await;
}

/// The migration runs as a developer would run it: psql, an owner without special rights, ON_ERROR_STOP. Then `outboxd migrate`
/// does the same.
#[tokio::test]
async fn psql_and_outboxd_migrate_make_the_same_schema() {
    let world = world().await;
    let postgres = world.postgres();
    let plain = format!("{}_plain", world.database);
    postgres.execute("postgres", "DO $$ BEGIN CREATE ROLE plain_owner LOGIN PASSWORD 'p'; EXCEPTION WHEN duplicate_object THEN NULL; END $$").await.unwrap();
    for database in [plain.clone(), format!("{plain}_2")] {
        postgres
            .create_database(&database, "plain_owner")
            .await
            .unwrap();
    }
    let sql =
        std::fs::read_to_string(repository().join("migrations/outbox/0001_outbox.sql")).unwrap();
    postgres
        .psql("plain_owner", "p", &plain, &format!("BEGIN; {sql} COMMIT;"))
        .unwrap();
    let url = postgres.url_for("plain_owner", "p", &format!("{plain}_2"));
    let run = world.outboxd(&["migrate"], &[("DATABASE_URL", &url)]).await;
    run.ends(0, &[]);
    let shape = "SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default), E'\\n' \
                 ORDER BY table_name, ordinal_position) FROM information_schema.columns WHERE table_schema = 'outbox'";
    let one = postgres.psql("plain_owner", "p", &plain, shape).unwrap();
    let two = postgres
        .psql("plain_owner", "p", &format!("{plain}_2"), shape)
        .unwrap();
    assert_eq!(one, two);
    assert!(one.contains("sent_at"));
}

/// Without an encoding, text that is not UTF-8 would reach the relay unconverted and fail every claim that reads it.
#[tokio::test]
async fn a_database_without_an_encoding_is_refused() {
    let world = world().await;
    let sql =
        "CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'";
    world.postgres().execute("postgres", sql).await.unwrap();
    let url = world.postgres().url("plain");
    let plain = [("DATABASE_URL", url.as_str())];
    assert_eq!(world.outboxd(&["migrate"], &plain).await.code, 0);
    for command in [&["check", "--connect"] as &[&str], &["run"]] {
        let refused = world.outboxd(command, &plain).await;
        refused.ends(78, &["SQL_ASCII"]);
    }
}
