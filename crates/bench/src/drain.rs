//! Draining a backlog, beside the best raw publisher.

use test_support::Result;

use crate::{
    budget::Budget,
    flow,
    outbox::{BODY, Batch, Outbox},
    raw,
    relay::DEFAULTS,
    report::{Findings, Measure, Target, Unit},
    stage::Queue,
    statistics::median_of,
    workload::Bench,
};

pub async fn run(bench: &Bench, queue: Queue) -> Result<Findings> {
    let (name, database) = match queue {
        Queue::Classic => ("drain-classic", "drain_classic"),
        Queue::Quorum | Queue::Short => ("drain-quorum", "drain_quorum"),
    };
    let (stage, n) = (&bench.stage, bench.sizes.drain);
    let outbox = Outbox::new(stage, database).await?;
    let batch = Batch::new(n, bench.sizes.keys);
    bench.say(&format!("{name}: the best raw publisher"));
    let tuning = raw::best_tuning(stage, queue, n, BODY, raw::SWEEP).await?;
    let (raws, relays) = bench
        .in_turns(
            name,
            async || raw::publish(stage, queue, n, BODY, tuning).await,
            async || {
                let filled = outbox.fill(&batch).await?;
                stage.queue(queue).await?;
                let drain = flow::drain(stage, &outbox, &filled, DEFAULTS).await?;
                stage.queued(n).await?;
                let heap_only = "n_tup_hot_upd::double precision / greatest(n_tup_upd, 1)";
                Ok((drain, outbox.statistics(heap_only).await?))
            },
        )
        .await?;
    let of = |pick: fn(&flow::Drain) -> f64| median_of(&relays, |(drain, _)| pick(drain));
    let (raw, relay) = (median_of(&raws, |r| r.per_second), of(|d| d.per_second));
    let raw_rates: Vec<f64> = raws.iter().map(|r| r.per_second).collect();
    let rates: Vec<f64> = relays.iter().map(|(d, _)| d.per_second).collect();
    let target = Target::RatioAtLeast(0.85);
    let mut rate = Measure::new(name, Unit::PerSecond, Some(raw), relay, target)
        .note(format!(
            "{n} messages over {} keys; raw with {} channels × a window of {}",
            bench.sizes.keys, tuning.channels, tuning.window
        ))
        .note(neighbours(&raw_rates, &rates))
        .note(format!(
            "a batch of {:.0}: claim {:.1} ms, publish and confirm {:.1} ms, settle {:.1} ms; {:.0} % of the marks heap-only; \
             peak memory {:.0} MiB",
            of(|d| d.batch),
            of(|d| d.claim_ms),
            of(|d| d.confirm_ms),
            of(|d| d.settle_ms),
            median_of(&relays, |(_, heap_only)| *heap_only) * 100.0,
            of(|d| d.peak) / f64::from(1 << 20),
        ));
    let shares = |used: &str, own: f64, of: &dyn Fn(fn(&Budget) -> f64) -> f64| {
        format!(
            "{used} {own:.1} µs, PostgreSQL {:.1}, broker {:.1}, {:.0} % idle",
            of(|b| b.postgres_us),
            of(|b| b.broker_us),
            of(|b| b.idle) * 100.0
        )
    };
    let (raw_cpu, cpu) = (median_of(&raws, |r| r.cpu_us), of(|d| d.cpu_us));
    let of_raw = |pick: fn(&Budget) -> f64| median_of(&raws, |r| pick(&r.budget));
    let of_relay = |pick: fn(&Budget) -> f64| median_of(&relays, |(d, _)| pick(&d.budget));
    rate = rate.note(format!(
        "CPU a message: {}; raw: {}",
        shares("relay", cpu, &of_relay),
        shares("publisher", raw_cpu, &of_raw)
    ));
    if queue == Queue::Classic {
        return Ok(vec![rate].into());
    }
    rate = rate.then(0.93);
    bench.drain_rate.set(Some(relay));
    let target = Target::RatioAtMost(1.8);
    let cpu = Measure::new("cpu", Unit::Microseconds, Some(raw_cpu), cpu, target)
        .note("user and system time a message, during drain-quorum");
    Ok(vec![rate, cpu].into())
}

/// How far the ratios of single runs lie apart.
pub fn neighbours(baseline: &[f64], relay: &[f64]) -> String {
    let mut ratios: Vec<f64> = relay.iter().zip(baseline).map(|(r, b)| r / b).collect();
    ratios.sort_by(f64::total_cmp);
    match (ratios.first(), ratios.last()) {
        (Some(least), Some(most)) => {
            format!("ratios of neighbouring runs: {least:.2} to {most:.2}")
        }
        _ => String::new(),
    }
}
