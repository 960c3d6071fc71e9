//! How long a claim may publish. PostgreSQL ends a transaction that is idle for too long, and while the relay publishes, the
//! claim's transaction is idle.

use std::time::{Duration, Instant};

/// The part of the server's idle limit in which a claim publishes. The rest is for the settle's first statement.
const SHARE: f64 = 0.8;

/// After this time a claim publishes no further wave: a long chain of one key must not keep the lane.
const WAVES_FOR: Duration = Duration::from_secs(1);

/// Longest time that a claim publishes, from the end of its last statement. A wave must fit into it, so
/// `relay.confirm_timeout` is below it.
pub fn publishing_time(idle_limit: Duration) -> Duration {
    idle_limit.mul_f64(SHARE)
}

/// The time of one claim. The server counts its idle limit from the claim's last statement, and so does this: slow reads cost
/// a claim none of its time.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    confirm_timeout: Duration,
    first_wave: Option<Instant>,
}

impl Deadline {
    pub fn new(last_statement: Instant, idle_limit: Duration, confirm_timeout: Duration) -> Self {
        Self {
            at: last_statement + publishing_time(idle_limit),
            confirm_timeout,
            first_wave: None,
        }
    }

    pub fn at(&self) -> Instant {
        self.at
    }

    /// Whether a wave may begin. A later wave begins only with the whole `confirm_timeout` left: a wave that the deadline cuts
    /// off costs the connection to the broker, and is published again.
    pub fn begins(&mut self, now: Instant) -> bool {
        match self.first_wave {
            None if now >= self.at => false,
            None => {
                self.first_wave = Some(now);
                true
            }
            Some(first) => {
                now.duration_since(first) <= WAVES_FOR && now + self.confirm_timeout <= self.at
            }
        }
    }

    /// No wave began: between the claim's last statement and now, this process stood still.
    pub fn was_missed(&self) -> bool {
        self.first_wave.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    #[expect(
        clippy::disallowed_methods,
        reason = "only now() makes an Instant; the tests move it themselves"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn the_first_wave_begins_at_any_time_before_the_deadline() {
        let start = start();
        for (after, begins) in [(0.0, true), (7.9, true), (8.0, false), (11.0, false)] {
            let mut deadline = Deadline::new(start, IDLE, seconds(5.0));
            assert_eq!(deadline.begins(start + seconds(after)), begins, "{after}");
            assert_eq!(deadline.was_missed(), !begins);
        }
    }

    #[test]
    fn a_later_wave_begins_soon_and_with_time_for_all_its_confirms() {
        let start = start();
        for (first, later, begins) in [
            (0.0, 1.0, true),
            (0.0, 1.1, false),
            (2.0, 3.0, true),
            (2.5, 3.1, false),
        ] {
            let mut deadline = Deadline::new(start, IDLE, seconds(5.0));
            assert!(deadline.begins(start + seconds(first)));
            let begun = deadline.begins(start + seconds(later));
            assert_eq!(begun, begins, "{first} {later}");
            assert!(!deadline.was_missed());
        }
    }
}
