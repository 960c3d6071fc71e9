//! outboxd: commit to PostgreSQL, and the event reaches RabbitMQ.
//!
//! One way the data flows:
//!
//! ```text
//! row -> outbox::claim -> Message -> envelope -> broker::publish -> answers -> outcome -> outbox::settle -> COMMIT
//! ```
//!
//! - what is decided, pure: [`outbox_core`], a crate of its own
//! - PostgreSQL, never lapin: [`outbox`]
//! - RabbitMQ, never tokio-postgres: [`broker`]
//! - both: `relay` (its worker is the only place where they meet)
//! - around it: [`config`], `file`, `admin`, `telemetry`, [`cli`]
//!
//! Public is what the program, its tests and `xtask` use; so the compiler tells what nobody uses.

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
