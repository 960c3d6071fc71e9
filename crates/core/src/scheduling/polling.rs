//! When the scout polls again, sleeps and tidies marks.
//!
//! Polling is the truth. While there is traffic, the scout polls every few milliseconds. Without traffic each pause is
//! twice as long as the one before, up to `relay.poll_interval`; then the relay sleeps until a producer's commit notifies
//! it, and polls at that interval.

use std::time::{Duration, Instant};

use super::tuning::Tuning;

/// What a step of tidying achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tidied {
    /// No mark lags.
    Done,
    Partly,
    /// A writing transaction that is still open, or another relay, prevents it.
    Held,
}

/// Until when the scout waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub length: Duration,
    /// A notification does not end the pause before this: anybody who may connect may notify, and must not make the relay
    /// poll more often than work does.
    pub not_before: Instant,
}

/// The scout's polls on one connection.
#[derive(Debug)]
pub struct Polling {
    tuning: Tuning,
    poll_interval: Duration,
    /// A notification can wake the relay.
    listens: bool,
    pause: Duration,
    idle_since: Instant,
    began: Instant,
    /// The durations of the last two queries.
    queries: [Duration; 2],
    /// When the next step of tidying is due. `None`: no mark lags.
    tidy_due: Option<Instant>,
    /// The end of the last round.
    tidied_at: Option<Instant>,
}

impl Polling {
    pub fn new(tuning: Tuning, poll_interval: Duration, listens: bool, now: Instant) -> Self {
        Self {
            tuning,
            poll_interval,
            listens,
            pause: tuning.shortest_pause,
            idle_since: now,
            began: now,
            queries: [Duration::ZERO; 2],
            tidy_due: Some(now + tuning.tidy_after_idle),
            tidied_at: None,
        }
    }

    /// A poll begins.
    pub fn begin(&mut self, now: Instant) {
        self.began = now;
    }

    /// The poll's query took so long.
    pub fn queried(&mut self, took: Duration) {
        self.queries = [self.queries[1], took];
    }

    /// A poll ended. `traffic`: it found new work, or a worker or another relay works. Lanes that keep their work, because
    /// the broker is away, are no traffic.
    pub fn polled(&mut self, traffic: bool, now: Instant) {
        if traffic {
            self.hurry();
            self.idle_since = now;
            let after_idle = now + self.tuning.tidy_after_idle;
            let after_round = self.tidied_at.map(|at| at + self.tuning.tidy_round_every);
            self.tidy_due = Some(after_round.map_or(after_idle, |at| at.max(after_idle)));
        } else {
            self.pause = (self.pause * 2).min(self.poll_interval);
        }
    }

    /// A notification came.
    pub fn notified(&mut self) {
        self.hurry();
    }

    fn hurry(&mut self) {
        self.pause = self.tuning.shortest_pause.min(self.poll_interval);
    }

    /// Whether the relay may sleep, or go on sleeping. `found`: the poll found work; `quiet`: no lane has work or a worker.
    pub fn may_sleep(&self, asleep: bool, found: bool, quiet: bool, now: Instant) -> bool {
        let idle = now.duration_since(self.idle_since) >= self.tuning.sleep_after_idle;
        self.listens && !found && (asleep || idle && quiet)
    }

    pub fn is_tidy_due(&self, now: Instant) -> bool {
        self.tidy_due.is_some_and(|due| now >= due)
    }

    /// A step of tidying ended.
    pub fn tidied(&mut self, step: Tidied, now: Instant) {
        self.tidy_due = match step {
            Tidied::Partly => Some(now + self.tuning.tidy_step_every),
            Tidied::Held => Some(now + self.tuning.tidy_round_every),
            Tidied::Done => {
                self.tidied_at = Some(now);
                None
            }
        };
    }

    /// The pause before the next poll. `due_in`: when the next waiting message falls due.
    pub fn pause(&self, asleep: bool, due_in: Option<Duration>, now: Instant) -> Pause {
        let longest = if asleep || !self.listens {
            self.poll_interval
        } else {
            self.tuning.longest_pause_awake.min(self.poll_interval)
        };
        let idle = if asleep { longest } else { self.pause };
        let due_in = due_in.map(|due| due.max(Duration::from_millis(1)));
        let tidy_in = self.tidy_due.map(|due| due.saturating_duration_since(now));
        let wanted = [Some(longest), due_in, tidy_in]
            .into_iter()
            .flatten()
            .fold(idle, Duration::min);
        let shortest = self.shortest_pause();
        Pause {
            length: wanted.max(shortest),
            not_before: self.began + shortest.max(self.tuning.shortest_pause),
        }
    }

    /// Whatever a query costs, polling stays a small part of the work. The shorter one of two counts: a server that stalled
    /// once and is back is polled as often as before.
    fn shortest_pause(&self) -> Duration {
        let took = self.queries[0].min(self.queries[1]);
        (took * self.tuning.pause_per_query_time).min(self.tuning.longest_pause_for_query_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNING: Tuning = Tuning::MEASURED;
    const INTERVAL: Duration = Duration::from_secs(1);
    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// A scout, and the time.
    struct Scout {
        polling: Polling,
        now: Instant,
        asleep: bool,
    }

    impl Scout {
        fn new(poll_interval: Duration, listens: bool) -> Self {
            #[expect(
                clippy::disallowed_methods,
                reason = "an Instant has no other beginning; the tests move it themselves"
            )]
            let now = Instant::now();
            Self {
                polling: Polling::new(TUNING, poll_interval, listens, now),
                now,
                asleep: false,
            }
        }

        /// A poll whose query takes no time.
        fn poll(&mut self, traffic: bool) {
            self.polling.begin(self.now);
            self.polling.polled(traffic, self.now);
        }

        fn pause(&self) -> Duration {
            self.polling.pause(self.asleep, None, self.now).length
        }

        fn may_sleep(&self, found: bool, quiet: bool) -> bool {
            let (asleep, now) = (self.asleep, self.now);
            self.polling.may_sleep(asleep, found, quiet, now)
        }

        /// No mark lags: only polls end its pauses.
        fn tidied(mut self) -> Self {
            self.polling.tidied(Tidied::Done, self.now);
            self
        }
    }

    #[test]
    fn polls_are_frequent_with_traffic_and_ever_rarer_without() {
        let mut scout = Scout::new(INTERVAL, false).tidied();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            scout.poll(false);
            pauses.push(scout.pause());
        }
        let expected = [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000].map(MS);
        assert_eq!(pauses, expected);
        scout.poll(true);
        assert_eq!(scout.pause(), TUNING.shortest_pause);
        scout.poll(false);
        assert_eq!(scout.pause(), TUNING.shortest_pause * 2);
    }

    #[test]
    fn a_poll_interval_below_the_shortest_pause_is_kept() {
        let mut scout = Scout::new(MS(1), true).tidied();
        assert_eq!(scout.pause(), MS(1));
        for traffic in [true, false] {
            scout.poll(traffic);
            assert_eq!(scout.pause(), MS(1));
        }
    }

    #[test]
    fn pauses_are_short_while_another_relay_sleeps_and_long_asleep() {
        let mut scout = Scout::new(INTERVAL, true).tidied();
        for _ in 0..10 {
            scout.poll(false);
        }
        assert_eq!(scout.pause(), TUNING.longest_pause_awake);
        scout.asleep = true;
        assert_eq!(scout.pause(), INTERVAL);
        scout.polling.notified();
        assert_eq!(scout.pause(), INTERVAL, "until the listener is up");
        scout.asleep = false;
        assert_eq!(scout.pause(), TUNING.shortest_pause);
    }

    #[test]
    fn a_poll_comes_when_a_message_or_a_step_of_tidying_falls_due() {
        let mut scout = Scout::new(INTERVAL, true);
        scout.asleep = true;
        let pause = |scout: &Scout, due_in| {
            let pause = scout.polling.pause(true, due_in, scout.now);
            pause.length
        };
        assert_eq!(pause(&scout, Some(MS(300))), MS(300));
        assert_eq!(pause(&scout, Some(MS(5000))), INTERVAL);
        assert_eq!(pause(&scout, Some(Duration::ZERO)), MS(1));
        scout.now += TUNING.tidy_after_idle - MS(70);
        assert_eq!(pause(&scout, None), MS(70));
        scout.now += MS(90);
        assert_eq!(pause(&scout, None), Duration::ZERO, "late already");
    }

    #[test]
    fn the_relay_sleeps_after_an_idle_moment_without_work() {
        let mut scout = Scout::new(INTERVAL, true);
        scout.poll(true);
        assert!(!scout.may_sleep(false, true), "traffic a moment ago");
        scout.now += TUNING.sleep_after_idle;
        assert!(scout.may_sleep(false, true));
        assert!(!scout.may_sleep(true, true), "the poll found work");
        assert!(!scout.may_sleep(false, false), "a lane has work");
        scout.asleep = true;
        assert!(scout.may_sleep(false, false), "it goes on sleeping");
        assert!(!scout.may_sleep(true, false));
        scout.asleep = false;
        scout.poll(true);
        assert!(!scout.may_sleep(false, true));
    }

    #[test]
    fn a_relay_that_does_not_listen_never_sleeps() {
        let mut scout = Scout::new(INTERVAL, false);
        scout.now += Duration::from_secs(60);
        assert!(!scout.may_sleep(false, true));
    }

    #[test]
    fn marks_are_tidied_step_by_step_after_an_idle_second_and_rounds_are_rare() {
        let mut scout = Scout::new(INTERVAL, true);
        let due = |scout: &Scout, after| scout.polling.is_tidy_due(scout.now + after);
        let due_after = |scout: &Scout, after| due(scout, after) && !due(scout, after - MS(1));
        assert!(due_after(&scout, TUNING.tidy_after_idle), "after a start");
        scout.now += TUNING.tidy_after_idle / 2;
        scout.poll(true);
        assert!(due_after(&scout, TUNING.tidy_after_idle), "after traffic");
        scout.polling.tidied(Tidied::Partly, scout.now);
        assert!(due_after(&scout, TUNING.tidy_step_every));
        scout.poll(false);
        assert!(due_after(&scout, TUNING.tidy_step_every), "as before");
        scout.polling.tidied(Tidied::Held, scout.now);
        assert!(due_after(&scout, TUNING.tidy_round_every));
        scout.polling.tidied(Tidied::Done, scout.now);
        assert!(!due(&scout, Duration::from_secs(3600)));
        scout.poll(true);
        assert!(due_after(&scout, TUNING.tidy_round_every));
        scout.now += TUNING.tidy_round_every;
        scout.poll(true);
        assert!(due_after(&scout, TUNING.tidy_after_idle));
    }

    #[test]
    fn polling_takes_no_more_than_its_part_of_a_core() {
        for ms in [1, 10, 100, 1000, 2000] {
            let took = MS(ms);
            let mut scout = Scout::new(Duration::from_nanos(1), true);
            scout.polling.queried(took);
            scout.polling.queried(took);
            let part = took.as_secs_f64() / (took + scout.pause()).as_secs_f64();
            assert!(part <= 1.0 / 6.0 + 1e-9, "{part} of a core after {took:?}");
        }
    }

    #[test]
    fn a_pause_for_a_slow_query_has_a_limit() {
        let mut scout = Scout::new(INTERVAL, true);
        scout.polling.queried(Duration::from_secs(30));
        scout.polling.queried(Duration::from_secs(30));
        assert_eq!(scout.pause(), TUNING.longest_pause_for_query_time);
    }

    #[test]
    fn a_server_that_stalled_once_is_polled_soon() {
        let (quick, stalled) = (MS(1), Duration::from_secs(20));
        for queries in [[quick, stalled], [stalled, quick]] {
            let mut scout = Scout::new(Duration::from_nanos(1), true);
            for took in queries {
                scout.polling.queried(took);
            }
            assert_eq!(scout.pause(), quick * TUNING.pause_per_query_time);
        }
    }

    #[test]
    fn notifications_do_not_make_polls_more_frequent_than_work_does() {
        let mut scout = Scout::new(INTERVAL, true);
        scout.poll(true);
        let not_before = |scout: &Scout, now| scout.polling.pause(true, None, now).not_before;
        let shortest = scout.now + TUNING.shortest_pause;
        assert_eq!(not_before(&scout, scout.now), shortest);
        assert_eq!(not_before(&scout, scout.now + MS(3)), shortest);
        scout.polling.queried(MS(40));
        scout.polling.queried(MS(40));
        let after_the_query = scout.now + MS(40) * TUNING.pause_per_query_time;
        assert_eq!(not_before(&scout, scout.now), after_the_query);
    }
}
