//! The relay's health, for `/readyz`, the metrics and `outbox.relay`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use crate::telemetry::metrics;

/// One source's health. Workers report their broker links, the scout reports the database.
#[derive(Debug)]
pub struct Health {
    source: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    database: Option<Result<(), String>>,
    links: BTreeMap<usize, LinkReport>,
    /// The fault of the schema.
    schema: Option<String>,
    stopping: bool,
    /// When a claim's messages could not be marked the last time, and why.
    cannot_mark: Option<(Instant, String)>,
    /// As `cannot_mark`, of messages that no claim reads.
    cannot_mark_unclaimed: Option<(Instant, String)>,
    /// When messages could not be read the last time, and why.
    cannot_read: Option<(Instant, String)>,
}

/// How long a failed mark or read counts. While there are messages, the relay tries again sooner.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(30);

impl State {
    fn cannot_mark(&self) -> Option<&str> {
        still(self.cannot_mark.as_ref()).or_else(|| still(self.cannot_mark_unclaimed.as_ref()))
    }

    fn cannot_read(&self) -> Option<&str> {
        still(self.cannot_read.as_ref())
    }
}

fn still(failure: Option<&(Instant, String)>) -> Option<&str> {
    let (last, why) = failure?;
    (last.elapsed() < FAILURE_COUNTS_FOR).then_some(why)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkReport {
    Connecting,
    Up,
    Blocked(String),
    Down(String),
}

/// The answer of `/readyz` for one source.
#[derive(Debug, Clone, serde::Serialize, PartialEq, Eq)]
pub struct Readiness {
    pub source: String,
    pub ready: bool,
    pub database: String,
    pub schema: String,
    pub broker: String,
    pub blocked: bool,
    /// Why messages cannot be marked as sent; nothing is published then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cannot_mark: Option<String>,
    /// Why messages cannot be read, for no message's fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cannot_read: Option<String>,
}

impl Health {
    pub fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            state: Mutex::default(),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn database_up(&self) {
        metrics::dependency_up(&self.source, "postgresql", true);
        self.state().database = Some(Ok(()));
    }

    pub fn database_down(&self, why: String) {
        metrics::dependency_up(&self.source, "postgresql", false);
        self.state().database = Some(Err(why));
    }

    /// `fault`: a reason for which the relay would not start.
    pub fn schema(&self, fault: Option<String>) {
        metrics::schema_ok(&self.source, fault.is_none());
        self.state().schema = fault;
    }

    pub fn link(&self, worker: usize, report: LinkReport) {
        let mut state = self.state();
        state.links.insert(worker, report);
        let up = state
            .links
            .values()
            .any(|l| matches!(l, LinkReport::Up | LinkReport::Blocked(_)));
        let blocked = state
            .links
            .values()
            .any(|l| matches!(l, LinkReport::Blocked(_)));
        drop(state);
        metrics::dependency_up(&self.source, "rabbitmq", up);
        metrics::broker_blocked(&self.source, blocked);
    }

    /// A claim's messages cannot be marked as sent. Logs the first time.
    pub fn cannot_mark(&self, why: &str) {
        let mut state = self.state();
        let news = state.cannot_mark().is_none();
        state.cannot_mark = Some((Instant::now(), why.to_owned()));
        drop(state);
        self.marking_fails(why, news);
    }

    /// As `cannot_mark`, of messages that no claim reads: held ones, or those of lanes that another session has locked.
    /// Claims mark others all the time, so `marked` does not end this failure.
    pub fn cannot_mark_unclaimed(&self, why: &str) {
        let mut state = self.state();
        let news = state.cannot_mark().is_none();
        state.cannot_mark_unclaimed = Some((Instant::now(), why.to_owned()));
        drop(state);
        self.marking_fails(why, news);
    }

    fn marking_fails(&self, why: &str, news: bool) {
        metrics::can_mark(&self.source, false);
        if news {
            tracing::error!(
                source = self.source,
                why,
                "messages cannot be marked as sent, so they are not published"
            );
        }
    }

    /// A claim's messages were marked.
    pub fn marked(&self) {
        let mut state = self.state();
        let failed = state.cannot_mark.take().is_some();
        let ended = failed && state.cannot_mark().is_none();
        drop(state);
        if ended {
            self.marking_works();
        }
    }

    fn marking_works(&self) {
        metrics::can_mark(&self.source, true);
        tracing::info!(source = self.source, "messages are marked as sent again");
    }

    /// PostgreSQL refuses to read messages, and no message is to blame. Logs the first time.
    pub fn cannot_read(&self, why: &str) {
        let mut state = self.state();
        let news = state.cannot_read().is_none();
        state.cannot_read = Some((Instant::now(), why.to_owned()));
        drop(state);
        if news {
            tracing::error!(source = self.source, why, "messages cannot be read");
        }
    }

    /// Other messages may be read and marked all the time, so a failure ends when it was not repeated for a while.
    pub fn expire_failures(&self) {
        let mut state = self.state();
        if state.cannot_read.is_some() && state.cannot_read().is_none() {
            state.cannot_read = None;
            tracing::info!(source = self.source, "messages are read again");
        }
        let failed = state.cannot_mark.is_some() || state.cannot_mark_unclaimed.is_some();
        if failed && state.cannot_mark().is_none() {
            (state.cannot_mark, state.cannot_mark_unclaimed) = (None, None);
            drop(state);
            self.marking_works();
        }
    }

    pub fn stopping(&self) {
        self.state().stopping = true;
    }

    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        let database = match &state.database {
            Some(Ok(())) => "up".to_owned(),
            Some(Err(why)) => why.clone(),
            None => "connecting".to_owned(),
        };
        let blocked = state
            .links
            .values()
            .any(|l| matches!(l, LinkReport::Blocked(_)));
        let up = state.links.values().any(|l| *l == LinkReport::Up);
        let broker = if up {
            "up".to_owned()
        } else {
            let why = state.links.values().find_map(|l| match l {
                LinkReport::Blocked(why) => Some(format!("blocked: {why}")),
                LinkReport::Down(why) => Some(why.clone()),
                LinkReport::Up | LinkReport::Connecting => None,
            });
            why.unwrap_or_else(|| "connecting".to_owned())
        };
        let cannot_mark = state.cannot_mark().map(str::to_owned);
        let cannot_read = state.cannot_read().map(str::to_owned);
        let ready = matches!(state.database, Some(Ok(())))
            && state.schema.is_none()
            && up
            && !blocked
            && cannot_mark.is_none()
            && cannot_read.is_none()
            && !state.stopping;
        Readiness {
            source: self.source.clone(),
            ready,
            database,
            schema: state.schema.clone().unwrap_or_else(|| "ok".to_owned()),
            broker,
            blocked,
            cannot_mark,
            cannot_read,
        }
    }

    /// One word for `outbox.relay.state`.
    pub fn word(&self) -> &'static str {
        let state = self.state();
        if state.stopping {
            "stopping"
        } else if state
            .links
            .values()
            .any(|l| matches!(l, LinkReport::Blocked(_)))
        {
            "blocked"
        } else if state.cannot_mark().is_some() {
            "cannot_mark"
        } else if state.cannot_read().is_some() {
            "cannot_read"
        } else if state.links.values().any(|l| *l == LinkReport::Up) {
            "publishing"
        } else if state.links.values().all(|l| *l == LinkReport::Connecting) {
            "starting"
        } else {
            "broker_down"
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(health: &Health) -> Option<String> {
        health.readiness().cannot_mark
    }

    #[tokio::test(start_paused = true)]
    async fn marks_end_the_failure_of_a_claim_and_no_other() {
        let health = Health::new("default");
        health.cannot_mark("a claim's");
        assert_eq!(why(&health).as_deref(), Some("a claim's"));
        health.marked();
        assert_eq!(why(&health), None);

        health.cannot_mark_unclaimed("a held message's");
        health.marked();
        health.cannot_mark("a claim's");
        health.marked();
        assert_eq!(why(&health).as_deref(), Some("a held message's"));
        assert_eq!(health.word(), "cannot_mark");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_ends_when_it_was_not_repeated_for_a_while() {
        let health = Health::new("default");
        let second = Duration::from_secs(1);
        health.cannot_mark_unclaimed("first");
        tokio::time::advance(FAILURE_COUNTS_FOR - second).await;
        health.cannot_mark_unclaimed("again");
        tokio::time::advance(FAILURE_COUNTS_FOR - second).await;
        health.expire_failures();
        assert_eq!(why(&health).as_deref(), Some("again"));
        tokio::time::advance(second).await;
        assert_eq!(why(&health), None);
        // Its state is dropped.
        health.expire_failures();
        assert!(health.state().cannot_mark_unclaimed.is_none());
    }
}
