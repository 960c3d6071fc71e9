//! The relay: for each source, workers that claim, publish and settle, a scout that finds lanes with work, a listener that
//! lets the relay sleep, and the maintenance. One stop token goes down; a supervisor owns each task and starts it again.

mod audit;
mod circuits;
mod connections;
mod context;
pub mod health;
mod hints;
mod inspection;
mod jobs;
mod lanes;
mod listener;
mod maintenance;
mod outages;
mod pruning;
mod publishing;
mod reading;
mod scout;
mod settling;
mod silence;
mod sleep;
mod tally;
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
    scheduling::Tuning,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error_span};

use crate::{
    config::{Config, Retention},
    outbox::settle::Keep,
    telemetry::{metrics, panics},
};

use context::Context;
use health::LinkReport;
pub use health::{Health, Readiness};

/// The relay of one source, built and not running.
pub struct SourceRelay {
    context: Arc<Context>,
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
            let context = Context {
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
                tuning: Tuning::MEASURED,
                lanes: lanes::Lanes::new(Tuning::MEASURED),
                hints: hints::Hints::default(),
                health: Arc::new(Health::new(&source.name)),
                sleep: Default::default(),
                connections: Default::default(),
                silence: Default::default(),
                timed_out: Default::default(),
                outages: Default::default(),
                tally: Default::default(),
                instance: format!("outboxd/{host}/{}", std::process::id()),
            };
            metrics::start_at_zero(&source.name);
            Ok(SourceRelay {
                context: Arc::new(context),
                retention: config.retention.clone(),
                host: host.clone(),
            })
        })
        .collect()
}

impl SourceRelay {
    pub fn readiness(&self) -> impl Fn() -> Readiness + Send + Sync + 'static {
        let context = Arc::clone(&self.context);
        move || context.health.readiness()
    }

    /// Runs until `stop`. Then it claims nothing new, settles what it published, and closes its connections.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for number in 0..self.context.relay.workers {
            let context = Arc::clone(&self.context);
            let task_stop = stop.clone();
            tasks.spawn(supervised(
                Task::Worker(number),
                Arc::clone(&self.context.health),
                stop.clone(),
                move || worker::run(Arc::clone(&context), number, task_stop.clone()),
            ));
        }
        let (context, task_stop) = (Arc::clone(&self.context), stop.clone());
        tasks.spawn(supervised(
            Task::Scout,
            Arc::clone(&self.context.health),
            stop.clone(),
            move || scout::run(Arc::clone(&context), task_stop.clone()),
        ));
        if self.context.source.database.listen {
            let (context, task_stop) = (Arc::clone(&self.context), stop.clone());
            tasks.spawn(supervised(
                Task::Listener,
                Arc::clone(&self.context.health),
                stop.clone(),
                move || listener::run(Arc::clone(&context), task_stop.clone()),
            ));
        }
        let (context, task_stop, retention, host) = (
            Arc::clone(&self.context),
            stop.clone(),
            self.retention.clone(),
            self.host.clone(),
        );
        tasks.spawn(supervised(
            Task::Maintenance,
            Arc::clone(&self.context.health),
            stop.clone(),
            move || {
                let health = Arc::clone(&context.health);
                let run = maintenance::run(
                    Arc::clone(&context),
                    retention.clone(),
                    host.clone(),
                    task_stop.clone(),
                );
                async move {
                    tokio::select! {
                        () = run => {}
                        () = health.watch_failures() => {}
                    }
                }
            },
        ));
        stop.cancelled().await;
        self.context.health.stopping();
        while tasks.join_next().await.is_some() {}
    }
}

#[derive(Debug, Clone, Copy)]
enum Task {
    Worker(usize),
    Scout,
    Listener,
    Maintenance,
}

impl Task {
    fn as_str(self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Scout => "scout",
            Self::Listener => "listener",
            Self::Maintenance => "maintenance",
        }
    }
}

/// Starts a task again after a panic, with back-off. The panic closed the task's connections, so the servers rolled back
/// its transactions.
async fn supervised<F, T>(task: Task, health: Arc<Health>, stop: CancellationToken, start: F)
where
    F: Fn() -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut restarts: u32 = 0;
    while !stop.is_cancelled() {
        let mut run = JoinSet::new();
        let source = health.source();
        // Each line of the task names its source, also one that is written where nobody knows the source.
        run.spawn(start().instrument(error_span!("task", source)));
        match run.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                restarts = restarts.saturating_add(1);
                metrics::worker_restarted(source);
                if let Task::Worker(number) = task {
                    // Its connections are closed.
                    health.link(number, LinkReport::Connecting);
                }
                tracing::error!(
                    source,
                    task = task.as_str(),
                    restarts,
                    text = panics::text(&*error.into_panic()),
                    "panicked; starting it again"
                );
            }
            // A task returns only after a stop.
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

/// The kernel's hostname. Containers and hosts both have this file.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panicked_has_no_connection_to_the_broker() {
        let health = Arc::new(Health::new("default"));
        let stop = CancellationToken::new();
        let (of_task, stop_task) = (Arc::clone(&health), stop.clone());
        let runs = std::sync::atomic::AtomicU32::new(0);
        let start = move || {
            let first = runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            let (health, stop) = (Arc::clone(&of_task), stop_task.clone());
            async move {
                if first {
                    health.link(0, LinkReport::Up);
                    panic!("a test's");
                }
                assert_eq!(health.readiness().broker, "connecting");
                health.link(0, LinkReport::Down("seen".to_owned()));
                stop.cancel();
            }
        };
        supervised(Task::Worker(0), Arc::clone(&health), stop, start).await;
        assert_eq!(health.readiness().broker, "seen");
    }
}
