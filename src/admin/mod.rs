//! `/metrics`, `/livez`, `/readyz`.
//!
//! Anybody who reaches the port can be a bad client, so one connection is one request, each has a deadline, and there
//! are never more than a fixed number: a newcomer takes the place of the oldest. Clients that say nothing thus never
//! keep a health check out, nor take descriptors that the relay needs.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router, extract::State, http::StatusCode, http::header, response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::relay::Readiness;

/// To say what is asked for.
const HEAD: Duration = Duration::from_secs(5);
/// From the connect to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(15);
/// Of a request's head.
const HEAD_BYTES: usize = 16 << 10;

type Ask = Box<dyn Fn() -> Readiness + Send + Sync>;

struct Admin {
    metrics: PrometheusHandle,
    sources: Vec<Ask>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "admin.listen = \"{address}\": {source}. Free the port, or set admin.listen to another (or to \"off\")"
)]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Takes the port at once, so that one that is in use is known before anything is claimed.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })
}

/// Serves, with `most` connections at once.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    sources: Vec<Ask>,
    most: usize,
) {
    let upkeep = metrics.clone();
    let admin = Arc::new(Admin { metrics, sources });
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin);
    // Histograms keep raw samples until they are folded into their buckets; without scrapes nobody would fold them.
    let folding = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    };
    tokio::select! {
        () = accept(listener, routes, most) => {}
        () = folding => {}
    }
}

async fn accept(listener: TcpListener, routes: Router, most: usize) {
    let mut open = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::with_capacity(most);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client is gone already, or the process has no descriptor left: neither ends the listener.
            Err(error) => {
                tracing::debug!(error = %error, "the admin port could not take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while open.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        while open.len() >= most {
            if let Some(oldest) = oldest_first.pop_front() {
                oldest.abort();
            }
            // Its descriptor is free before the next one is counted.
            open.join_next().await;
        }
        oldest_first.push_back(open.spawn(one(stream, routes.clone())));
    }
}

/// One request. The deadline ends a client that is slow to ask or to read.
async fn one(stream: TcpStream, routes: Router) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // What a client does wrong is its own affair; a log line for each would be one more way to flood.
    let _ = tokio::time::timeout(WHOLE, serving).await;
}

async fn scrape(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
}

async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let sources: Vec<Readiness> = admin.sources.iter().map(|ask| ask()).collect();
    let ready = sources.iter().all(|s| s.ready);
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        code,
        Json(serde_json::json!({ "ready": ready, "sources": sources })),
    )
}
