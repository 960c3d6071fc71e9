//! The relay is killed between every two steps, stopped and stalled; several relays run at once.

use nix::sys::signal::Signal;
use test_support::eventually;

use crate::world::{FAR, FARTHER, SOON, World, world};

/// Most duplicates that one crash may cause, with the settings below.
const WORKERS: usize = 2;
const BATCH: usize = 50;

fn settings(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [
        ("OUTBOXD__RELAY__WORKERS", "2"),
        ("OUTBOXD__RELAY__BATCH_SIZE", "50"),
    ]
    .into_iter()
    .chain(more.iter().copied())
    .collect()
}

/// A relay hangs at `failpoint` and is killed there, and another relay finishes. Returns the duplicates.
async fn killed_at(failpoint: &'static str) -> usize {
    killed_with(failpoint, "2", true).await
}

/// `published`: the failpoint comes after the publish, and the test waits until the broker has some messages before the kill. (A
/// message that was handed to the client need not have been written to the socket.)
async fn killed_with(failpoint: &'static str, workers: &'static str, published: bool) -> usize {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut first = world.relay(&settings(&[
        ("OUTBOXD_FAILPOINT", failpoint),
        ("OUTBOXD__RELAY__WORKERS", workers),
    ]));
    world.commit_many(400, 20).await;
    let name = failpoint.split(['=', '@']).next().unwrap();
    first
        .line(&format!("failpoint reached: {name}"), SOON)
        .await;
    if published {
        consumer.until(1).await;
    }
    first.kill().await.unwrap();

    let _second = world.relay(&settings(&[]));
    world.drained().await;
    consumer.until(400).await;
    // Messages of the first relay may still be on their way.
    eventually("the last delivery", SOON, async || {
        let passive = lapin::options::QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let channel = world.channel().await;
        let queue = channel.queue_declare(crate::world::short("all"), passive, Default::default());
        (queue.await.unwrap().message_count() == 0).then_some(())
    })
    .await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.duplicates <= WORKERS * BATCH, "{report}");
    report.duplicates
}

#[tokio::test]
async fn killed_after_claim_repeats_nothing() {
    // Use one worker, because a second one would be killed in the middle of its publish.
    assert_eq!(killed_with("claim.after=hang", "1", false).await, 0);
}

#[tokio::test]
async fn killed_after_publish_repeats_at_most_a_batch_a_worker() {
    assert!(
        killed_at("publish.after_send=hang").await > 0,
        "it had published"
    );
}

#[tokio::test]
async fn killed_between_confirm_and_settle_repeats_at_most_a_batch_a_worker() {
    assert!(
        killed_at("confirm.before_settle=hang").await > 0,
        "it had published"
    );
}

#[tokio::test]
async fn killed_before_the_commit_of_the_settle_repeats_at_most_a_batch_a_worker() {
    assert!(
        killed_at("settle.before_commit=hang").await > 0,
        "it had published"
    );
}

#[tokio::test]
async fn killed_after_the_commit_of_the_settle_repeats_nothing() {
    assert_eq!(killed_with("settle.after_commit=hang", "1", true).await, 0);
}

#[tokio::test]
async fn a_peer_takes_over_at_once_when_a_relay_dies() {
    let world = world().await;
    let consumer = world.consumer().await;
    // There is no lease, and the time-out that ends a silent claim is far away.
    let silent = ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FAR);
    let hangs = ("OUTBOXD_FAILPOINT", "claim.after=hang");
    let mut first = world.relay(&settings(&[silent, hangs]));
    world.commit_many(100, 10).await;
    first.line("failpoint reached", SOON).await;
    let second = world.relay(&settings(&[silent]));
    second.line("connected to both servers", SOON).await;
    first.kill().await.unwrap();
    consumer.until(100).await;
}

#[tokio::test]
async fn a_panicking_worker_is_started_again_and_loses_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&settings(&[(
        "OUTBOXD_FAILPOINT",
        "confirm.before_settle@2=panic",
    )]));
    world.commit_many(400, 20).await;
    relay.line("panicked; starting it again", SOON).await;
    world.drained().await;
    consumer.until(400).await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean() && report.duplicates <= BATCH, "{report}");
}

async fn several(relays: usize) {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut running: Vec<_> = (0..relays).map(|_| world.relay(&settings(&[]))).collect();
    for relay in &running {
        relay.line("connected to both servers", SOON).await;
    }
    for _ in 0..5 {
        world.commit_many(600, 40).await;
    }
    consumer.until(3000).await;
    world.drained().await;
    for relay in &mut running {
        relay.terminate().unwrap();
        assert!(relay.ended(SOON).await.unwrap().success());
    }
    let report = world.judge(&consumer).await;
    assert!(report.is_clean() && report.duplicates == 0, "{report}");
}

#[tokio::test]
async fn two_relays_share_one_outbox_without_a_duplicate() {
    several(2).await;
}

#[tokio::test]
async fn four_relays_share_one_outbox_without_a_duplicate() {
    several(4).await;
}

async fn stopped_by(signal: Signal) {
    let world = world().await;
    let consumer = world.consumer().await;
    let patient = ("OUTBOXD__RELAY__SHUTDOWN_GRACE", FAR);
    let mut relay = world.relay(&settings(&[patient]));
    relay.line("connected to both servers", SOON).await;
    world.until("its row", "outbox.relay", 1).await;
    world.commit_many(3000, 30).await;
    consumer.until(200).await;
    relay.signal(signal).unwrap();
    let status = relay.ended(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(world.count("outbox.relay").await, 0, "it took its leave");
    let _next = world.relay(&settings(&[]));
    consumer.until(3000).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(
        report.is_clean() && report.duplicates == 0,
        "what was published was settled: {report}"
    );
}

#[tokio::test]
async fn sigterm_settles_what_is_published_and_repeats_nothing() {
    stopped_by(Signal::SIGTERM).await;
}

#[tokio::test]
async fn sigint_settles_what_is_published_and_repeats_nothing() {
    stopped_by(Signal::SIGINT).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let mut relay = world.relay(&settings(&[
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
        ("OUTBOXD__RELAY__SHUTDOWN_GRACE", FAR),
    ]));
    world.commit_many(10, 1).await;
    relay.line("failpoint reached", SOON).await;
    relay.terminate().unwrap();
    relay.line("stopping", SOON).await;
    relay.terminate().unwrap();
    assert_eq!(relay.ended(SOON).await.unwrap().code(), Some(1));
}

#[tokio::test]
async fn the_grace_period_bounds_a_stop() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let mut relay = world.relay(&settings(&[
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
        ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "1s"),
        ("OUTBOXD__RELAY__SHUTDOWN_GRACE", "2s"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
    ]));
    world.commit_many(10, 1).await;
    relay.line("failpoint reached", SOON).await;
    relay.terminate().unwrap();
    // The hanging worker would hang until the database ends its claim.
    relay.line("the grace period is over", SOON).await;
    relay.ended(SOON).await.unwrap();
    let locks = "pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() \
                 AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()";
    world.until("its locks to be gone", locks, 0).await;
}

/// The database ends the claim of a stalled relay. When the relay goes on, it cannot mark.
#[tokio::test]
async fn a_stalled_relay_is_fenced_by_the_database() {
    let world = world().await;
    let consumer = world.consumer().await;
    // The time-out is long enough for a claim on the busiest machine. With a shorter one the database would end claims before the
    // stall, and their messages would be repeated.
    let fast = [
        ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "9s"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "12s"),
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
    ];
    let mut stalled = world.relay(&settings(&fast));
    world.commit_many(100, 10).await;
    stalled.line("failpoint reached", SOON).await;
    stalled.signal(Signal::SIGSTOP).unwrap();
    let _peer = world.relay(&settings(&[]));
    world.drained().await;
    let marks = sent(&world).await;
    stalled.signal(Signal::SIGCONT).unwrap();
    stalled.kill().await.unwrap();
    assert_eq!(sent(&world).await, marks, "the peer's marks stand");
    let report = world.judge(&consumer).await;
    assert!(
        report.is_clean() && report.duplicates <= WORKERS * BATCH,
        "{report}"
    );
}

async fn sent(world: &World) -> i64 {
    let row = world
        .client
        .query_one(
            "SELECT sum(hashtext(sent_at::text))::bigint FROM outbox.message",
            &[],
        )
        .await
        .unwrap();
    row.get(0)
}
