//! outboxd: commit to PostgreSQL, and the event reaches RabbitMQ.
//!
//! Data flows one way:
//!
//! ```text
//! row -> outbox::claim -> Message -> envelope -> broker::publish -> answers -> outcome -> outbox::settle -> COMMIT
//! ```
//!
//! - pure decisions: [`outbox_core`], a crate of its own
//! - PostgreSQL, never lapin: [`outbox`]
//! - RabbitMQ, never tokio-postgres: [`broker`]
//! - both: `relay` (they meet only in its worker)
//! - the rest: [`config`], `file`, `admin`, `telemetry`, [`cli`]
//!
//! An item is public only if the program, its tests or `xtask` use it; so the compiler reports unused items.

mod admin;
pub mod broker;
pub mod cli;
pub mod config;
mod descriptors;
mod failpoint;
mod file;
pub mod outbox;
mod relay;
pub mod telemetry;
mod tls;
