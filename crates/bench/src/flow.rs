//! Messages flowing through relays: how fast, and at what cost.

use std::time::{Duration, Instant};

use test_support::Result;

use crate::{
    budget::{Budget, Meter},
    outbox::{Batch, Filled, Outbox},
    relay::{Relay, Settings},
    stage::{Queue, SOON, Stage},
    statistics::each,
    workload::Bench,
};

/// Rarely enough to take no part in what is measured.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// What became of a backlog.
pub struct Drain {
    pub per_second: f64,
    /// User and system time of the relays, for each message.
    pub cpu_us: f64,
    /// Most memory that one relay has held, in bytes.
    pub peak: f64,
    pub batch: f64,
    pub claim_ms: f64,
    pub confirm_ms: f64,
    pub settle_ms: f64,
    pub curve: Curve,
    pub pruned: f64,
    pub budget: Budget,
}

impl Drain {
    /// The rate of each run.
    pub fn rates(runs: &[Self]) -> Vec<f64> {
        each(runs, |drain| drain.per_second)
    }
}

/// Seconds since the start, and messages published by then.
#[derive(Default, Clone)]
pub struct Curve(Vec<(f64, f64)>);

impl Curve {
    pub fn published(&self) -> usize {
        self.0.last().map_or(0.0, |(_, n)| *n) as usize
    }

    /// When so many were published, between two samples.
    pub fn time_of(&self, published: f64) -> f64 {
        let mut before = (0.0, 0.0);
        for &(at, n) in &self.0 {
            if n >= published && n > before.1 {
                let part = (published - before.1) / (n - before.1);
                return before.0 + (at - before.0) * part;
            }
            before = (at, n);
        }
        f64::NAN
    }

    /// Messages a second in each quarter of `n`.
    pub fn quarters(&self, n: usize) -> [f64; 4] {
        let quarter = n as f64 / 4.0;
        [0.0, 1.0, 2.0, 3.0].map(|q| {
            let from = if q == 0.0 {
                self.0
                    .iter()
                    .rev()
                    .find(|(_, n)| *n == 0.0)
                    .map_or(0.0, |(at, _)| *at)
            } else {
                self.time_of(q * quarter)
            };
            quarter / (self.time_of((q + 1.0) * quarter) - from)
        })
    }
}

impl Bench {
    /// Fills an outbox, and drains it.
    pub async fn drained(
        &self,
        outbox: &Outbox,
        batch: &Batch,
        queue: Queue,
        settings: Settings,
    ) -> Result<Drain> {
        let filled = outbox.fill(batch).await?;
        self.drain(outbox, &filled, queue, settings).await
    }

    /// Drains the outbox, and finds each of its messages in the queue once.
    pub async fn drain(
        &self,
        outbox: &Outbox,
        filled: &Filled,
        queue: Queue,
        settings: Settings,
    ) -> Result<Drain> {
        self.stage.queue(queue).await?;
        let drain = drain(&self.stage, outbox, filled, settings).await?;
        self.stage.queued(queue.kept(filled.n)).await?;
        Ok(drain)
    }
}

/// A relay works off what was filled, to the end, each message marked once.
pub async fn drain(
    stage: &Stage,
    outbox: &Outbox,
    filled: &Filled,
    settings: Settings,
) -> Result<Drain> {
    let (began, drain) = run(stage, outbox, filled.n, settings).await?;
    let took = outbox.all_sent(filled).await? - began;
    Ok(Drain {
        per_second: filled.n as f64 / took,
        ..drain
    })
}

/// One relay publishes `n` and what it had claimed by then, of a backlog that may be far larger.
pub async fn part(stage: &Stage, outbox: &Outbox, n: usize, settings: Settings) -> Result<Drain> {
    let (_, drain) = run(stage, outbox, n, settings).await?;
    let per_second = n as f64 / drain.curve.time_of(n as f64);
    Ok(Drain {
        per_second,
        ..drain
    })
}

/// Relays that work already meet batches that one transaction commits, and end. Measured is the last batch alone, the only
/// one whose messages arrive, from its commit to its last mark.
pub async fn burst(
    stage: &Stage,
    outbox: &Outbox,
    relays: Vec<Relay>,
    batches: &[&Batch],
) -> Result<Drain> {
    outbox.client.batch_execute("CHECKPOINT; BEGIN").await?;
    let mut filled = None;
    for batch in batches {
        filled = Some(outbox.add(batch).await?);
    }
    let filled = filled.ok_or("a burst of nothing")?;
    let meter = Meter::start(stage)?;
    let mut used = 0.0;
    for relay in &relays {
        used += relay.cpu_seconds()?;
    }
    outbox.client.batch_execute("COMMIT").await?;
    let (began, clock) = (outbox.now().await?, Instant::now());
    let drain = observe(stage, relays, filled.n, clock, meter).await?;
    let took = outbox.last_mark(&filled).await? - began;
    Ok(Drain {
        per_second: filled.n as f64 / took,
        cpu_us: drain.cpu_us - used * 1e6 / filled.n as f64,
        ..drain
    })
}

async fn run(stage: &Stage, outbox: &Outbox, n: usize, settings: Settings) -> Result<(f64, Drain)> {
    let meter = Meter::start(stage)?;
    let relay = stage.relay(outbox, settings).await?;
    let (began, clock) = (outbox.now().await?, Instant::now());
    let drain = observe(stage, vec![relay], n, clock, meter).await?;
    Ok((began, drain))
}

/// Until `n` are published; then the relays end.
async fn observe(
    stage: &Stage,
    running: Vec<Relay>,
    n: usize,
    clock: Instant,
    meter: Meter,
) -> Result<Drain> {
    let curve = published(&running, n, clock).await?;
    let budget = meter.stop(stage, n)?;
    let scrape = running
        .first()
        .ok_or("no relay to observe")?
        .scrape()
        .await?;
    let mut drain = Drain {
        per_second: f64::NAN,
        cpu_us: 0.0,
        peak: 0.0,
        batch: scrape.mean("outbox_batch_size"),
        claim_ms: scrape.mean("outbox_claim_seconds") * 1e3,
        confirm_ms: scrape.mean("outbox_confirm_seconds") * 1e3,
        settle_ms: scrape.mean("outbox_settle_seconds") * 1e3,
        curve,
        pruned: scrape.value("outbox_pruned_total"),
        budget,
    };
    for relay in &running {
        drain.cpu_us += relay.cpu_seconds()? * 1e6 / n as f64;
        drain.peak = drain.peak.max(relay.peak_memory()?);
    }
    for relay in running {
        relay.stop().await?;
    }
    Ok(drain)
}

/// Waits until the relays have published `n`.
async fn published(relays: &[Relay], n: usize, began: Instant) -> Result<Curve> {
    // A tenth of what a slow machine does.
    let patience = SOON * 2 + Duration::from_secs(n as u64 / 200);
    let mut curve = Curve::default();
    loop {
        let mut published = 0.0;
        for relay in relays {
            published += relay.scrape().await?.published();
        }
        curve.0.push((began.elapsed().as_secs_f64(), published));
        if published >= n as f64 {
            return Ok(curve);
        }
        if began.elapsed() > patience {
            return Err(format!("{published} of {n} messages are published after {patience:?}; outbox.waiting and outbox.dead may say why").into());
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_measured_between_samples() {
        // Nothing for a second, then 100 a second, then 50.
        let curve = Curve(vec![
            (0.5, 0.0),
            (1.0, 0.0),
            (2.0, 100.0),
            (3.0, 200.0),
            (7.0, 400.0),
        ]);
        assert_eq!(curve.quarters(400), [100.0, 100.0, 50.0, 50.0]);
        assert_eq!(curve.time_of(150.0), 2.5);
        assert!(curve.time_of(401.0).is_nan());
    }
}
