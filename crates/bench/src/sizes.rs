//! How large each workload is.

use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sizes {
    pub scale: f64,
    pub runs: usize,
    /// Messages of a backlog that is drained from its beginning to its end.
    pub drain: usize,
    pub keys: usize,
    /// Messages whose WAL, statements, and so on are counted.
    pub counted: usize,
    /// Messages that flow beside a long reader.
    pub flow: usize,
    /// Messages sent and kept, and messages pending, in a large outbox; keys in a large inbox.
    pub large: usize,
    /// Messages pending in a small outbox.
    pub small: usize,
    /// Messages of one hot key, one at a time; ten times as many when pipelined.
    pub hot: usize,
    /// Bodies of 64 KiB; of 1 MiB a twenty-fourth as many. Half of them last longer than the memory of a relay grows.
    pub bodies: usize,
    /// Length of a steady load.
    pub steady: Duration,
    /// Length of one run of the writers.
    pub writers: Duration,
    /// Length of one look at an idle relay.
    pub idle: Duration,
    /// Events of a run on an idle system.
    pub events: usize,
    /// Messages that one consumer reads, repetitions included.
    pub inbox: usize,
}

impl Sizes {
    /// `scale` is of the counts in millions, and of the long stretches of time.
    pub fn full(scale: f64, runs: usize) -> Self {
        let scaled = |n: usize| ((n as f64 * scale) as usize).max(100_000);
        let seconds = |s: f64| Duration::from_secs_f64((s * scale).clamp(s / 5.0, s));
        Self {
            scale,
            runs,
            drain: 200_000,
            keys: 10_000,
            counted: 50_000,
            flow: scaled(2_000_000),
            large: scaled(10_000_000),
            small: 100_000,
            hot: 5_000,
            bodies: 32_000,
            steady: seconds(60.0),
            writers: seconds(20.0),
            idle: seconds(30.0),
            events: 100,
            inbox: 20_000,
        }
    }

    /// To see that everything works; its numbers mean nothing.
    pub fn quick() -> Self {
        Self {
            scale: 0.0,
            runs: 1,
            drain: 4_000,
            keys: 400,
            counted: 2_000,
            flow: 8_000,
            large: 60_000,
            small: 2_000,
            hot: 100,
            bodies: 240,
            steady: Duration::from_secs(2),
            writers: Duration::from_secs(1),
            idle: Duration::from_secs(3),
            events: 5,
            inbox: 1_000,
        }
    }
}
