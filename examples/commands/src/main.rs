//! `POST /payments` takes a payment and publishes an event. A repeated request with the same `Idempotency-Key` gets the
//! same answer and takes no payment.
//!
//! `DATABASE_URL=postgresql://… LISTEN=127.0.0.1:8080 payments-api`

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use deadpool_postgres::{Manager, Object, Pool, Runtime, Timeouts};
use outbox::{
    Event,
    http::{Command, CommandError, IdempotencyLayer, IdempotencyOptions},
    inbox::Inbox,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_postgres::{NoTls, types::ToSql};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Deserialize)]
struct Order {
    order_id: String,
    cents: i64,
}

#[derive(Serialize)]
struct Payment {
    id: i64,
    order_id: String,
    cents: i64,
}

/// The payer's account, which the gateway in front of this service has authenticated.
fn account(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("x-account")?.to_str().ok()?.to_owned())
}

async fn pay(
    Extension(command): Extension<Command>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<Response, CommandError> {
    if order.cents <= 0 {
        let why = "cents must be above zero";
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, why).into_response());
    }
    let sql = "INSERT INTO payment (account, order_id, cents) VALUES ($1, $2, $3) RETURNING id";
    let parameters: [&(dyn ToSql + Sync); 3] = [&account(&headers), &order.order_id, &order.cents];
    let row = command.query_one(sql, &parameters).await?;
    let payment = Payment {
        id: row.get(0),
        order_id: order.order_id,
        cents: order.cents,
    };
    // One transaction contains both the payment and the event.
    let taken = Event::new("payment", "taken")
        .key(payment.id.to_string())
        .json(&payment)?;
    outbox::enqueue(&*command, &taken).await?;
    let location = [(header::LOCATION, format!("/payments/{}", payment.id))];
    Ok((StatusCode::CREATED, location, Json(payment)).into_response())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let bound = Some(Duration::from_secs(5));
    let manager = Manager::new(std::env::var("DATABASE_URL")?.parse()?, NoTls);
    let pool = Pool::builder(manager)
        .max_size(8)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: bound,
            create: bound,
            recycle: bound,
        })
        .build()?;
    let commands = IdempotencyLayer::new(
        Inbox::new("payments-api")?,
        IdempotencyOptions::default(),
        move || {
            let pool = pool.clone();
            async move { pool.get().await }
        },
        |connection: &Object| connection,
        |request| account(&request.headers),
    )?;
    let forgetting = commands.clone();
    tokio::spawn(async move { forgetting.forget_expired().await });

    let app = Router::new()
        .route("/payments", post(pay))
        .route_layer(commands);
    let listener = TcpListener::bind(std::env::var("LISTEN")?).await?;
    tracing::info!("listening on {}", listener.local_addr()?);
    let mut terminated = signal(SignalKind::terminate())?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            terminated.recv().await;
        })
        .await?;
    Ok(())
}
