//! Roles of the database. H1 and H2.

use std::time::Duration;

use test_support::shadows;
use tokio_postgres::{Client, NoTls};

use super::bounds::bounded;
use crate::{
    arena::{Arena, DATABASE, Setup},
    flow::connect,
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    1, "a producer role: huge rows that compress, deep headers, any exchange, floods, advisory locks held" => producer(setup);
    2, "any role with CONNECT: NOTIFY flood, listeners that never read, objects planted in public" => stranger(setup);
};

const AGAIN: Duration = Duration::from_secs(15);
/// The locks that producers, a sleeping relay and the audit know.
const LOCKS: &str = "SELECT pg_advisory_lock(122550254464888); \
                     SELECT pg_advisory_lock(l.classid::bigint << 32 | l.objid::bigint) FROM pg_locks l \
                     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.objid <> 122550254464888 & 4294967295";

async fn login(arena: &Arena<'_>, role: &str) -> Result<Client> {
    connect(&arena.postgres.url_for(role, role, DATABASE)).await
}

/// What a producer at its worst writes: how many rows, their values, and what becomes of each of them. An exchange that is
/// not there may be there tomorrow; all else is its own fault, and dead at once.
const BAD: [(i64, &str, &str); 10] = [
    // Twenty megabytes that are stored in two hundred kilobytes.
    (
        30,
        "'x', to_json(repeat('x', 20000000)), NULL, NULL",
        "payload_too_large",
    ),
    (
        30,
        "'x', '{}', json_build_object('x', repeat('x', 20000000)), NULL",
        "headers_too_large",
    ),
    (
        20,
        "'x', '{}', ('{\"a\":' || repeat('[', 5000) || repeat(']', 5000) || '}')::json, NULL",
        "headers_invalid",
    ),
    // No deeper than a parser of JSON follows.
    (
        20,
        "'x', '{}', ('{\"a\":' || repeat('[', 50) || repeat(']', 50) || '}')::json, NULL",
        "headers_invalid",
    ),
    (
        50,
        "'x', '{}', NULL, 'no-such-exchange-' || i",
        "exchange_missing",
    ),
    // By it any queue would be reached.
    (10, "'x', '{}', NULL, ''", "exchange_not_allowed"),
    (
        10,
        "repeat('t', 20000), '{}', NULL, repeat('e', 20000)",
        "exchange_invalid",
    ),
    (
        10,
        "repeat('t', 20000), '{}', NULL, NULL",
        "routing_key_too_long",
    ),
    (10, "'x', '{}', '{\"x-death\":[]}', NULL", "header_reserved"),
    (5000, "'x', '{}', '[]', NULL", "headers_invalid"),
];

/// A producer waits for the lock by which relays agree on who audits, and has it as soon as a connection is lost. What is
/// stranded is found all the same. Producers must stand still.
async fn auditor(scene: &Scene<'_>) -> Result<()> {
    let holder = login(&scene.arena, "producer").await?;
    let holding = tokio::spawn(async move {
        // The ASCII bytes of `obxaudit`.
        let lock = "SELECT pg_advisory_lock(8026109845904320884)";
        holder.batch_execute(lock).await.map(|()| holder)
    });
    let of_a_producer = |granted: &str| {
        format!(
            "pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'producer' AND {granted} \
             AND l.locktype = 'advisory' AND l.classid = 1868724321"
        )
    };
    scene
        .until(
            "a producer to ask for the audit's lock",
            &of_a_producer("true"),
            1,
        )
        .await;
    scene
        .superuser("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%/maintenance'")
        .await?;
    let _holder = holding.await??;
    scene
        .until("it to be the producer's", &of_a_producer("l.granted"), 1)
        .await;
    let stranded = scene.strands("stranded-", 20).await?;
    let missing = scene.flow.deliveries.missing(stranded).await;
    expect(missing == 0, || {
        format!(
            "{missing} of 20 stranded messages are not found while a producer holds the audit's lock"
        )
    })
}

async fn producer(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    let producer = login(&scene.arena, "producer").await?;
    let locker = login(&scene.arena, "producer").await?;
    // It waits for one that a relay has, and then has none of those behind it; the first it gets.
    let locks = format!("SET statement_timeout = '5s'; {LOCKS}");
    drop(locker.batch_execute(&locks).await);
    let sleeps = "pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'producer' AND l.granted \
                  AND l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.classid = 28533";
    scene
        .until(
            "the lock of a sleeping relay to be the producer's",
            sleeps,
            1,
        )
        .await;
    // Nobody is woken any more: what comes to a quiet outbox is found all the same.
    scene.flow.traffic.pause(true);
    scene.drained().await;
    let quiet = scene.flow.writes(&scene.owner, "quiet-", 1).await?;
    let missing = scene.flow.deliveries.missing(quiet).await;
    expect(missing == 0, || {
        "an event of a quiet outbox is not found while a producer holds the lock".to_owned()
    })?;
    auditor(&scene).await?;
    scene.flow.traffic.pause(false);

    for (kind, (rows, bad, _)) in BAD.iter().enumerate() {
        let sql = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers, exchange) \
             SELECT 'bad', '{kind}-' || i, {bad} FROM generate_series(1, {rows}) i"
        );
        producer
            .batch_execute(&sql)
            .await
            .map_err(|error| format!("{sql}: {error:?}"))?;
    }
    scene.flow.steady(300).await?;
    // Each has its end, or waits for its exchange.
    let undecided = "outbox.message m LEFT JOIN outbox.dead d USING (lane, id) LEFT JOIN outbox.waiting w USING (lane, id) \
                     WHERE m.aggregate_type = 'bad' AND d.id IS NULL AND w.reason IS NULL";
    scene
        .until("all of it to be dead, or to wait", undecided, 0)
        .await;
    let sent = "outbox.message WHERE aggregate_type = 'bad' AND sent_at IS NOT NULL";
    let sent = scene.arena.count(sent).await?;
    expect(sent == 0, || format!("{sent} of them were sent"))?;
    let fates = "SELECT split_part(m.aggregate_id, '-', 1)::int, coalesce(d.reason, w.reason), count(*) \
                 FROM outbox.message m LEFT JOIN outbox.dead d USING (lane, id) LEFT JOIN outbox.waiting w USING (lane, id) \
                 WHERE m.aggregate_type = 'bad' AND (d.id IS NOT NULL OR w.reason = 'exchange_missing') GROUP BY 1, 2 ORDER BY 1, 2";
    let fates: Vec<(i32, String, i64)> = scene
        .owner
        .query(fates, &[])
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let right = BAD.iter().zip(0..);
    let right: Vec<(i32, String, i64)> = right
        .map(|((rows, _, fate), kind)| (kind, (*fate).to_owned(), *rows))
        .collect();
    expect(fates == right, || {
        format!("what a producer wrote ended as {fates:?}, not as {right:?}")
    })?;
    scene.flow.note(bounded(&scene.relay)?);
    // The ledger knows nothing of them.
    scene
        .sql(
            "DELETE FROM outbox.message WHERE aggregate_type = 'bad'; DELETE FROM outbox.dead; \
             DELETE FROM outbox.waiting w WHERE NOT EXISTS (SELECT FROM outbox.message m WHERE m.lane = w.lane AND m.id = w.id)",
        )
        .await?;
    scene.endured(AGAIN, 0).await?;
    scene.end().await
}

async fn stranger(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let roles =
        "CREATE ROLE stranger LOGIN PASSWORD 'stranger'; GRANT CREATE ON SCHEMA public TO stranger";
    arena.postgres.execute(DATABASE, roles).await?;
    // Before anybody connects: what PostgreSQL 14 lets everybody do.
    let planted = shadows(&setup.repository, "public")?;
    arena.postgres.execute(DATABASE, &planted).await?;
    arena
        .postgres
        .execute(
            "postgres",
            &format!("ALTER DATABASE {DATABASE} SET search_path = public, pg_catalog"),
        )
        .await?;
    let flow_url = format!("{}?options=-csearch_path%3Dpg_catalog", arena.owner_url());
    let mut scene = Scene::by(arena, &flow_url).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..2 {
        let url = scene
            .arena
            .postgres
            .url_for("stranger", "stranger", DATABASE);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tasks.spawn(async move { drop(connection.await) });
        tasks.spawn(async move {
            // One listens, and never ends its transaction; the other floods.
            let listens = "SET search_path = pg_catalog; LISTEN outbox_wake; BEGIN; SELECT 1";
            let floods = "SET search_path = pg_catalog; \
                          SELECT pg_notify('outbox_wake', i || repeat('x', 100)) FROM generate_series(1, 5000) i";
            let sql = if n == 0 { listens } else { floods };
            while client.batch_execute(sql).await.is_ok() {
                if n == 0 {
                    std::future::pending::<()>().await;
                }
            }
        });
    }
    scene.logs("the channel outbox_wake is flooded").await?;
    scene.flow.steady(400).await?;
    for command in [&["check", "--connect"][..], &["status"], &["dead", "list"]] {
        let ran = scene.command(command).await?;
        expect(ran.code == 0, || ran.said())?;
    }
    tasks.shutdown().await;
    scene.endured(AGAIN, 0).await?;
    let sprung = "SELECT is_called FROM trap.sprung";
    let sprung: bool = scene.admin.query_one(sprung, &[]).await?.get(0);
    expect(!sprung, || "a stand-in of PostgreSQL's own ran".to_owned())?;
    scene.flow.note(bounded(&scene.relay)?);
    scene.end().await
}
