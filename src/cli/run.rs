//! `outboxd run`.

use std::{net::SocketAddr, process, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{CliError, check};
use crate::{
    admin,
    config::Config,
    outbox::session::Session,
    relay,
    telemetry::{logs, metrics},
};

/// Configuration, logs and metrics are ready before the runtime starts; a bad one opens no socket.
pub(super) fn run(config: Config) -> Result<(), CliError> {
    logs::start(&config.log).map_err(|e| CliError::Setup(e.to_string()))?;
    let metrics = || metrics::install().map_err(|e| CliError::Failure(format!("metrics: {e}")));
    // Only with a listener: it folds the histograms' samples, which would else be kept for ever.
    let admin = match config.admin.listen {
        Some(address) => Some((address, metrics()?)),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failure(format!("cannot start the async runtime: {e}")))?;
    let grace = config.relay.shutdown_grace;
    let result = runtime.block_on(relay(config, admin));
    // A task that hangs in a system call must not keep the process: its sockets close with it.
    runtime.shutdown_timeout(Duration::from_secs(1).min(grace));
    result
}

async fn relay(
    config: Config,
    admin: Option<(SocketAddr, PrometheusHandle)>,
) -> Result<(), CliError> {
    // Taken first, so that a signal from here on is never lost.
    let mut signals =
        Signals::new().map_err(|e| CliError::Failure(format!("cannot handle signals: {e}")))?;
    let sources = relay::build(&config).map_err(|e| CliError::Setup(e.to_string()))?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    // A stop while a server does not answer the first questions is a stop.
    tokio::select! {
        biased;
        () = signals.next() => return Ok(()),
        ready = preflight(&config) => ready?,
    }
    if let Some((address, metrics)) = admin {
        let listener = admin::bind(address)
            .await
            .map_err(|e| CliError::Setup(e.to_string()))?;
        tracing::info!(address = %address, "serving /metrics, /livez and /readyz");
        let asks = sources
            .iter()
            .map(|s| Box::new(s.readiness()) as _)
            .collect();
        // Not stopped with the relay: a drain is worth watching. It ends with the process.
        tokio::spawn(admin::serve(
            listener,
            metrics,
            asks,
            CancellationToken::new(),
        ));
    }
    for source in sources {
        tasks.spawn(source.run(stop.clone()));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        sources = config.sources.len(),
        workers = config.relay.workers,
        batch_size = config.relay.batch_size,
        "relay started"
    );

    signals.next().await;
    tracing::info!(grace = ?config.relay.shutdown_grace, "stopping: claiming nothing new, settling what is published");
    stop.cancel();
    let drained = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = drained => tracing::info!("stopped"),
        () = signals.next() => {
            tracing::warn!("second signal: leaving at once; what was in flight is published again");
            logs::flush();
            process::exit(1);
        }
        () = tokio::time::sleep(config.relay.shutdown_grace) => {
            tracing::warn!("the grace period is over; what was in flight is published again");
            logs::flush();
            process::exit(0);
        }
    }
    Ok(())
}

/// What no waiting mends ends the start: a schema or a grant that is missing.
/// A server that is away is waited for, by the relay itself.
async fn preflight(config: &Config) -> Result<(), CliError> {
    for source in &config.sources {
        match Session::connect(&source.database, "outboxd/start").await {
            Ok(session) => check::require_ready(&session).await?,
            Err(error) if outcome_is_final(&error) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(source = source.name, error = %error, "PostgreSQL is away; waiting for it")
            }
        }
    }
    Ok(())
}

fn outcome_is_final(error: &crate::outbox::OutboxError) -> bool {
    use crate::outbox::OutboxError;
    matches!(error, OutboxError::Config(_) | OutboxError::Tls(_)) || error.is_schema()
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
