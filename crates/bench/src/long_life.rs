//! An outbox that has lived: a long reader, a long history, a large backlog, retention.

use std::time::{Duration, Instant};

use test_support::Result;

use crate::{
    curve::Curve,
    drain::neighbours,
    flow::{self, Drain},
    outbox::{Batch, Outbox},
    relay::{DEFAULTS, Settings},
    report::{Findings, Measure, Target, Unit},
    stage::Queue,
    statistics::{median_of, percentile},
    workload::{Bench, Workload},
};

/// Times that the state is asked for in a run.
const LOOKS: usize = 10;

/// Retention that has all of the history to delete, and does nothing else in between.
const PRUNING: Settings = &[
    ("OUTBOXD__RETENTION__SENT", "1s"),
    ("OUTBOXD__RETENTION__INTERVAL", "1s"),
];

pub async fn long_reader(bench: &Bench) -> Result<Findings> {
    let (stage, n) = (&bench.stage, bench.sizes.flow);
    let outbox = Outbox::new(stage, "long_reader").await?;
    let batch = Batch::new(n, bench.sizes.keys);
    let flow = async |with_reader: bool| -> Result<Drain> {
        let filled = outbox.fill(&batch).await?;
        stage.queue(Queue::Short).await?;
        let reader = stage.postgres.connect(outbox.database).await?;
        if with_reader {
            // The snapshot is taken by the first statement.
            let begin =
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM outbox.lane";
            reader.batch_execute(begin).await?;
        }
        let drain = flow::drain(stage, &outbox, &filled, DEFAULTS).await?;
        if with_reader {
            reader.batch_execute("COMMIT").await?;
        }
        Ok(drain)
    };
    let (without, with) = bench
        .in_turns(
            "long-reader",
            async || flow(false).await,
            async || flow(true).await,
        )
        .await?;
    let rates = |runs: &[Drain]| -> Vec<f64> { runs.iter().map(|d| d.per_second).collect() };
    // A drain ends slower than it begins without a reader too: the queue is full and drops its oldest, and the last lanes
    // come in smaller batches.
    let trend = |runs: &[Drain]| {
        median_of(runs, |d| {
            let [first, .., last] = d.curve.quarters(n);
            last / first
        })
    };
    let quarters = |runs: &[Drain]| -> String {
        let quarter = |q: usize| format!("{:.0}", median_of(runs, |d| d.curve.quarters(n)[q]));
        [0, 1, 2, 3].map(quarter).join(", ")
    };
    let mut findings = Findings::from(vec![
        Measure::new(
            "long-reader",
            Unit::PerSecond,
            Some(median_of(&without, |d| d.per_second)),
            median_of(&with, |d| d.per_second),
            Target::RatioAtLeast(0.95),
        )
        .note(format!("{n} messages beside a REPEATABLE READ transaction that began before the first of them was sent"))
        .note(neighbours(&rates(&without), &rates(&with))),
        Measure::new(
            "long-reader, last quarter beside the first",
            Unit::Number,
            Some(trend(&without)),
            trend(&with),
            Target::RatioAtLeast(0.95),
        )
        .note(format!(
            "messages/s by quarter: {}; without a reader {}",
            quarters(&with),
            quarters(&without)
        )),
    ]);
    for (name, runs) in [("without", &without), ("beside a long reader", &with)] {
        if let Some(last) = runs.last() {
            findings
                .curves
                .push(Curve::new("long-reader", name, last.curve.rates()));
        }
    }
    Ok(findings)
}

/// Backlog, status, history and retention share one large outbox.
pub async fn large_outbox(bench: &Bench, wanted: &[Workload]) -> Result<Findings> {
    let large = Outbox::new(&bench.stage, "large").await?;
    let small = Outbox::new(&bench.stage, "small").await?;
    let long_life = LongLife {
        bench,
        large,
        small,
    };
    let wants = |workload| wanted.contains(&workload);
    let mut measures = Vec::new();
    let batch = Batch::new(bench.sizes.large, bench.sizes.keys);
    if wants(Workload::Backlog) || wants(Workload::Status) {
        bench.say(&format!("writing a backlog of {} messages", batch.n));
        let filled = long_life.large.fill(&batch).await?;
        if wants(Workload::Status) {
            measures.extend(long_life.status().await?);
        }
        if wants(Workload::Backlog) {
            measures.extend(long_life.backlog().await?);
        }
        if wants(Workload::History) || wants(Workload::Retention) {
            long_life.finish(&filled).await?;
        }
    } else {
        bench.say(&format!("writing a history of {} messages", batch.n));
        long_life.large.clear().await?;
        long_life.large.add_history(&batch).await?;
    }
    if wants(Workload::History) {
        measures.extend(long_life.history().await?);
    }
    if wants(Workload::Retention) {
        measures.extend(long_life.retention().await?);
    }
    Ok(measures.into())
}

struct LongLife<'a> {
    bench: &'a Bench,
    large: Outbox,
    small: Outbox,
}

impl LongLife<'_> {
    fn batch(&self, n: usize) -> Batch {
        Batch::new(n, self.bench.sizes.keys)
    }

    /// The state, asked for at the large backlog.
    async fn status(&self) -> Result<Vec<Measure>> {
        let bench = self.bench;
        let stage = &bench.stage;
        stage.queue(Queue::Short).await?;
        let scans_before = self.large.statistics("seq_scan").await?;
        let (mut commands, mut views) = (Vec::new(), Vec::new());
        for run in 1..=bench.sizes.runs {
            bench.say(&format!("status: run {run} of {}", bench.sizes.runs));
            for _ in 0..LOOKS {
                let began = Instant::now();
                let output = stage.command(&self.large, &["status", "--json"]).await?;
                commands.push(began.elapsed().as_secs_f64() * 1e3);
                let report: serde_json::Value = serde_json::from_slice(&output)
                    .map_err(|e| format!("`outboxd status --json`: {e}"))?;
                let pending = report["pending"].as_f64().unwrap_or(0.0);
                // Derived above 10,000: about.
                if (pending / bench.sizes.large as f64 - 1.0).abs() > 0.2 {
                    return Err(format!(
                        "`outboxd status` says {pending} pending of {}",
                        bench.sizes.large
                    )
                    .into());
                }
                let began = Instant::now();
                self.large
                    .client
                    .query("SELECT * FROM outbox.status", &[])
                    .await?;
                views.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        let scrapes = self.scrapes().await?;
        let scans = self.large.statistics("seq_scan").await? - scans_before;
        let measure = |what: &str, mut values: Vec<f64>| {
            let p50 = percentile(&mut values, 0.5);
            let p99 = percentile(&mut values, 0.99);
            let target = Target::AtMost(50.0);
            Measure::new(what, Unit::Milliseconds, None, p50, target)
                .note(format!("p99 {p99:.1} ms"))
        };
        Ok(vec![
            measure("status, the command", commands).note(format!(
                "at {} pending; the start of the process and its connection are in it",
                bench.sizes.large
            )),
            measure("status, the view alone", views),
            measure("status, a scrape of /metrics", scrapes).note("beside a relay that drains"),
            Measure::new(
                "status, sequential scans of outbox.message",
                Unit::Number,
                None,
                scans,
                Target::AtMost(0.0),
            )
            .note(
                "by the command, the view, and a relay at work, as pg_stat_user_tables counts them",
            ),
        ])
    }

    /// Of a relay that works, in milliseconds.
    async fn scrapes(&self) -> Result<Vec<f64>> {
        let relay = self.bench.stage.relay(&self.large, DEFAULTS).await?;
        let mut took = Vec::new();
        for _ in 0..LOOKS * 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let began = Instant::now();
            relay.scrape().await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        relay.stop().await?;
        Ok(took)
    }

    /// The same number of messages off a small backlog and off a large one.
    async fn backlog(&self) -> Result<Vec<Measure>> {
        let bench = self.bench;
        let (stage, n) = (&bench.stage, bench.sizes.small);
        let slice = n.min(bench.sizes.large / (2 * bench.sizes.runs));
        let (small, large) = bench
            .in_turns(
                "backlog",
                async || {
                    let filled = self.small.fill(&self.batch(n)).await?;
                    stage.queue(Queue::Short).await?;
                    let (drain, _) = flow::part(stage, &self.small, slice, DEFAULTS).await?;
                    // What is left of it, if a slice is less than all.
                    let (_, sent, _) = self.small.sent(&filled).await?;
                    if sent < slice {
                        return Err(format!("{sent} are marked, not {slice}").into());
                    }
                    Ok(drain)
                },
                async || {
                    self.large.client.batch_execute("CHECKPOINT").await?;
                    stage.queue(Queue::Short).await?;
                    Ok(flow::part(stage, &self.large, slice, DEFAULTS).await?.0)
                },
            )
            .await?;
        self.large.none_failed().await?;
        let rates = |runs: &[Drain]| -> Vec<f64> { runs.iter().map(|d| d.per_second).collect() };
        let both = |pick: fn(&Drain) -> f64| (median_of(&small, pick), median_of(&large, pick));
        let (rate, peak) = (both(|d| d.per_second), both(|d| d.peak));
        Ok(vec![
            Measure::new(
                "backlog, rate",
                Unit::PerSecond,
                Some(rate.0),
                rate.1,
                Target::RatioAtLeast(0.9),
            )
            .note(format!(
                "the first {slice} messages of a backlog of {}, beside those of one of {n}",
                bench.sizes.large
            ))
            .note(neighbours(&rates(&small), &rates(&large))),
            Measure::new(
                "backlog, peak memory",
                Unit::Mebibytes,
                Some(peak.0),
                peak.1,
                Target::RatioAtMost(1.2),
            ),
        ])
    }

    /// What is left of the backlog becomes history.
    async fn finish(&self, filled: &crate::outbox::Filled) -> Result<()> {
        let (there, sent, _) = self.large.sent(filled).await?;
        let left = there - sent;
        self.bench.say(&format!("{left} messages become history"));
        self.bench.stage.queue(Queue::Short).await?;
        if left > 0 {
            flow::part(&self.bench.stage, &self.large, left, DEFAULTS).await?;
        }
        self.large.all_sent(filled).await?;
        Ok(())
    }

    async fn history(&self) -> Result<Vec<Measure>> {
        let bench = self.bench;
        let (stage, n) = (&bench.stage, bench.sizes.drain);
        self.large.settle_down().await?;
        let kept = self.rows().await?;
        let batch = self.batch(n);
        let (empty, history) = bench
            .in_turns(
                "history",
                async || {
                    let filled = self.small.fill(&batch).await?;
                    self.drained(&self.small, &filled, DEFAULTS).await
                },
                async || {
                    let filled = self.large.add(&batch).await?;
                    self.large.client.batch_execute("CHECKPOINT").await?;
                    self.drained(&self.large, &filled, DEFAULTS).await
                },
            )
            .await?;
        stage.queued(n.min(100_000)).await?;
        let rates = |runs: &[Drain]| -> Vec<f64> { runs.iter().map(|d| d.per_second).collect() };
        let (empty, history) = (rates(&empty), rates(&history));
        Ok(vec![
            Measure::new(
                "history",
                Unit::PerSecond,
                Some(median_of(&empty, |r| *r)),
                median_of(&history, |r| *r),
                Target::RatioAtLeast(0.95),
            )
            .note(format!("{n} messages after {kept} that are sent and kept, beside an outbox that has no others"))
            .note(neighbours(&empty, &history)),
        ])
    }

    async fn retention(&self) -> Result<Vec<Measure>> {
        let bench = self.bench;
        let batch = self.batch(bench.sizes.drain);
        let run = async |settings: Settings| {
            let filled = self.large.add(&batch).await?;
            self.large.client.batch_execute("CHECKPOINT").await?;
            if settings == PRUNING {
                self.pruned(&filled).await
            } else {
                self.drained(&self.large, &filled, settings).await
            }
        };
        let (off, on) = bench
            .in_turns(
                "retention",
                async || run(DEFAULTS).await,
                async || run(PRUNING).await,
            )
            .await?;
        let rates = |runs: &[Drain]| -> Vec<f64> { runs.iter().map(|d| d.per_second).collect() };
        let deleted = median_of(&on, |d| d.pruned * d.per_second / batch.n as f64);
        let left = self.rows().await?;
        Ok(vec![
            Measure::new(
                "retention",
                Unit::PerSecond,
                Some(median_of(&off, |d| d.per_second)),
                median_of(&on, |d| d.per_second),
                Target::RatioAtLeast(0.95),
            )
            .note(format!(
                "{} messages while {deleted:.0} rows/s of the history are deleted; {left} rows are left at the end",
                batch.n
            ))
            .note(neighbours(&rates(&off), &rates(&on))),
        ])
    }

    async fn drained(
        &self,
        outbox: &Outbox,
        filled: &crate::outbox::Filled,
        settings: Settings,
    ) -> Result<Drain> {
        self.bench.stage.queue(Queue::Short).await?;
        flow::drain(&self.bench.stage, outbox, filled, settings).await
    }

    /// With retention at work its own messages may be deleted as well, once they are sent.
    async fn pruned(&self, filled: &crate::outbox::Filled) -> Result<Drain> {
        let stage = &self.bench.stage;
        stage.queue(Queue::Short).await?;
        let (drain, published) = flow::part(stage, &self.large, filled.n, PRUNING).await?;
        let (there, sent, _) = self.large.sent(filled).await?;
        self.large.none_failed().await?;
        if there != sent || published != filled.n || drain.pruned == 0.0 {
            return Err(format!(
                "{published} of {} are published, {} are unsent, {} rows were pruned meanwhile",
                filled.n,
                there - sent,
                drain.pruned
            )
            .into());
        }
        Ok(drain)
    }

    async fn rows(&self) -> Result<i64> {
        let sql = "SELECT count(*) FROM outbox.message";
        Ok(self.large.client.query_one(sql, &[]).await?.get(0))
    }
}
