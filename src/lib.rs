//! outboxd: a commit to PostgreSQL brings the event to RabbitMQ.
//!
//! Data flows one way:
//!
//! ```text
//! row -> outbox::claim -> Item -> wave -> broker::publish -> (Outgoing, Answer) -> Item -> outbox::settle -> COMMIT
//! ```
//!
//! - pure decisions: [`outbox_core`], a separate crate
//! - PostgreSQL, without lapin: [`outbox`]
//! - RabbitMQ, without tokio-postgres: [`broker`]
//! - both: `relay` (they meet only in its worker)
//! - the rest: [`config`], `file`, `tls`, `peer`, `descriptors`, `admin`, [`telemetry`], `failpoint`, [`cli`]
//!
//! An item is public only if the program, the tests or `crates/reference` use it, so the compiler reports unused items.

mod admin;
pub mod broker;
pub mod cli;
pub mod config;
mod descriptors;
mod failpoint;
mod file;
pub mod outbox;
mod peer;
mod relay;
pub mod telemetry;
mod tls;
