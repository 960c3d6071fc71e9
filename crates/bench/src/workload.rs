//! What can be measured, and what every measurement has.

use std::{cell::Cell, time::Instant};

use clap::ValueEnum;
use test_support::Result;

use crate::{sizes::Sizes, stage::Stage};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Drains a backlog to a quorum queue, beside the best raw publisher
    #[value(alias = "relay")]
    DrainQuorum,
    /// The same with a classic queue
    DrainClassic,
    /// The relay's CPU a message beside the raw publisher's
    Cpu,
    /// WAL a message, beside reading and deleting the same rows
    Wal,
    /// Statements a message
    Roundtrips,
    /// Latency under a steady load of 20, 50 and 80 percent of the drain rate
    Steady,
    /// Latency of one message at a time
    #[value(alias = "latency")]
    IdleLatency,
    /// What 16 writers pay for the outbox
    Writers,
    /// Beside a long read-only transaction
    LongReader,
    /// Beside a long history of sent messages
    History,
    /// With a large backlog, beside a small one; memory as well
    #[value(alias = "memory")]
    Backlog,
    /// One key
    HotKey,
    /// One, two, four relays on one outbox
    Relays,
    /// Bodies of 64 KiB and 1 MiB
    LargeBodies,
    /// Half of the keys failing
    FailingKeys,
    /// While retention deletes at full speed
    Retention,
    /// What an idle relay uses
    IdleRelay,
    /// `outboxd status` and /metrics at a large backlog
    Status,
    /// A consumer with the inbox, beside the same one without it
    Inbox,
}

impl Workload {
    /// The group of the workload: workloads of one group share their tables or runs.
    pub fn group(self) -> Self {
        match self {
            Self::Cpu => Self::DrainQuorum,
            Self::History | Self::Retention | Self::Status => Self::Backlog,
            alone => alone,
        }
    }
}

/// What every workload has.
pub struct Bench {
    pub stage: Stage,
    pub sizes: Sizes,
    pub began: Instant,
    /// Of `drain-quorum`, once it is known.
    pub drain_rate: Cell<Option<f64>>,
}

impl Bench {
    /// What runs now, for the person who waits.
    pub fn say(&self, what: &str) {
        let at = self.began.elapsed().as_secs();
        eprintln!("{:>3}:{:02}  {what}", at / 60, at % 60);
    }

    /// Baseline, relay, baseline, relay: the machine may have other work now and none later.
    pub async fn in_turns<A, B>(
        &self,
        name: &str,
        mut baseline: impl AsyncFnMut() -> Result<A>,
        mut relay: impl AsyncFnMut() -> Result<B>,
    ) -> Result<(Vec<A>, Vec<B>)> {
        let (mut baselines, mut relays) = (Vec::new(), Vec::new());
        for run in 1..=self.sizes.runs {
            self.say(&format!("{name}: run {run} of {}", self.sizes.runs));
            baselines.push(baseline().await?);
            relays.push(relay().await?);
        }
        Ok((baselines, relays))
    }
}
