//! Commands over HTTP, each applied once: a tower layer for the `Idempotency-Key` header.
//!
//! ```no_run
//! # use axum::{Extension, Json, Router, http::StatusCode, routing::post};
//! # use outbox::{http::{Command, CommandError, IdempotencyLayer, IdempotencyOptions}, inbox::Inbox};
//! # async fn connect() -> Result<Box<tokio_postgres::Client>, tokio_postgres::Error> {
//! #     let (client, connection) = tokio_postgres::connect("", tokio_postgres::NoTls).await?;
//! #     tokio::spawn(connection);
//! #     Ok(Box::new(client))
//! # }
//! async fn pay(Extension(command): Extension<Command>, body: String) -> Result<StatusCode, CommandError> {
//!     // Inside the command's transaction: committed together with the response, or not at all.
//!     command.execute("INSERT INTO payment (order_id) VALUES ($1)", &[&body]).await?;
//!     Ok(StatusCode::CREATED)
//! }
//! # fn service() -> Result<(), Box<dyn std::error::Error>> {
//! let commands = IdempotencyLayer::new(
//!     Inbox::new("payments-api")?,
//!     IdempotencyOptions::default(),
//!     || connect(),                    // a connection of your pool
//!     |connection| connection,         // as &tokio_postgres::Client
//!     |request| Some(request.headers.get("x-account")?.to_str().ok()?.to_owned()), // who calls
//! )?;
//! let app: Router = Router::new().route("/payments", post(pay)).route_layer(commands);
//! # Ok(()) }
//! ```
//!
//! One transaction holds the claim of the key, the handler's writes, and the stored response. So every repetition gets the
//! answer of the first request again, with `Idempotent-Replayed: true`, from any instance of the service, also if the first
//! answer was lost on its way:
//!
//! | request | answer |
//! |---|---|
//! | a new key | the handler's |
//! | the same again | the stored answer: status, chosen headers, body |
//! | the same, while the first one runs | 409, `Retry-After` |
//! | the same key with another method, query, content type or body | 422 |
//! | no key where a key is required, or a malformed key | 400 |
//!
//! The status decides what the layer keeps ([`keep`]). It commits a success. It stores a refusal (4xx) and rolls the handler's
//! writes back. A failure (5xx, a panic, a time-out) and an answer that may change by itself (401, 403, 408, 409, 425, 429)
//! leave nothing, and the key is free again.
//!
//! A client that hangs up does not cancel its command. Effects outside of the database belong to a consumer: enqueue
//! an event in the command's transaction.
//!
//! The layer follows draft-ietf-httpapi-idempotency-key-header; docs/guides/commands.md names the differences.

mod command;
mod execute;
mod key;
mod layer;
mod options;
mod problem;
mod shared;
mod stored;

pub use command::{Command, CommandError};
pub use layer::{IdempotencyLayer, Idempotent};
pub use options::{IdempotencyError, IdempotencyOptions, Keep, keep};
