//! Where the machine's time went while messages flowed.

use std::time::Instant;

use test_support::Result;

use crate::{process::idle_seconds, stage::Stage};

/// Microseconds of a core for each message, and how much of the machine was left over.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub postgres_us: f64,
    pub broker_us: f64,
    /// Share of all cores.
    pub idle: f64,
}

/// What was used until now.
pub struct Meter {
    postgres: f64,
    broker: f64,
    idle: f64,
    at: Instant,
}

impl Meter {
    pub fn start(stage: &Stage) -> Result<Self> {
        Ok(Self {
            postgres: stage.server_cpu_seconds()?,
            broker: stage.broker_cpu_seconds()?,
            idle: idle_seconds()?,
            at: Instant::now(),
        })
    }

    pub fn stop(&self, stage: &Stage, messages: usize) -> Result<Budget> {
        let each = |seconds: f64| seconds * 1e6 / messages as f64;
        let cores = std::thread::available_parallelism()?.get() as f64;
        let idle = idle_seconds()? - self.idle;
        Ok(Budget {
            postgres_us: each(stage.server_cpu_seconds()? - self.postgres),
            broker_us: each(stage.broker_cpu_seconds()? - self.broker),
            idle: idle / self.at.elapsed().as_secs_f64() / cores,
        })
    }
}
