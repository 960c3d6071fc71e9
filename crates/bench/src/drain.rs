//! Draining a backlog, beside the best raw publisher.

use test_support::Result;

use crate::{
    budget::Budget,
    flow,
    outbox::{BODY, Batch, Outbox},
    raw,
    relay::DEFAULTS,
    report::{Measure, Target, Unit},
    stage::Queue,
    statistics::{each, median, median_of},
    workload::Bench,
};

pub async fn run(bench: &Bench, queue: Queue) -> Result<Vec<Measure>> {
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
                let drain = bench.drained(&outbox, &batch, queue, DEFAULTS).await?;
                let heap_only = "n_tup_hot_upd::double precision / greatest(n_tup_upd, 1)";
                Ok((drain, outbox.statistics(heap_only).await?))
            },
        )
        .await?;
    let of = |pick: fn(&flow::Drain) -> f64| median_of(&relays, |(drain, _)| pick(drain));
    let (raw_rates, rates) = (
        each(&raws, |r| r.per_second),
        each(&relays, |(drain, _)| drain.per_second),
    );
    let target = Target::RatioAtLeast(0.85);
    let mut rate = Measure::of_runs(name, Unit::PerSecond, &raw_rates, &rates, target)
        .note(format!(
            "{n} messages over {} keys; raw with {} channels × a window of {}",
            bench.sizes.keys, tuning.channels, tuning.window
        ))
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
    let shares = |budgets: &[Budget], used: &str, own: f64| {
        let of = |pick: fn(&Budget) -> f64| median_of(budgets, pick);
        format!(
            "{used} {own:.1} µs, PostgreSQL {:.1}, broker {:.1}, {:.0} % idle",
            of(|b| b.postgres_us),
            of(|b| b.broker_us),
            of(|b| b.idle) * 100.0
        )
    };
    let (raw_cpu, cpu) = (median_of(&raws, |r| r.cpu_us), of(|d| d.cpu_us));
    let of_raw: Vec<Budget> = raws.iter().map(|r| r.budget).collect();
    let of_relay: Vec<Budget> = relays.iter().map(|(drain, _)| drain.budget).collect();
    rate = rate.note(format!(
        "CPU a message: {}; raw: {}",
        shares(&of_relay, "relay", cpu),
        shares(&of_raw, "publisher", raw_cpu)
    ));
    if queue == Queue::Classic {
        return Ok(vec![rate]);
    }
    rate = rate.then(0.93);
    bench.drain_rate.set(Some(median(&rates)));
    let target = Target::RatioAtMost(1.8);
    let cpu = Measure::new("cpu", Unit::Microseconds, Some(raw_cpu), cpu, target)
        .note("user and system time a message, during drain-quorum");
    Ok(vec![rate, cpu])
}
