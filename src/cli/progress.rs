//! How far a long command is, on a terminal only: a log or a pipe gets no such line.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

pub(super) struct Progress {
    total: i64,
    began: Instant,
    shown: Option<Instant>,
}

/// A person reads no faster.
const OFTEN: Duration = Duration::from_millis(200);

impl Progress {
    /// Whether a person watches: only then is the total worth a count.
    pub(super) fn is_watched() -> bool {
        io::stderr().is_terminal()
    }

    pub(super) fn new(total: i64) -> Self {
        Self {
            total,
            began: Instant::now(),
            shown: None,
        }
    }

    pub(super) fn tell(&mut self, done: i64) {
        if !Self::is_watched() || self.shown.is_some_and(|at| at.elapsed() < OFTEN) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = text(done, self.total, self.began.elapsed());
        // The line is written over; 20 blanks cover what was longer.
        let _ = write!(io::stderr().lock(), "\r{line}{:20}", "");
    }

    pub(super) fn end(&self) {
        if self.shown.is_some() {
            let _ = writeln!(io::stderr().lock());
        }
    }
}

fn text(done: i64, total: i64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = (total - done).max(0) as f64 / rate.max(0.001);
    let left = Duration::from_secs(left.min(1e9) as u64);
    let left = humantime::format_duration(left);
    format!("{done} of {total} messages, {rate:.0} a second, {left} left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_and_the_time_left_follow_from_what_is_done() {
        let after = Duration::from_secs(10);
        assert_eq!(
            text(2000, 5000, after),
            "2000 of 5000 messages, 200 a second, 15s left"
        );
        // More than was counted, and nothing yet.
        assert_eq!(
            text(6000, 5000, after),
            "6000 of 5000 messages, 600 a second, 0s left"
        );
        assert!(text(0, 5000, Duration::ZERO).starts_with("0 of 5000"));
    }
}
