//! Connections: too few, flooded, and silently dead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use test_support::{
    Proxy, eventually,
    probe::{self, get},
};
use tokio_postgres::NoTls;

use crate::world::{SOON, World, own_world, world};

/// Sends NOTIFY without end, until dropped.
struct Flood(Vec<tokio::task::AbortHandle>);

impl Flood {
    async fn start(world: &World, sent: &Arc<AtomicUsize>) -> Self {
        let url = world
            .postgres()
            .url_for("producer", "producer", &world.database);
        let mut tasks = Vec::new();
        for _ in 0..2 {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            let sent = Arc::clone(sent);
            let flooding = async move {
                let sql = "SELECT pg_notify('outbox_wake', i || repeat('x', 100)) FROM generate_series(1, 5000) i";
                while client.execute(sql, &[]).await.is_ok() {
                    sent.fetch_add(5000, Ordering::Relaxed);
                }
            };
            tasks.push(tokio::spawn(connection).abort_handle());
            tasks.push(tokio::spawn(flooding).abort_handle());
        }
        Self(tasks)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

#[tokio::test]
async fn a_flood_of_notifications_delays_nothing_and_costs_little() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    world.commit_many(100, 10).await;
    consumer.until(100).await;
    world.drained().await;
    let before = probe::resident_kib(relay.pid()).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let _flood = Flood::start(&world, &sent).await;
    let flooded = async |notifications: usize| {
        eventually("notifications", SOON, async || {
            (sent.load(Ordering::Relaxed) > notifications).then_some(())
        })
        .await;
    };
    flooded(50_000).await;
    let cpu = || probe::cpu_seconds(relay.pid()).unwrap();
    let (began, used) = (Instant::now(), cpu());
    let mut slowest = 0;
    for n in 0..20 {
        world.commit_many(1, 1).await;
        let before = sent.load(Ordering::Relaxed);
        consumer.until(101 + n).await;
        slowest = slowest.max(sent.load(Ordering::Relaxed) - before);
    }
    flooded(100_000).await;
    // If the listener had no connection of its own, this flood would take a minute. The test counts notifications, because a slow
    // machine sends fewer.
    assert!(
        slowest < 500_000,
        "an event waited behind {slowest} notifications"
    );
    relay.line("the channel outbox_wake is flooded", SOON).await;
    let share = (cpu() - used) / began.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share} of a core");
    let after = probe::resident_kib(relay.pid()).unwrap();
    assert!(after < before + 64 * 1024, "{before} KiB became {after}");
    world.clean(&consumer, 0).await;
}

/// The time of a log line.
fn written(line: &str) -> SystemTime {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).unwrap()
}

/// The session that holds the lock of a sleeping relay; the upper half of the key distinguishes it from the audit's lock.
const SLEEPERS: &str = "pg_locks l JOIN pg_database d ON d.oid = l.database \
                        WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted \
                        AND l.classid = 28533";

#[tokio::test]
async fn while_the_notification_queue_fills_up_the_relay_stays_awake_so_that_producers_need_not_notify()
 {
    let world = own_world().await;
    // Filling the queue takes gigabytes. So a stand-in function reports that it is filling up.
    let usage = async |usage: f64| {
        let sql = format!(
            "SET allow_system_table_mods = on; CREATE OR REPLACE FUNCTION pg_catalog.pg_notification_queue_usage() \
             RETURNS float8 LANGUAGE sql AS 'SELECT {usage}::float8'"
        );
        world.sql(&sql).await;
    };
    let sql = "SET allow_system_table_mods = on; \
               ALTER FUNCTION pg_catalog.pg_notification_queue_usage() RENAME TO pg_notification_queue_usage_";
    world.sql(sql).await;
    usage(0.1).await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    world.commit_many(10, 10).await;
    consumer.until(10).await;
    world.until("the relay to sleep", SLEEPERS, 1).await;
    usage(0.5).await;
    relay
        .line("the server's notification queue is filling up", SOON)
        .await;
    world.until("the relay to be awake", SLEEPERS, 0).await;
    world.commit_many(10, 10).await;
    consumer.until(20).await;
    assert_eq!(world.count(SLEEPERS).await, 0);
    usage(0.1).await;
    world.until("the relay to sleep again", SLEEPERS, 1).await;
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn with_fewer_connections_than_it_wants_the_relay_delivers_down_to_two() {
    let world = world().await;
    let consumer = world.consumer().await;
    let role = format!("few_{}", world.database);
    let sql = format!("CREATE ROLE {role} LOGIN PASSWORD 'few' IN ROLE outbox_relay");
    world.sql(&sql).await;
    let url = world.postgres().url_for(&role, "few", &world.database);
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("OUTBOXD__RELAY__WORKERS", "4"),
        ("OUTBOXD__ADMIN__LISTEN", &listen),
    ];
    let mut committed = 0;
    for limit in (2..=7).rev() {
        let sql = format!("ALTER ROLE {role} CONNECTION LIMIT {limit}");
        world.sql(&sql).await;
        let _relay = world.relay(&settings);
        for _ in 0..3 {
            world.commit_many(100, 10).await;
            committed += 100;
            consumer.until(committed).await;
        }
        eventually("to be ready", SOON, async || {
            (get(port, "/readyz").await?.0 == 200).then_some(())
        })
        .await;
        if limit > 2 {
            eventually("the gauges", SOON, async || {
                let (_, text) = get(port, "/metrics").await?;
                text.contains("\noutbox_pending_messages 0").then_some(())
            })
            .await;
        }
        // A relay that is killed before it has settled repeats.
        world.clean(&consumer, 0).await;
    }
    // The limit is set while the relay runs, and the server ends all its connections.
    let sql = format!("ALTER ROLE {role} CONNECTION LIMIT -1");
    world.sql(&sql).await;
    let relay = world.relay(&settings);
    relay.line("connected to both servers", SOON).await;
    let sessions = format!("pg_stat_activity WHERE usename = '{role}'");
    world.until("all connections", &sessions, 7).await;
    let sql = format!(
        "ALTER ROLE {role} CONNECTION LIMIT 2; SELECT pg_terminate_backend(pid) FROM {sessions}"
    );
    world.sql(&sql).await;
    world.commit_many(100, 10).await;
    consumer.until(committed + 100).await;
    world.drained().await;
    drop(relay);
    // With one connection no worker can publish, and the relay says so.
    let sql = format!("ALTER ROLE {role} CONNECTION LIMIT 1");
    world.sql(&sql).await;
    let relay = world.relay(&settings);
    relay.line("SQLSTATE 53300", SOON).await;
    eventually("/readyz to say it", SOON, async || {
        let (code, body) = get(port, "/readyz").await?;
        (code == 503 && body.contains("CONNECTION LIMIT")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sessions_that_all_fall_silent_at_once_are_replaced_together() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (proxy, url) = Proxy::before(&world.database_url()).await.unwrap();
    let relay = world.relay(&[
        ("DATABASE_URL", &url),
        ("OUTBOXD__RELAY__WORKERS", "8"),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "20s"),
        ("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "2s"),
    ]);
    relay.line("connected to both servers", SOON).await;
    world.commit_many(500, 50).await;
    consumer.until(500).await;
    world.drained().await;
    world.until("the relay to sleep", SLEEPERS, 1).await;
    proxy.forget();
    world.commit_many(100, 10).await;
    consumer.until(600).await;
    // The relay gives a statement up after 25 s. Connections that are found together are given up together; connections that are
    // found one after the other would be 25 s apart.
    relay.line("no answer within 25s", SOON).await;
    let lines = relay.lines();
    let given_up = lines.iter().filter(|l| l.contains("no answer within 25s"));
    let times: Vec<_> = given_up.map(|line| written(line)).collect();
    let [first, last] = [times.iter().min(), times.iter().max()].map(Option::unwrap);
    let apart = last.duration_since(*first).unwrap();
    assert!(apart < Duration::from_secs(24), "{apart:?}: {times:?}");
    world.clean(&consumer, 0).await;
}
