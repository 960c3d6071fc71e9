//! What this process knows of its own health, for `/readyz`, the metrics and `outbox.relay`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

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
    stopping: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkReport {
    Connecting,
    Up,
    Blocked(String),
    Down(String),
}

/// What `/readyz` answers for one source.
#[derive(Debug, Clone, serde::Serialize, PartialEq, Eq)]
pub struct Readiness {
    pub source: String,
    pub ready: bool,
    pub database: String,
    pub broker: String,
    pub blocked: bool,
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
        let ready = matches!(state.database, Some(Ok(()))) && up && !blocked && !state.stopping;
        Readiness {
            source: self.source.clone(),
            ready,
            database,
            broker,
            blocked,
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
