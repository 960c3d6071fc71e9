//! The relay dies, stops, stalls, panics, and runs several times. Rows 1 to 9.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use test_support::Daemon;

use crate::{
    arena::{Arena, BATCH, SOON, Setup, WINDOW},
    flow::Flow,
    row::{Outcome, Result, Row, expect, in_time, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    1, "SIGKILL of the relay after claim, before publish" => after_claim(setup);
    2, "SIGKILL after publish, before the confirm" => killed(setup, "publish.after_send=hang");
    3, "SIGKILL after the confirm, before settle" => killed(setup, "confirm.before_settle=hang");
    4, "SIGKILL during COMMIT of the settle" => during_commit(setup);
    5, "SIGTERM, broker healthy" => terminated(setup);
    6, "SIGTERM while the broker is frozen, then blocked" => terminated_at_a_frozen_broker(setup);
    7, "SIGSTOP with a claim; a peer takes over; SIGCONT" => stalled(setup);
    8, "two, then four relays on one outbox" => several(setup);
    9, "a worker panics between confirm and settle" => panics(setup);
};

/// A relay that hangs at its failpoint with messages in its hands, while traffic comes in.
async fn hanging(arena: &mut Arena<'_>, failpoint: &str, workers: &str) -> Result<(Flow, Daemon)> {
    arena.set("OUTBOXD_FAILPOINT", failpoint);
    arena.set("OUTBOXD__RELAY__WORKERS", workers);
    let relay = arena.relay()?;
    let flow = arena.flow().await?;
    relay.line("failpoint reached", SOON).await;
    arena.unset("OUTBOXD_FAILPOINT");
    arena.set("OUTBOXD__RELAY__WORKERS", "2");
    Ok((flow, relay))
}

/// Another relay takes over; everything is delivered, with at most so many duplicates.
async fn taken_over(arena: &Arena<'_>, mut flow: Flow, duplicates: usize) -> Result<Outcome> {
    let over = Instant::now();
    let _second = arena.relay()?;
    flow.recovers(over, Duration::from_secs(30)).await?;
    flow.steady(100).await?;
    flow.finish(duplicates).await
}

async fn after_claim(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    // One worker: another one would be killed in the middle of its publishing.
    let (mut flow, mut relay) = hanging(&mut arena, "claim.after=hang", "1").await?;
    let second = arena.relay()?;
    second.line("connected to both servers", SOON).await;
    relay.kill().await?;
    let over = Instant::now();
    // No lease is waited for: the lock dies with the connection.
    flow.recovers(over, Duration::from_secs(5)).await?;
    flow.finish(0).await
}

async fn killed(setup: &Setup, failpoint: &str) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    let (flow, mut relay) = hanging(&mut arena, failpoint, "2").await?;
    // What the client took may not be on the wire yet; what was delivered was. It may have been before this look.
    flow.begun().await?;
    relay.kill().await?;
    let outcome = taken_over(&arena, flow, WINDOW).await?;
    expect(outcome.report.duplicates > 0, || {
        "no duplicate: it had not published, and the row proves nothing".into()
    })?;
    Ok(outcome)
}

/// Once just before the server can have committed, once just after.
async fn during_commit(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    let (flow, mut relay) = hanging(&mut arena, "settle.before_commit=hang", "1").await?;
    relay.kill().await?;
    let first = taken_over(&arena, flow, WINDOW).await?;

    let mut arena = Arena::shared(setup).await?;
    let (flow, mut relay) = hanging(&mut arena, "settle.after_commit=hang", "1").await?;
    relay.kill().await?;
    let mut second = taken_over(&arena, flow, 0).await?;
    expect(first.report.duplicates > 0, || {
        "not committed, and nothing came again: it had not published".into()
    })?;
    second.notes.push(format!(
        "before the commit: {} duplicates; after it: 0",
        first.report.duplicates
    ));
    Ok(second)
}

async fn terminated(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::shared(setup).await?;
    let flow = arena.flow().await?;
    let client = arena.owner().await?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut relay = arena.relay()?;
        flow.steady(300).await?;
        // So that there is something in its hands.
        flow.writes(&client, &format!("{signal}-"), 3000).await?;
        relay.signal(signal)?;
        let status = ended_within(&mut relay, Duration::from_secs(10)).await?;
        expect(status.success(), || {
            format!("{signal}: it ended with {status}")
        })?;
        let unsent =
            format!("outbox.message WHERE sent_at IS NULL AND aggregate_id LIKE '{signal}-%'");
        let unsent = arena.count(&unsent).await?;
        expect(unsent > 0, || {
            format!("{signal}: it was idle, and the row proves nothing")
        })?;
        let there = arena.count("outbox.relay").await?;
        expect(there == 0, || {
            format!("{signal}: it did not take its leave")
        })?;
    }
    taken_over(&arena, flow, 0).await
}

async fn terminated_at_a_frozen_broker(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    // The grace period, too, is short.
    arena.short_confirms();
    let mut relay = arena.relay()?;
    let flow = arena.flow().await?;
    flow.steady(200).await?;
    arena.rabbitmq.pause()?;
    let frozen = ends_within_its_grace(&arena, &mut relay).await;
    arena.rabbitmq.resume()?;
    frozen?;

    let mut relay = arena.relay()?;
    flow.steady(50).await?;
    arena.ctl("set_vm_memory_high_watermark 0.000001").await?;
    relay.line("blocks publishers", SOON).await;
    let blocked = ends_within_its_grace(&arena, &mut relay).await;
    arena.ctl("set_vm_memory_high_watermark 0.4").await?;
    blocked?;
    taken_over(&arena, flow, 2 * WINDOW).await
}

async fn ended_within(relay: &mut Daemon, bound: Duration) -> Result<ExitStatus> {
    let began = Instant::now();
    let status = relay.ended(SOON).await?;
    in_time(began, bound, || "it ended late".to_owned())?;
    Ok(status)
}

/// The grace period is ten seconds; a process needs a moment more.
async fn ends_within_its_grace(arena: &Arena<'_>, relay: &mut Daemon) -> Result<()> {
    relay.terminate()?;
    ended_within(relay, Duration::from_secs(12)).await?;
    let sessions = "pg_stat_activity WHERE usename = 'relay'";
    arena
        .until_count("the relay's sessions to end", sessions, |n| n == 0)
        .await;
    Ok(())
}

async fn stalled(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    let usual = arena.env().to_vec();
    arena.short_confirms();
    arena.set("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "5s");
    let folder = tempfile::tempdir()?;
    let gate = folder.path().join("open");
    let failpoint = format!("confirm.before_settle=until:{}", gate.display());
    let (mut flow, relay) = hanging(&mut arena, &failpoint, "1").await?;
    relay.signal(Signal::SIGSTOP)?;
    // The peer is healthy, and may be slow.
    arena.set_all(usual);
    let _peer = arena.relay()?;
    let over = Instant::now();
    // The database ends the stale transaction, and the peer gets its lanes.
    flow.recovers(over, Duration::from_secs(15)).await?;
    let now = "SELECT clock_timestamp()::text";
    let now: String = arena.client().await?.query_one(now, &[]).await?.get(0);
    let marks = format!("outbox.message WHERE sent_at <= '{now}'");
    let before = arena.count(&marks).await?;
    relay.signal(Signal::SIGCONT)?;
    // It goes on to mark what it published, and its session is gone.
    std::fs::write(gate, "")?;
    relay.line("PostgreSQL failed", SOON).await;
    flow.steady(200).await?;
    let after = arena.count(&marks).await?;
    expect(after >= before, || {
        format!("{} marks of the peer were written again", before - after)
    })?;
    flow.finish(WINDOW).await
}

async fn several(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::shared(setup).await?;
    let mut relays = vec![arena.relay()?, arena.relay()?];
    let flow = arena.flow().await?;
    flow.steady(600).await?;
    relays.push(arena.relay()?);
    relays.push(arena.relay()?);
    for relay in &relays {
        relay.line("connected to both servers", SOON).await;
    }
    flow.steady(1000).await?;
    flow.heals(Duration::from_secs(15), 0).await
}

async fn panics(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    arena.set("OUTBOXD_FAILPOINT", "confirm.before_settle@3=panic");
    let relay = arena.relay()?;
    let flow = arena.flow().await?;
    relay.line("panicked; starting it again", SOON).await;
    // What one worker had in its hands; the other one goes on.
    flow.heals(Duration::from_secs(10), BATCH).await
}
