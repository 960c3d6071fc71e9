//! The log of an outage: a line when it begins, a line a minute while it lasts, and a line when it is over.
//!
//! During an outage of a server every task of a source fails again and again. One line for each attempt would fill the log,
//! and hide the line that matters. So the tasks report here, and each attempt is a line at level DEBUG only.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::connections::Priority;

/// How often the log says that an outage lasts.
const AGAIN: Duration = Duration::from_secs(60);
/// Lines of one minute that tell of another error. At the begin of an outage each task may meet its own.
const OTHER_ERRORS: usize = 3;
/// Outages of one minute that the log tells of.
const OUTAGES: usize = 3;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    PostgreSql,
    RabbitMq,
    /// PostgreSQL works, and what is claimed cannot be settled.
    Publishing,
}

impl Failing {
    const ALL: [Self; 3] = [Self::PostgreSql, Self::RabbitMq, Self::Publishing];
}

/// The outages of one source.
#[derive(Debug, Default)]
pub struct Outages(Mutex<[Outage; Failing::ALL.len()]>);

impl Outages {
    /// An attempt of a task failed.
    pub fn failed(&self, source: &str, failing: Failing, task: Priority, error: &str) {
        attempt(source, failing, task, error);
        let line = self.state()[failing as usize].failed(task, error, Instant::now());
        if let Some(line) = line {
            said(source, failing, &line, error);
        }
    }

    /// The task has its connections. Whether what it claims can be settled is not known by that.
    pub fn connected(&self, source: &str, task: Priority) {
        self.end(source, task, &[Failing::PostgreSql, Failing::RabbitMq]);
    }

    /// The task works, or has ended.
    pub fn works(&self, source: &str, task: Priority) {
        self.end(source, task, &Failing::ALL);
    }

    fn end(&self, source: &str, task: Priority, which: &[Failing]) {
        for &failing in which {
            let over = self.state()[failing as usize].works(task, Instant::now());
            if let Some(over) = over {
                ended(source, failing, over);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, [Outage; Failing::ALL.len()]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Outage {
    /// Tasks that failed and have not worked since.
    tasks: BTreeSet<Priority>,
    /// While tasks fail.
    began: Option<Instant>,
    attempts: u64,
    /// When the present minute began: each has its own lines.
    minute: Option<Instant>,
    /// Outages that began in this minute.
    outages: usize,
    /// Errors that a line of this minute told of.
    errors: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Begins,
    /// It fails in another way than the lines of this minute say.
    OtherError,
    Lasts(Over),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Over {
    after: Duration,
    attempts: u64,
}

impl Outage {
    fn failed(&mut self, task: Priority, error: &str, now: Instant) -> Option<Line> {
        self.tasks.insert(task);
        self.attempts += 1;
        let is_new_minute = self
            .minute
            .is_none_or(|minute| now.duration_since(minute) >= AGAIN);
        if is_new_minute {
            (self.minute, self.outages) = (Some(now), 0);
            self.errors = vec![error.to_owned()];
        }
        let Some(began) = self.began else {
            self.began = Some(now);
            self.outages += 1;
            self.learn(error);
            return self.is_told().then_some(Line::Begins);
        };
        if is_new_minute {
            let (after, attempts) = (now.duration_since(began), self.attempts);
            return Some(Line::Lasts(Over { after, attempts }));
        }
        self.learn(error).then_some(Line::OtherError)
    }

    /// It is over when each task that failed has worked again.
    fn works(&mut self, task: Priority, now: Instant) -> Option<Over> {
        if !self.tasks.remove(&task) || !self.tasks.is_empty() {
            return None;
        }
        let after = now.duration_since(self.began.take()?);
        let attempts = std::mem::take(&mut self.attempts);
        self.is_told().then_some(Over { after, attempts })
    }

    /// A server that accepts each connection and closes it begins an outage with each attempt.
    fn is_told(&self) -> bool {
        self.outages <= OUTAGES
    }

    /// Whether a line tells of this error.
    fn learn(&mut self, error: &str) -> bool {
        let is_new = self.errors.len() <= OTHER_ERRORS && !self.errors.iter().any(|e| e == error);
        if is_new {
            self.errors.push(error.to_owned());
        }
        is_new
    }
}

fn attempt(source: &str, failing: Failing, task: Priority, error: &str) {
    let task = task.to_string();
    match failing {
        Failing::PostgreSql => {
            tracing::debug!(source, task, error, "PostgreSQL failed; backing off");
        }
        Failing::RabbitMq => {
            tracing::debug!(source, task, error, "RabbitMQ failed; backing off");
        }
        Failing::Publishing => {
            tracing::debug!(source, task, error, "nothing is published; backing off");
        }
    }
}

fn said(source: &str, failing: Failing, line: &Line, error: &str) {
    match (failing, line) {
        (Failing::PostgreSql, Line::Begins | Line::OtherError) => {
            tracing::warn!(source, error, "PostgreSQL failed; trying again");
        }
        (Failing::RabbitMq, Line::Begins | Line::OtherError) => {
            tracing::warn!(source, error, "RabbitMQ failed; trying again");
        }
        (Failing::Publishing, Line::Begins | Line::OtherError) => {
            tracing::warn!(source, error, "nothing is published; trying again");
        }
        (failing, Line::Lasts(Over { after, attempts })) => {
            let since_s = after.as_secs();
            match failing {
                Failing::PostgreSql => {
                    tracing::warn!(source, error, since_s, attempts, "PostgreSQL still fails");
                }
                Failing::RabbitMq => {
                    tracing::warn!(source, error, since_s, attempts, "RabbitMQ still fails");
                }
                Failing::Publishing => {
                    tracing::warn!(
                        source,
                        error,
                        since_s,
                        attempts,
                        "still nothing is published"
                    );
                }
            }
        }
    }
}

fn ended(source: &str, failing: Failing, Over { after, attempts }: Over) {
    let after_s = after.as_secs_f64();
    match failing {
        Failing::PostgreSql => {
            tracing::info!(source, after_s, attempts, "PostgreSQL works again");
        }
        Failing::RabbitMq => tracing::info!(source, after_s, attempts, "RabbitMQ works again"),
        Failing::Publishing => {
            tracing::info!(source, after_s, attempts, "messages are published again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOUT: Priority = Priority::SCOUT;
    const WORKER: Priority = Priority::FIRST_WORKER;
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_outage_has_a_line_at_its_begin_one_a_minute_and_one_at_its_end() {
        let mut outage = Outage::default();
        let began = Instant::now();
        let mut lines = Vec::new();
        for second in 0..150 {
            for task in [SCOUT, WORKER] {
                lines.extend(outage.failed(task, "refused", began + SECOND * second));
            }
        }
        let lasts = |second: u32, attempts| {
            let after = SECOND * second;
            Line::Lasts(Over { after, attempts })
        };
        assert_eq!(lines, [Line::Begins, lasts(60, 121), lasts(120, 241)]);
        let back = began + SECOND * 150;
        assert_eq!(outage.works(WORKER, back), None, "the scout still fails");
        let (after, attempts) = (SECOND * 150, 300);
        assert_eq!(outage.works(SCOUT, back), Some(Over { after, attempts }));
        assert_eq!(outage.works(SCOUT, back), None);
        assert_eq!(outage.failed(SCOUT, "refused", back), Some(Line::Begins));
    }

    /// It accepts connections and closes them.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_and_goes_has_few_lines_a_minute() {
        let mut outage = Outage::default();
        let began = Instant::now();
        let mut lines = 0;
        for second in 0..120 {
            let now = began + SECOND * second;
            lines += usize::from(outage.failed(WORKER, "closed", now).is_some());
            lines += usize::from(outage.works(WORKER, now).is_some());
        }
        assert_eq!(lines, 2 * 2 * OUTAGES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_does_not_prove_that_messages_are_published() {
        let outages = Outages::default();
        for failing in Failing::ALL {
            outages.failed("default", failing, WORKER, "an error");
        }
        let fails =
            || Failing::ALL.map(|failing| outages.state()[failing as usize].began.is_some());
        outages.connected("default", WORKER);
        assert_eq!(fails(), [false, false, true]);
        outages.works("default", WORKER);
        assert_eq!(fails(), [false; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_error_has_a_line_and_few_a_minute() {
        let mut outage = Outage::default();
        let now = Instant::now();
        assert_eq!(outage.failed(SCOUT, "refused", now), Some(Line::Begins));
        assert_eq!(
            outage.failed(SCOUT, "password", now),
            Some(Line::OtherError)
        );
        assert_eq!(outage.failed(WORKER, "refused", now), None);
        assert_eq!(outage.failed(WORKER, "password", now), None);
        let more = (0..100).filter_map(|n| outage.failed(SCOUT, &format!("error {n}"), now));
        assert_eq!(more.count(), OTHER_ERRORS - 1);
        let later = now + AGAIN;
        assert!(matches!(
            outage.failed(SCOUT, "refused", later),
            Some(Line::Lasts(_))
        ));
        assert_eq!(
            outage.failed(SCOUT, "password", later),
            Some(Line::OtherError)
        );
    }
}
