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
    failures: [Option<Failure>; Obstacle::ALL.len()],
}

/// What PostgreSQL refuses to the relay while the connection works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A claim's messages cannot be marked as sent. It ends when they are.
    Marks,
    /// Another session has locked lanes, and claims pass over them. Claims of other lanes mark messages all the time, so a
    /// mark does not end it. It ends when no session is found that locks them.
    Lanes,
    /// Held messages cannot be released, probed or given up. As `Lanes`.
    Held,
    /// Messages cannot be read, and no message is to blame.
    Reads,
}

impl Obstacle {
    const ALL: [Self; 4] = [Self::Marks, Self::Lanes, Self::Held, Self::Reads];
    /// What `/readyz` and the metric call `cannot_mark`: messages that are not published for it.
    const OF_MARKS: [Self; 3] = [Self::Marks, Self::Lanes, Self::Held];

    fn text(self) -> &'static str {
        match self {
            Self::Marks => "messages cannot be marked as sent, so they are not published",
            Self::Lanes => "lanes are locked, so their messages are not published",
            Self::Held => {
                "held messages cannot be released, so they wait although their destination may work"
            }
            Self::Reads => "messages cannot be read",
        }
    }
}

#[derive(Debug)]
struct Failure {
    /// If it is not repeated before this time, it is no longer known whether it lasts.
    until: Instant,
    why: String,
    began: Instant,
    /// When the log last told of it.
    said: Instant,
}

impl Failure {
    fn after_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

/// How long a failure counts. While there are messages, the relay tries again sooner.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(30);
/// How often the log says that a failure lasts.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How often failures are looked for that no longer count, or of which the log must tell again.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// Until when a failure counts whose next attempt is due after `retry_in`. A back-off may be without a limit.
pub(super) fn counts_until(retry_in: Duration) -> Instant {
    let now = Instant::now();
    let until = now.checked_add(retry_in.saturating_add(FAILURE_COUNTS_FOR));
    until.unwrap_or(now + FAILURE_COUNTS_FOR)
}

impl State {
    fn failure(&self, obstacle: Obstacle) -> Option<&str> {
        let failure = self.failures[obstacle as usize].as_ref()?;
        (Instant::now() < failure.until).then_some(failure.why.as_str())
    }

    /// The reasons of these failures, in one text.
    fn why(&self, obstacles: &[Obstacle]) -> Option<String> {
        let mut whys: Vec<&str> = Vec::new();
        for why in obstacles.iter().filter_map(|o| self.failure(*o)) {
            if !whys.contains(&why) {
                whys.push(why);
            }
        }
        (!whys.is_empty()).then(|| whys.join("; and "))
    }

    fn cannot_mark(&self) -> bool {
        Obstacle::OF_MARKS
            .iter()
            .any(|o| self.failure(*o).is_some())
    }

    fn link(&self, is: fn(&LinkReport) -> bool) -> bool {
        self.links.values().any(is)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkReport {
    Connecting,
    Up,
    Blocked(String),
    Down(String),
}

impl LinkReport {
    fn is_up(&self) -> bool {
        *self == Self::Up
    }

    fn is_blocked(&self) -> bool {
        matches!(self, Self::Blocked(_))
    }
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
    /// Why messages cannot be marked as sent, or not be released; those messages are not published then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cannot_mark: Option<String>,
    /// Why messages cannot be read, for no message's fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cannot_read: Option<String>,
}

/// Each gauge is set under the lock. Otherwise the older of two tasks' values could stay in it.
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
        let mut state = self.state();
        state.database = Some(Ok(()));
        metrics::dependency_up(&self.source, "postgresql", true);
    }

    pub fn database_down(&self, why: String) {
        let mut state = self.state();
        state.database = Some(Err(why));
        metrics::dependency_up(&self.source, "postgresql", false);
    }

    /// `fault`: a reason for which the relay would not start.
    pub fn schema(&self, fault: Option<String>) {
        let mut state = self.state();
        metrics::schema_ok(&self.source, fault.is_none());
        state.schema = fault;
    }

    pub fn link(&self, worker: usize, report: LinkReport) {
        let mut state = self.state();
        state.links.insert(worker, report);
        let blocked = state.link(LinkReport::is_blocked);
        let up = blocked || state.link(LinkReport::is_up);
        metrics::dependency_up(&self.source, "rabbitmq", up);
        metrics::broker_blocked(&self.source, blocked);
    }

    /// PostgreSQL refuses something, and the relay tries it again soon. Logs the first time.
    pub fn fails(&self, obstacle: Obstacle, why: &str) {
        self.fails_until(obstacle, why, counts_until(Duration::ZERO));
    }

    /// As `fails`. With little traffic, nothing tells before `until` whether the obstacle is still there.
    pub(super) fn fails_until(&self, obstacle: Obstacle, why: &str, until: Instant) {
        let mut state = self.state();
        let news = state.failure(obstacle).is_none();
        let failure = &mut state.failures[obstacle as usize];
        let now = Instant::now();
        let last = failure.take().filter(|_| !news);
        let (began, said) = last
            .as_ref()
            .map_or((now, now), |last| (last.began, last.said));
        *failure = Some(Failure {
            until: last.map_or(until, |last| last.until.max(until)),
            why: why.to_owned(),
            began,
            said,
        });
        self.set_gauges(&state);
        if news {
            let why = state.failure(obstacle).unwrap_or_default();
            tracing::error!(source = self.source, why, "{}", obstacle.text());
        }
    }

    /// Messages were marked, and none is left that could not be.
    pub fn marked(&self) {
        let mut state = self.state();
        if let Some(failure) = state.failures[Obstacle::Marks as usize].take() {
            self.set_gauges(&state);
            let after_s = failure.after_s();
            tracing::info!(
                source = self.source,
                after_s,
                "messages are marked as sent again"
            );
        }
    }

    /// No session locks lanes any more.
    pub fn lanes_are_free(&self) {
        let mut state = self.state();
        if let Some(failure) = state.failures[Obstacle::Lanes as usize].take() {
            self.set_gauges(&state);
            let after_s = failure.after_s();
            tracing::info!(
                source = self.source,
                after_s,
                "lanes are not locked any more"
            );
        }
    }

    pub fn lanes_are_locked(&self) -> bool {
        self.state().failure(Obstacle::Lanes).is_some()
    }

    /// Ends failures that were not repeated for a while, and tells of those that last. Nothing proves that the obstacle is
    /// gone: nobody may have tried.
    fn expire_failures(&self) {
        let mut state = self.state();
        for obstacle in Obstacle::ALL {
            let lapsed = state.failure(obstacle).is_none();
            let failure = &mut state.failures[obstacle as usize];
            if lapsed && failure.take().is_some() {
                let failure = obstacle.text();
                tracing::info!(source = self.source, failure, "no longer seen to fail");
                self.set_gauges(&state);
            } else if let Some(failure) = failure
                && failure.said.elapsed() >= SAID_AGAIN_AFTER
            {
                failure.said = Instant::now();
                let (why, since_s) = (failure.why.as_str(), failure.began.elapsed().as_secs());
                tracing::error!(
                    source = self.source,
                    why,
                    since_s,
                    "still: {}",
                    obstacle.text()
                );
            }
        }
    }

    /// Ends failures without a server: neither may answer.
    pub async fn watch_failures(&self) {
        loop {
            tokio::time::sleep(EXPIRE_EVERY).await;
            self.expire_failures();
        }
    }

    fn set_gauges(&self, state: &State) {
        metrics::can_mark(&self.source, !state.cannot_mark());
        metrics::can_read(&self.source, state.failure(Obstacle::Reads).is_none());
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
        let blocked = state.link(LinkReport::is_blocked);
        let up = state.link(LinkReport::is_up);
        let down = state.links.values().find_map(|link| match link {
            LinkReport::Down(why) => Some(why.clone()),
            LinkReport::Up | LinkReport::Connecting | LinkReport::Blocked(_) => None,
        });
        let blocked_by = state.links.values().find_map(|link| match link {
            LinkReport::Blocked(why) => Some(format!("blocked: {why}")),
            LinkReport::Up | LinkReport::Connecting | LinkReport::Down(_) => None,
        });
        let up_text = up.then(|| "up".to_owned());
        // One blocked link makes the relay not ready, so the broker's reason goes first.
        let broker = blocked_by.or(up_text).or(down);
        let broker = broker.unwrap_or_else(|| "connecting".to_owned());
        let cannot_mark = state.why(&Obstacle::OF_MARKS);
        let cannot_read = state.why(&[Obstacle::Reads]);
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
        } else if state.link(LinkReport::is_blocked) {
            "blocked"
        } else if state.cannot_mark() {
            "cannot_mark"
        } else if state.failure(Obstacle::Reads).is_some() || matches!(state.database, Some(Err(_)))
        {
            "cannot_read"
        } else if state.link(LinkReport::is_up) {
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

    const SECOND: Duration = Duration::from_secs(1);
    const RETRY: Duration = Duration::from_secs(300);

    fn health() -> Health {
        Health::new("default")
    }

    fn why(health: &Health) -> Option<String> {
        health.readiness().cannot_mark
    }

    #[tokio::test(start_paused = true)]
    async fn marks_end_the_failure_of_a_claim_and_no_other() {
        let health = health();
        health.fails(Obstacle::Marks, "a claim's");
        assert_eq!(why(&health).as_deref(), Some("a claim's"));
        health.marked();
        assert_eq!(why(&health), None);

        health.fails(Obstacle::Held, "a held message's");
        health.marked();
        health.fails(Obstacle::Marks, "a claim's");
        let both = "a claim's; and a held message's";
        assert_eq!(why(&health).as_deref(), Some(both));
        health.marked();
        assert_eq!(why(&health).as_deref(), Some("a held message's"));
        assert_eq!(health.word(), "cannot_mark");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_ends_when_it_was_not_repeated_for_a_while() {
        let health = health();
        for obstacle in Obstacle::ALL {
            health.fails(obstacle, "first");
        }
        tokio::time::advance(FAILURE_COUNTS_FOR - SECOND).await;
        health.fails(Obstacle::Lanes, "again");
        tokio::time::advance(SECOND).await;
        health.expire_failures();
        assert_eq!(why(&health).as_deref(), Some("again"));
        assert_eq!(health.readiness().cannot_read, None);
        tokio::time::advance(FAILURE_COUNTS_FOR).await;
        assert_eq!(why(&health), None);
        health.expire_failures();
        assert!(health.state().failures.iter().all(Option::is_none));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_lasts_is_told_again_each_minute() {
        let health = health();
        health.fails(Obstacle::Reads, "a disk");
        let told = || {
            let state = health.state();
            let failure = state.failures[Obstacle::Reads as usize].as_ref();
            failure.map(|failure| failure.said)
        };
        let first = told();
        for _ in 0..59 {
            tokio::time::advance(SECOND).await;
            health.fails(Obstacle::Reads, "a disk");
            health.expire_failures();
        }
        assert_eq!(told(), first);
        tokio::time::advance(SECOND).await;
        health.expire_failures();
        assert!(told() > first);
    }

    #[tokio::test(start_paused = true)]
    async fn locked_lanes_end_when_no_session_locks_them_and_nothing_else_does() {
        let health = health();
        health.fails(Obstacle::Lanes, "a lock");
        health.fails(Obstacle::Held, "a trigger");
        assert!(health.lanes_are_locked());
        health.lanes_are_free();
        assert!(!health.lanes_are_locked());
        assert_eq!(why(&health).as_deref(), Some("a trigger"));
    }

    #[test]
    fn a_database_that_refuses_every_read_is_no_publishing_relay() {
        let health = health();
        health.link(0, LinkReport::Up);
        health.database_up();
        assert_eq!(health.word(), "publishing");
        health.database_down("row level security".to_owned());
        assert_eq!(health.word(), "cannot_read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_waits_because_it_cannot_be_marked_counts_until_its_retry() {
        let health = health();
        health.fails_until(Obstacle::Marks, "a trigger", counts_until(RETRY));
        health.fails(Obstacle::Marks, "a trigger");
        tokio::time::advance(RETRY).await;
        health.expire_failures();
        assert_eq!(why(&health).as_deref(), Some("a trigger"));
        tokio::time::advance(FAILURE_COUNTS_FOR).await;
        assert_eq!(why(&health), None);
        health.fails_until(Obstacle::Marks, "a trigger", counts_until(Duration::MAX));
        assert_eq!(why(&health).as_deref(), Some("a trigger"));
    }

    /// The connection of the maintenance may be given back, and PostgreSQL may be away.
    #[tokio::test(start_paused = true)]
    async fn a_failure_ends_without_a_server() {
        let health = health();
        health.fails(Obstacle::Lanes, "a lock");
        let ends = async {
            while health.state().failures.iter().any(Option::is_some) {
                tokio::time::sleep(SECOND).await;
            }
        };
        tokio::select! {
            () = health.watch_failures() => {}
            () = ends => {}
        }
    }

    #[test]
    fn the_reason_of_a_blocked_link_is_shown_although_another_link_is_up() {
        let health = health();
        health.link(0, LinkReport::Up);
        health.link(1, LinkReport::Down("refused".to_owned()));
        assert_eq!(health.readiness().broker, "up");
        health.link(2, LinkReport::Blocked("low on memory".to_owned()));
        let said = health.readiness();
        assert_eq!(
            (said.broker.as_str(), said.blocked),
            ("blocked: low on memory", true)
        );
        health.link(2, LinkReport::Connecting);
        assert!(!health.readiness().blocked);
    }
}
