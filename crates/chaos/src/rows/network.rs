//! The network between relay and broker. Rows 13 to 16.

use std::time::{Duration, Instant};

use rand::RngExt;
use test_support::{Daemon, Mode, Proxy};
use tokio::time::sleep;

use super::broker::nothing_is_marked;
use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    13, "packets dropped both ways between relay and broker" => dropped(setup);
    14, "only confirms are dropped" => confirms_dropped(setup);
    15, "TCP reset in the middle of a frame, 20 times" => reset(setup);
    16, "latency above the confirm timeout for 20 seconds" => slow(setup);
};

/// A relay whose way to the broker goes through a proxy, and traffic through it.
async fn flowing(arena: &mut Arena<'_>) -> Result<(Proxy, Flow, Daemon)> {
    let proxy = arena.broker_proxy().await?;
    let (flow, relay) = arena.flowing().await?;
    Ok((proxy, flow, relay))
}

async fn dropped(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let (proxy, mut flow, relay) = flowing(&mut arena).await?;
    let silence = || {
        proxy.set(Mode::Stall);
        Ok(())
    };
    let noticed = nothing_is_marked(&arena, &flow, &relay, silence).await;
    proxy.set(Mode::Forward);
    let over = Instant::now();
    flow.note(format!("noticed after {:.1} s", noticed?.as_secs_f64()));
    flow.recovers(over, Duration::from_secs(30)).await?;
    flow.finish(2 * WINDOW).await
}

/// Times that a worker gave up waiting for a confirm, by the relay's own log.
pub(super) fn timeouts(relay: &Daemon) -> usize {
    let lines = relay.lines();
    lines
        .iter()
        .filter(|line| line.contains("no answer within"))
        .count()
}

async fn confirms_dropped(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    arena.short_confirms();
    let (proxy, mut flow, relay) = flowing(&mut arena).await?;
    let silence = || {
        proxy.set(Mode::StallAnswers);
        Ok(())
    };
    let noticed = nothing_is_marked(&arena, &flow, &relay, silence).await;
    proxy.set(Mode::Forward);
    let over = Instant::now();
    noticed?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    let timeouts = timeouts(&relay);
    flow.note(format!("{timeouts} time-outs"));
    expect(timeouts > 0, || "no confirm was given up".into())?;
    flow.finish(WINDOW * timeouts.max(1)).await
}

async fn reset(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let (proxy, flow, _relay) = flowing(&mut arena).await?;
    for _ in 0..20 {
        let bytes = rand::rng().random_range(100..20_000);
        proxy.set(Mode::ResetAfter(bytes));
        let resets = proxy.resets();
        test_support::eventually("the reset", SOON, async || {
            (proxy.resets() > resets).then_some(())
        })
        .await;
        proxy.set(Mode::Forward);
        flow.steady(30).await?;
    }
    flow.heals(Duration::from_secs(15), 20 * WINDOW).await
}

async fn slow(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.short_confirms();
    let (proxy, mut flow, relay) = flowing(&mut arena).await?;
    proxy.set(Mode::Delay(Duration::from_secs(4)));
    sleep(Duration::from_secs(20)).await;
    proxy.set(Mode::Forward);
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(30)).await?;
    let timeouts = timeouts(&relay);
    flow.note(format!("{timeouts} time-outs in 20 s"));
    // Of each worker one every three seconds, and one more.
    expect((1..=16).contains(&timeouts), || {
        format!("{timeouts} time-outs in 20 s: none, or it does not back off")
    })?;
    flow.finish(WINDOW * timeouts.max(1)).await
}
