//! outboxd: commit to PostgreSQL, and the event reaches RabbitMQ.
//!
//! One way the data flows:
//!
//! ```text
//! row -> outbox::claim -> Message -> envelope -> broker::publish -> answers -> outcome -> outbox::settle -> COMMIT
//! ```
//!
//! - pure, no I/O: [`message`], [`route`], [`header`], [`envelope`], [`outcome`], [`backoff`], [`reason`], [`settlement`]
//! - PostgreSQL, never lapin: [`outbox`]
//! - RabbitMQ, never tokio-postgres: [`broker`]
//! - both: [`relay`] (its worker is the only place where they meet)
//! - around it: [`config`], [`admin`], [`telemetry`], [`cli`]

pub mod admin;
pub mod backoff;
pub mod broker;
pub mod cli;
pub mod config;
pub mod envelope;
mod failpoint;
pub mod header;
pub mod message;
pub mod outbox;
pub mod outcome;
pub mod reason;
pub mod relay;
pub mod route;
pub mod settlement;
pub mod telemetry;
pub mod tls;
