//! `outboxd run`.

use std::{net::SocketAddr, process, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    CliError,
    reload::Reload,
    signals::{Asked, Signals},
    start,
};
use crate::{
    admin,
    config::{Config, LoadOptions},
    descriptors, relay,
    telemetry::{logs, metrics},
};

/// Configuration, logs and metrics are ready before the first connection; a bad configuration opens no connection.
pub(super) fn run(options: LoadOptions) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failure(format!("cannot start the async runtime: {e}")))?;
    // Handle signals first: from here on no signal ends the process by its default action, and none is lost.
    let signals = {
        let _runtime = runtime.enter();
        Signals::new().map_err(|e| CliError::Failure(format!("cannot handle signals: {e}")))?
    };
    let config = Config::load(options.clone())?;
    let level = logs::start(&config.log).map_err(|e| CliError::Setup(e.to_string()))?;
    let metrics = || metrics::install().map_err(|e| CliError::Failure(format!("metrics: {e}")));
    // Install metrics only with a listener: the listener folds the histograms' samples, which otherwise accumulate without
    // bound.
    let admin = match config.admin.listen {
        Some(address) => Some((address, metrics()?)),
        None => None,
    };
    let grace = config.relay.shutdown_grace;
    let stops = Stops {
        signals,
        reload: Reload::new(options, config.clone(), level),
    };
    let result = runtime.block_on(relay(config, stops, admin));
    // A task that hangs in a system call must not keep the process alive. Its sockets close with the process.
    runtime.shutdown_timeout(Duration::from_secs(1).min(grace));
    result
}

/// Waits for a signal that stops the relay, and handles other signals meanwhile.
struct Stops {
    signals: Signals,
    reload: Reload,
}

impl Stops {
    async fn next(&mut self) {
        loop {
            match self.signals.next().await {
                Asked::Stop => return,
                Asked::Reload => self.reload.now().await,
                Asked::Nothing(name) => {
                    tracing::info!(signal = name, "this signal has no effect");
                }
            }
        }
    }

    /// Waits for a second stop; a drain ignores reloads.
    async fn again(&mut self) {
        while self.signals.next().await != Asked::Stop {}
    }
}

async fn relay(
    config: Config,
    mut stops: Stops,
    admin: Option<(SocketAddr, PrometheusHandle)>,
) -> Result<(), CliError> {
    let sources = relay::build(&config).map_err(|e| CliError::Setup(e.to_string()))?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    // The port comes before the first connection: a relay that waits for a server is alive, and not ready.
    if let Some((address, metrics)) = admin {
        let most = admin_connections(&config);
        let listener = admin::bind(address)
            .await
            .map_err(|e| CliError::Setup(e.to_string()))?;
        tracing::info!(address = %address, "serving /metrics, /livez and /readyz");
        let asks = sources
            .iter()
            .map(|s| Box::new(s.readiness()) as _)
            .collect();
        // The server runs until the process ends, so that a drain can be watched.
        tokio::spawn(admin::serve(listener, metrics, asks, most));
    }
    // A stop also ends checks that wait for a server.
    tokio::select! {
        biased;
        () = stops.next() => return Ok(()),
        ready = start::ready(&config) => ready?,
    }
    for source in sources {
        tasks.spawn(source.run(stop.clone()));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %config.file,
        sources = config.sources.len(),
        workers = config.relay.workers,
        batch_size = config.relay.batch_size,
        "relay started"
    );

    stops.next().await;
    tracing::info!(grace = ?config.relay.shutdown_grace, "stopping: claiming no new messages, settling published messages");
    stop.cancel();
    let drained = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = drained => tracing::info!("stopped"),
        () = stops.again() => {
            tracing::warn!("second signal: ending at once; messages in flight are published again");
            logs::flush();
            process::exit(1);
        }
        () = tokio::time::sleep(config.relay.shutdown_grace) => {
            tracing::warn!("the grace period is over; messages in flight are published again");
            logs::flush();
            process::exit(0);
        }
    }
    Ok(())
}

/// The admin port's share of the descriptors that this process may open.
fn admin_connections(config: &Config) -> usize {
    let allowed = descriptors::raise();
    let needed = descriptors::needed(config.sources.len(), config.relay.workers);
    let most = descriptors::for_admin(allowed, needed);
    if allowed < needed + most as u64 {
        tracing::warn!(
            allowed,
            needed = needed + most as u64,
            "this process may open few files and sockets; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
    most
}
