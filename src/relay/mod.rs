//! The relay: for each source, workers that claim, publish and settle, a scout that finds them work, a listener that
//! lets it sleep, and a housekeeper. One stop token goes down; every task is owned and restarted by its supervisor.

mod audit;
pub mod board;
pub mod health;
mod hints;
mod housekeeper;
mod inspection;
mod listener;
mod publishing;
mod scout;
mod seats;
mod shared;
mod silence;
mod sleep;
mod timed_out;
mod worker;

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_core::{
    backoff::{self, RetryPolicy},
    circuit::Circuits,
    envelope::{EnvelopeBuilder, EnvelopeOptions},
    route::{RouteError, Router, RoutingRules},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Retention},
    outbox::settle::Keep,
    telemetry::metrics,
};

pub use health::{Health, Readiness};
use shared::Shared;

/// A built relay of one source; nothing runs yet.
pub struct SourceRelay {
    shared: Arc<Shared>,
    retention: Retention,
    host: String,
}

fn router(config: &Config) -> Result<Router, RouteError> {
    Router::new(RoutingRules::from(&config.routing))
}

/// Exchanges that the configured routes publish to.
pub fn exchanges(config: &Config) -> Result<Vec<String>, RouteError> {
    Ok(router(config)?.exchanges())
}

/// Builds the relays of every source. Opens nothing.
pub fn build(config: &Config) -> Result<Vec<SourceRelay>, RouteError> {
    let host = hostname();
    config
        .sources
        .iter()
        .map(|source| {
            let relay = &config.relay;
            let router = router(config)?;
            let policy = RetryPolicy {
                max_attempts: relay.max_attempts,
                backoff_initial: relay.backoff_initial,
                backoff_max: relay.backoff_max,
            };
            let shared = Shared {
                exchanges: router.exchanges(),
                source: source.clone(),
                relay: relay.clone(),
                keep: if config.retention.sent.is_zero() {
                    Keep::Deleted
                } else {
                    Keep::Marked
                },
                builder: EnvelopeBuilder::new(router, EnvelopeOptions::from(config)),
                policy,
                circuits: Mutex::new(Circuits::new(policy)),
                caution: Mutex::default(),
                board: board::Board::default(),
                hints: hints::Hints::default(),
                health: Health::new(&source.name),
                sleep: Default::default(),
                seats: Default::default(),
                silence: Default::default(),
                timed_out: Default::default(),
                instance: format!("outboxd/{host}/{}", std::process::id()),
            };
            metrics::start_at_zero(&source.name);
            Ok(SourceRelay {
                shared: Arc::new(shared),
                retention: config.retention.clone(),
                host: host.clone(),
            })
        })
        .collect()
}

impl SourceRelay {
    pub fn readiness(&self) -> impl Fn() -> Readiness + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.health.readiness()
    }

    /// Runs until `stop`, then drains: nothing new is claimed, what was published is settled, connections close.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for number in 0..self.shared.relay.workers {
            let shared = Arc::clone(&self.shared);
            let task_stop = stop.clone();
            tasks.spawn(supervised(
                "worker",
                Arc::clone(&self.shared),
                stop.clone(),
                move || worker::run(Arc::clone(&shared), number, task_stop.clone()),
            ));
        }
        let (shared, task_stop) = (Arc::clone(&self.shared), stop.clone());
        tasks.spawn(supervised(
            "scout",
            Arc::clone(&self.shared),
            stop.clone(),
            move || scout::run(Arc::clone(&shared), task_stop.clone()),
        ));
        if self.shared.source.database.listen {
            let (shared, task_stop) = (Arc::clone(&self.shared), stop.clone());
            tasks.spawn(supervised(
                "listener",
                Arc::clone(&self.shared),
                stop.clone(),
                move || listener::run(Arc::clone(&shared), task_stop.clone()),
            ));
        }
        let (shared, task_stop, retention, host) = (
            Arc::clone(&self.shared),
            stop.clone(),
            self.retention.clone(),
            self.host.clone(),
        );
        tasks.spawn(supervised(
            "housekeeper",
            Arc::clone(&self.shared),
            stop.clone(),
            move || {
                housekeeper::run(
                    Arc::clone(&shared),
                    retention.clone(),
                    host.clone(),
                    task_stop.clone(),
                )
            },
        ));
        stop.cancelled().await;
        self.shared.health.stopping();
        while tasks.join_next().await.is_some() {}
    }
}

/// Starts a task again when it panics, with back-off. Its connections went with it, so the servers rolled back what
/// it held.
async fn supervised<F, T>(
    name: &'static str,
    shared: Arc<Shared>,
    stop: CancellationToken,
    start: F,
) where
    F: Fn() -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut restarts: u32 = 0;
    while !stop.is_cancelled() {
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                restarts = restarts.saturating_add(1);
                metrics::worker_restarted(shared.health.source());
                tracing::error!(
                    source = shared.health.source(),
                    task = name,
                    restarts,
                    "panicked; starting it again"
                );
            }
            // It ended because of the stop.
            Some(Ok(()) | Err(_)) | None => return,
        }
        let delay = backoff::delay(
            restarts,
            Duration::from_millis(200),
            Duration::from_secs(10),
            &mut rand::rng(),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// As the kernel has it; containers and hosts alike have this file.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}
