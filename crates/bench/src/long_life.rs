//! An outbox that has lived: a long reader, a long history, a large backlog, retention.

use std::time::{Duration, Instant};

use test_support::Result;

use crate::{
    flow::{self, Drain},
    outbox::{Batch, Filled, Outbox},
    relay::{DEFAULTS, Settings},
    report::{Measure, Target, Unit},
    stage::Queue,
    statistics::{each, median_of, percentile},
    workload::{Bench, Workload},
};

/// Times that the state is asked for in a run.
const LOOKS: usize = 10;

/// Retention that has all of the history to delete, and does nothing else in between.
const PRUNING: Settings = &[
    ("OUTBOXD__RETENTION__SENT", "1s"),
    ("OUTBOXD__RETENTION__INTERVAL", "1s"),
];

pub async fn long_reader(bench: &Bench) -> Result<Vec<Measure>> {
    let (stage, n) = (&bench.stage, bench.sizes.flow);
    let outbox = Outbox::new(stage, "long_reader").await?;
    let batch = Batch::new(n, bench.sizes.keys);
    let flow = async |with_reader: bool| -> Result<Drain> {
        let reader = stage.postgres.connect(outbox.database).await?;
        let filled = outbox.fill(&batch).await?;
        if with_reader {
            // The snapshot is taken by the first statement.
            let begin =
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM outbox.lane";
            reader.batch_execute(begin).await?;
        }
        let drain = bench
            .drain(&outbox, &filled, Queue::Short, DEFAULTS)
            .await?;
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
    let (least, unit) = (Target::RatioAtLeast(0.95), Unit::PerSecond);
    let (trends, rates) = ((trend(&without), trend(&with)), Drain::rates);
    let last = "long-reader, last quarter beside the first";
    Ok(vec![
        Measure::of_runs("long-reader", unit, &rates(&without), &rates(&with), least)
            .note(format!("{n} messages beside a REPEATABLE READ transaction that began before the first of them was sent")),
        Measure::new(last, Unit::Number, Some(trends.0), trends.1, least).note(format!(
            "messages/s by quarter: {}; without a reader {}",
            quarters(&with),
            quarters(&without)
        )),
    ])
}

/// Backlog, status, history and retention share one large outbox.
pub async fn large_outbox(bench: &Bench, wanted: &[Workload]) -> Result<Vec<Measure>> {
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
    Ok(measures)
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
                let report: serde_json::Value = serde_json::from_str(&output)
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
        let measure = |what: &str, values: &[f64]| {
            let (p50, p99) = (percentile(values, 0.5), percentile(values, 0.99));
            let target = Target::AtMost(50.0);
            Measure::new(what, Unit::Milliseconds, None, p50, target)
                .note(format!("p99 {p99:.1} ms"))
        };
        Ok(vec![
            measure("status, the command", &commands).note(format!(
                "at {} pending; the start of the process and its connection are in it",
                bench.sizes.large
            )),
            measure("status, the view alone", &views),
            measure("status, a scrape of /metrics", &scrapes).note("beside a relay that drains"),
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
                    let drain = flow::part(stage, &self.small, slice, DEFAULTS).await?;
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
                    flow::part(stage, &self.large, slice, DEFAULTS).await
                },
            )
            .await?;
        self.large.none_failed().await?;
        let (least, most) = (Target::RatioAtLeast(0.9), Target::RatioAtMost(1.2));
        let (few, many) = (Drain::rates(&small), Drain::rates(&large));
        let (few_peak, many_peak) = (each(&small, |d| d.peak), each(&large, |d| d.peak));
        let (rate, peak) = ("backlog, rate", "backlog, peak memory");
        Ok(vec![
            Measure::of_runs(rate, Unit::PerSecond, &few, &many, least).note(format!(
                "the first {slice} messages of a backlog of {}, beside those of one of {n}",
                bench.sizes.large
            )),
            Measure::of_runs(peak, Unit::Mebibytes, &few_peak, &many_peak, most),
        ])
    }

    /// What is left of the backlog becomes history.
    async fn finish(&self, filled: &Filled) -> Result<()> {
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
        let n = bench.sizes.drain;
        self.large.settle_down().await?;
        let kept = self.rows().await?;
        let batch = self.batch(n);
        let (empty, history) = bench
            .in_turns(
                "history",
                async || {
                    bench
                        .drained(&self.small, &batch, Queue::Short, DEFAULTS)
                        .await
                },
                async || self.drained_beside(&batch).await,
            )
            .await?;
        let (empty, history) = (Drain::rates(&empty), Drain::rates(&history));
        let least = Target::RatioAtLeast(0.95);
        Ok(vec![
            Measure::of_runs("history", Unit::PerSecond, &empty, &history, least)
                .note(format!("{n} messages after {kept} that are sent and kept, beside an outbox that has no others")),
        ])
    }

    /// Beside the backlog of the large outbox.
    async fn drained_beside(&self, batch: &Batch) -> Result<Drain> {
        let filled = self.large.add(batch).await?;
        self.large.client.batch_execute("CHECKPOINT").await?;
        let queue = Queue::Short;
        self.bench
            .drain(&self.large, &filled, queue, DEFAULTS)
            .await
    }

    async fn retention(&self) -> Result<Vec<Measure>> {
        let batch = self.batch(self.bench.sizes.drain);
        let (off, on) = self
            .bench
            .in_turns(
                "retention",
                async || self.drained_beside(&batch).await,
                async || self.pruned(&batch).await,
            )
            .await?;
        let deleted = median_of(&on, |d| d.pruned * d.per_second / batch.n as f64);
        let left = self.rows().await?;
        let (off, on) = (Drain::rates(&off), Drain::rates(&on));
        let least = Target::RatioAtLeast(0.95);
        Ok(vec![
            Measure::of_runs("retention", Unit::PerSecond, &off, &on, least).note(format!(
                "{} messages while {deleted:.0} rows/s of the history are deleted; {left} rows are left at the end",
                batch.n
            )),
        ])
    }

    /// With retention at work its own messages may be deleted as well, once they are sent.
    async fn pruned(&self, batch: &Batch) -> Result<Drain> {
        let stage = &self.bench.stage;
        let filled = self.large.add(batch).await?;
        self.large.client.batch_execute("CHECKPOINT").await?;
        stage.queue(Queue::Short).await?;
        let drain = flow::part(stage, &self.large, filled.n, PRUNING).await?;
        let published = drain.curve.published();
        let (there, sent, _) = self.large.sent(&filled).await?;
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
