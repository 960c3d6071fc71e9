//! The periodic jobs of a relay: when each is due, and how long a job that fails waits.
//!
//! **Why.** A job can fail by a fault of its own: a privilege that was revoked, a trigger that raises an error, a damaged
//! table, somebody's lock. The others must go on: held messages must be released although the gauges cannot be read. So each
//! job has its own due time and its own growing back-off. One job runs at a time, and circuits go first: everything to a
//! destination waits for them.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::telemetry::metrics;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Probes and releases of held messages.
    Circuits,
    /// The schema and the privileges.
    Inspection,
    Audit,
    Gauges,
    /// Which sessions block the relay, if the lag is high.
    Blockers,
    /// The row in `outbox.relay`.
    Beat,
    Retention,
    /// The search for messages that another relay held.
    Held,
}

impl Job {
    pub const ALL: [Self; 8] = [
        Self::Circuits,
        Self::Inspection,
        Self::Audit,
        Self::Gauges,
        Self::Blockers,
        Self::Beat,
        Self::Retention,
        Self::Held,
    ];

    /// As the log and the metric call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circuits => "circuits",
            Self::Inspection => "inspection",
            Self::Audit => "audit",
            Self::Gauges => "gauges",
            Self::Blockers => "blockers",
            Self::Beat => "beat",
            Self::Retention => "retention",
            Self::Held => "held",
        }
    }

    /// The longest pause after failures. Held messages wait for circuits, and alerts for the inspection and the gauges.
    fn longest_pause(self) -> Duration {
        match self {
            Self::Circuits | Self::Inspection | Self::Gauges => Duration::from_secs(15),
            Self::Audit | Self::Blockers | Self::Beat | Self::Retention | Self::Held => {
                Duration::from_secs(300)
            }
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A job that failed works again when it has worked for this time, and for as long as its last pause.
const PROBATION: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Jobs {
    source: String,
    states: [State; Job::ALL.len()],
}

#[derive(Debug, Clone, Copy)]
struct State {
    due: Instant,
    /// Failures since the job last worked for a while.
    failures: u32,
    /// Since when it has worked without a failure.
    well_since: Option<Instant>,
    /// The last pause, without the part that is drawn.
    pause: Duration,
}

impl Jobs {
    /// Every job is due.
    pub fn new(source: &str) -> Self {
        let due = State {
            due: Instant::now(),
            failures: 0,
            well_since: None,
            pause: Duration::ZERO,
        };
        Self {
            source: source.to_owned(),
            states: [due; Job::ALL.len()],
        }
    }

    /// On a new connection every job is due, except those that fail.
    pub fn connected(&mut self) {
        for state in &mut self.states {
            if state.failures == 0 {
                state.due = Instant::now();
            }
        }
    }

    /// The job to run now: circuits first, then the one that has been due for the longest time.
    pub fn due(&self, now: Instant) -> Option<Job> {
        let due = |job: &Job| self.states[*job as usize].due;
        if due(&Job::Circuits) <= now {
            return Some(Job::Circuits);
        }
        Job::ALL
            .into_iter()
            .filter(|job| due(job) <= now)
            .min_by_key(due)
    }

    /// When the next job is due.
    pub fn next(&self) -> Instant {
        let dues = self.states.iter().map(|state| state.due);
        dues.min().unwrap_or_else(Instant::now)
    }

    /// A job takes several steps, and not all of them may fail. So it works again when it has worked for a while.
    pub fn succeeded(&mut self, job: Job, next: Instant) {
        let state = &mut self.states[job as usize];
        state.due = next;
        if state.failures == 0 {
            return;
        }
        let since = *state.well_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= state.pause.max(PROBATION) {
            (state.failures, state.well_since) = (0, None);
            tracing::info!(
                source = self.source,
                job = job.name(),
                "the maintenance job works again"
            );
        }
    }

    /// By a fault of its own. Logs the first of several failures.
    pub fn failed(&mut self, job: Job, error: &impl std::fmt::Display) {
        metrics::job_failed(&self.source, job.name());
        let state = &mut self.states[job as usize];
        state.failures = state.failures.saturating_add(1);
        let doubled = FIRST_PAUSE * (1 << (state.failures - 1).min(16));
        state.pause = doubled.min(job.longest_pause());
        state.well_since = None;
        let part = rand::rng().random_range(0.5..=1.0);
        state.due = Instant::now() + state.pause.mul_f64(part);
        let (source, job, failures) = (&self.source, job.name(), state.failures);
        if failures == 1 {
            tracing::warn!(source, job, error = %error, "a maintenance job failed; it is tried again, and the others go on");
        } else {
            tracing::debug!(source, job, failures, error = %error, "a maintenance job failed again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_counted_from_zero() {
        assert_eq!(Job::ALL.map(Job::name), metrics::TASKS);
    }

    #[tokio::test(start_paused = true)]
    async fn circuits_go_first_and_no_job_waits_for_ever_behind_one_that_is_always_due() {
        let mut jobs = Jobs::new("default");
        let mut ran = Vec::new();
        for _ in 0..20 {
            let job = jobs.due(Instant::now()).unwrap();
            let busy = job == Job::Retention;
            let next = if busy {
                Duration::ZERO
            } else {
                Duration::from_secs(60)
            };
            jobs.succeeded(job, Instant::now() + next);
            ran.push(job);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(ran[0], Job::Circuits);
        for job in Job::ALL {
            assert!(ran.contains(&job), "{job:?} in {ran:?}");
        }
        assert_eq!(ran[19], Job::Retention);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            jobs.due(Instant::now()),
            Some(Job::Circuits),
            "before all others"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_fails_backs_off_longer_and_longer_while_the_others_keep_their_pace() {
        let mut jobs = Jobs::new("default");
        let began = Instant::now();
        let (mut failures, mut others) = (0, 0);
        while began.elapsed() < Duration::from_secs(3600) {
            match jobs.due(Instant::now()) {
                Some(Job::Retention) => {
                    failures += 1;
                    jobs.failed(Job::Retention, &"a trigger raises");
                }
                Some(job) => {
                    others += 1;
                    jobs.succeeded(job, Instant::now() + Duration::from_secs(1));
                }
                None => tokio::time::sleep_until(jobs.next()).await,
            }
        }
        assert!(
            (12..40).contains(&failures),
            "{failures} failures in an hour"
        );
        assert!(others >= 7 * 3600, "{others}");
        // A new connection does not make it due.
        jobs.connected();
        let due = |jobs: &Jobs| jobs.states[Job::Retention as usize].due;
        assert!(due(&jobs) > Instant::now());
        jobs.succeeded(Job::Retention, Instant::now());
        jobs.failed(Job::Retention, &"at its next step");
        assert!(
            due(&jobs) > Instant::now() + FIRST_PAUSE,
            "one step is no success"
        );
        jobs.succeeded(Job::Retention, Instant::now());
        tokio::time::advance(Duration::from_secs(300)).await;
        jobs.succeeded(Job::Retention, Instant::now());
        jobs.failed(Job::Retention, &"much later");
        assert!(
            due(&jobs) <= Instant::now() + FIRST_PAUSE,
            "from the beginning"
        );
    }
}
