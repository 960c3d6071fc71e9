//! `/metrics`, `/livez`, `/readyz`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router, extract::State, http::StatusCode, http::header, response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::relay::Readiness;

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

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    sources: Vec<Ask>,
    stop: CancellationToken,
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
    let serving = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!(error = %error, "the admin listener ended");
        },
        () = folding => {}
    }
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
