//! `/metrics`, `/livez`, `/readyz`.
//!
//! Any client that reaches the port may misbehave. So a connection carries one request and has a deadline, and the number of
//! connections is fixed: a new connection replaces the oldest. Silent clients therefore never keep a health check out, and
//! never take descriptors that the relay needs.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
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

/// Longest time for a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Longest time from the connect to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(15);
/// Largest head of a request.
const HEAD_BYTES: usize = 16 << 10;

/// The header `server` of each answer: `outboxd healthcheck` knows by it that no other program has the port.
pub const SERVER: &str = "outboxd";

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

/// Binds the port at once, so that a port in use is reported before the first claim.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })
}

/// Serves at most `most` connections at once.
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
        .layer(middleware::map_response(signed))
        .with_state(admin);
    // Histograms keep raw samples until a scrape folds them into their buckets. This task folds them without scrapes.
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
            // The client is gone, or the process has no free descriptor. Neither ends the listener.
            Err(error) => {
                tracing::debug!(error = %error, "the admin port could not accept a connection");
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
            // Wait until its descriptor is free before the next connection counts.
            open.join_next().await;
        }
        oldest_first.push_back(open.spawn(one(stream, routes.clone())));
    }
}

/// Serves one request. The deadline ends a client that sends or reads slowly.
async fn one(stream: TcpStream, routes: Router) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // Do not log a client's errors: a log line for each would be another way to flood the relay.
    let _ = tokio::time::timeout(WHOLE, serving).await;
}

async fn signed(mut response: Response) -> Response {
    let name = HeaderValue::from_static(SERVER);
    response.headers_mut().insert(header::SERVER, name);
    response
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
