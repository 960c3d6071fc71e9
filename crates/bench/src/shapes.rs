//! Backlogs of other shapes: one key, large bodies, failing keys; and several relays.

use std::time::Duration;

use test_support::Result;

use crate::{
    flow::{self, Drain},
    outbox::{BODY, Batch, Outbox},
    raw,
    relay::{DEFAULTS, Settings},
    report::{Measure, Target, Unit},
    stage::{NOWHERE, Queue, SOON},
    statistics::{each, median_of},
    workload::Bench,
};

const PIPELINED: Settings = &[("OUTBOXD__RELAY__ORDERING", "pipelined")];

pub async fn hot_key(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "hot_key").await?;
    let mut measures = Vec::new();
    let one = bench.sizes.hot;
    bench.say("hot-key: the best raw publisher with one channel");
    let many = one * 10;
    let best = raw::best_tuning(stage, Queue::Quorum, many, BODY, raw::PIPELINED).await?;
    for (what, n, settings, tuning) in [
        ("hot-key, strict", one, DEFAULTS, raw::ONE_AT_A_TIME),
        ("hot-key, pipelined", many, PIPELINED, best),
    ] {
        let batch = Batch::new(n, 1);
        let (raws, relays) = bench
            .in_turns(
                what,
                async || raw::publish(stage, Queue::Quorum, n, BODY, tuning).await,
                async || {
                    bench
                        .drained(&outbox, &batch, Queue::Quorum, settings)
                        .await
                },
            )
            .await?;
        let (raw, relay) = (each(&raws, |r| r.per_second), Drain::rates(&relays));
        let target = Target::RatioAtLeast(0.8);
        measures.push(
            Measure::of_runs(what, Unit::PerSecond, &raw, &relay, target).note(format!(
                "{n} messages of one key; raw with one channel and a window of {}",
                tuning.window
            )),
        );
    }
    Ok(measures)
}

pub async fn relays(bench: &Bench) -> Result<Vec<Measure>> {
    let outbox = Outbox::new(&bench.stage, "relays").await?;
    let batch = Batch::new(bench.sizes.drain, bench.sizes.keys);
    let (one, more) = bench
        .in_turns(
            "relays",
            async || shared(bench, &outbox, &batch, 1).await,
            async || {
                let two = shared(bench, &outbox, &batch, 2).await?;
                Ok((two, shared(bench, &outbox, &batch, 4).await?))
            },
        )
        .await?;
    let (two, four): (Vec<Drain>, Vec<Drain>) = more.into_iter().unzip();
    let measure = |what, runs: &[Drain], target| {
        let (one_rates, rates) = (Drain::rates(&one), Drain::rates(runs));
        Measure::of_runs(what, Unit::PerSecond, &one_rates, &rates, target).note(format!(
            "CPU a message {:.1} µs, of one relay {:.1} µs",
            median_of(runs, |d| d.cpu_us),
            median_of(&one, |d| d.cpu_us)
        ))
    };
    Ok(vec![
        measure("relays, 2 beside 1", &two, Target::None),
        measure("relays, 4 beside 1", &four, Target::RatioAtLeast(0.95)),
    ])
}

/// Relays that work already share a backlog: their start is no part of it.
async fn shared(bench: &Bench, outbox: &Outbox, batch: &Batch, relays: usize) -> Result<Drain> {
    let stage = &bench.stage;
    outbox.clear().await?;
    outbox.settle_down().await?;
    stage.queue(Queue::Quorum).await?;
    let mut running = Vec::new();
    while running.len() < relays {
        running.push(stage.relay(outbox, DEFAULTS).await?);
    }
    let drain = flow::burst(stage, outbox, running, &[batch]).await?;
    outbox.none_failed().await?;
    stage.queued(batch.n).await?;
    Ok(drain)
}

pub async fn large_bodies(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "large_bodies").await?;
    let mut measures = Vec::new();
    for (what, body, n) in [
        ("large-bodies, 64 KiB", 64 << 10, bench.sizes.bodies),
        ("large-bodies, 1 MiB", 1 << 20, bench.sizes.bodies / 24),
    ] {
        bench.say(&format!("{what}: the best raw publisher"));
        let batch = Batch {
            body,
            ..Batch::new(n, bench.sizes.keys)
        };
        // Enough already to fill every batch of every worker.
        let part = Batch { n: n / 2, ..batch };
        let queue = Queue::Quorum;
        let tuning = raw::best_tuning(stage, queue, n, body, raw::LARGE_SWEEP).await?;
        let (raws, relays) = bench
            .in_turns(
                what,
                async || raw::publish(stage, queue, n, body, tuning).await,
                async || {
                    let part = bench.drained(&outbox, &part, queue, DEFAULTS).await?;
                    let all = bench.drained(&outbox, &batch, queue, DEFAULTS).await?;
                    Ok((part, all))
                },
            )
            .await?;
        let (parts, relays): (Vec<Drain>, Vec<Drain>) = relays.into_iter().unzip();
        let (raw, relay) = (each(&raws, |r| r.per_second), Drain::rates(&relays));
        let (least, most) = (Target::RatioAtLeast(0.85), Target::RatioAtMost(1.2));
        measures.push(
            Measure::of_runs(what, Unit::PerSecond, &raw, &relay, least).note(format!(
                "{n} messages; raw with {} channels × a window of {}",
                tuning.channels, tuning.window
            )),
        );
        let (few, all) = (each(&parts, |d| d.peak), each(&relays, |d| d.peak));
        let what = format!("{what}: peak memory");
        measures.push(
            Measure::of_runs(what, Unit::Mebibytes, &few, &all, most).note(format!(
                "of {n} messages beside {}: it must not grow with their number",
                part.n
            )),
        );
    }
    Ok(measures)
}

/// Half of the keys go to an exchange that no queue is bound to: each attempt comes back, and backs off.
pub async fn failing_keys(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "failing_keys").await?;
    let healthy = Batch::new(bench.sizes.drain / 2, bench.sizes.keys / 2);
    let failing = Batch {
        aggregate_type: "failing",
        exchange: Some(NOWHERE),
        ..healthy
    };
    let (alone, beside) = bench
        .in_turns(
            "failing-keys",
            async || flowing(bench, &outbox, &healthy, None).await,
            async || {
                let filed =
                    flowing(bench, &outbox, &healthy, Some((&failing, Filed::Before))).await?;
                let mixed =
                    flowing(bench, &outbox, &healthy, Some((&failing, Filed::Meanwhile))).await?;
                Ok((filed, mixed))
            },
        )
        .await?;
    let (filed, mixed): (Vec<f64>, Vec<f64>) = beside.into_iter().unzip();
    let measure = |what, rates: &[f64], target| {
        Measure::of_runs(what, Unit::PerSecond, &alone, rates, target)
    };
    Ok(vec![
        measure("failing-keys, backing off", &filed, Target::RatioAtLeast(0.9)).note(format!(
            "{} healthy messages while as many of {} other keys wait behind their failing heads, which are tried again and again",
            healthy.n, failing.keys
        )),
        measure("failing-keys, arriving at the same time", &mixed, Target::None).note(
            "the failing half comes with the healthy one: it is read, tried and filed meanwhile",
        ),
    ])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filed {
    Before,
    Meanwhile,
}

/// Healthy messages a second, from their commit to the mark of the last.
async fn flowing(
    bench: &Bench,
    outbox: &Outbox,
    healthy: &Batch,
    failing: Option<(&Batch, Filed)>,
) -> Result<f64> {
    let stage = &bench.stage;
    outbox.clear().await?;
    outbox.settle_down().await?;
    stage.queue(Queue::Quorum).await?;
    let relay = stage.relay(outbox, DEFAULTS).await?;
    if let Some((failing, Filed::Before)) = failing {
        outbox.add(failing).await?;
        let filed = format!("SELECT count(*) = {} FROM outbox.waiting", failing.n);
        let patience = SOON * 2 + Duration::from_secs(failing.n as u64 / 200);
        outbox
            .until("the failing messages wait", &filed, patience)
            .await?;
    }
    let batches: &[&Batch] = match failing {
        Some((failing, Filed::Meanwhile)) => &[failing, healthy],
        _ => &[healthy],
    };
    let drain = flow::burst(stage, outbox, vec![relay], batches).await?;
    stage.queued(healthy.n).await?;
    let no_dead = "SELECT NOT EXISTS (SELECT FROM outbox.dead)";
    outbox
        .until("no message is dead", no_dead, Duration::ZERO)
        .await?;
    Ok(drain.per_second)
}
