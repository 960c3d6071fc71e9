//! The connection for notifications. Rows 71 and 72 of the fault matrix have too few connections, and dead ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use test_support::{eventually, probe};
use tokio_postgres::NoTls;

use crate::world::{SOON, World, own_world, world};

/// Sends NOTIFY without end, until dropped.
struct Flood(Vec<tokio::task::AbortHandle>);

impl Flood {
    async fn start(world: &World, sent: &Arc<AtomicUsize>) -> Self {
        let url = world.url_of("producer");
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

/// Advisory locks are anybody's who may connect: a producer takes the one by which a sleeping relay asks to be woken.
#[tokio::test]
async fn a_producer_that_holds_the_lock_of_a_sleeping_relay_hides_no_event() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.until("the relay to sleep", SLEEPERS, 1).await;
    let url = world.url_of("producer");
    let (producer, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let holding = tokio::spawn(async move {
        let lock = "SELECT pg_advisory_lock(122550254464888)";
        producer.batch_execute(lock).await.map(|()| producer)
    });
    // The relay lets go of it as it wakes.
    let held = "pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'producer' AND l.granted \
                AND a.datname = current_database() AND l.locktype = 'advisory' AND l.classid = 28533";
    eventually("the lock to be the producer's", SOON, async || {
        world.commit_many(1, 1).await;
        (world.count(held).await == 1).then_some(())
    })
    .await;
    let _producer = holding.await.unwrap().unwrap();
    world.drained().await;
    // Nobody is woken any more.
    world.commit_many(1, 1).await;
    world.clean(&consumer, 0).await;
}
