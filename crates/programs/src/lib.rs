//! Finds PostgreSQL, RabbitMQ and PgBouncer on this machine, and installs them.
//!
//! A separate crate, so that a task that only needs their paths does not have to compile their clients.

mod error;
mod install;
mod place;

pub use error::{Error, Result};
pub use install::{Tools, install};
pub use place::{pgbouncer, postgres, rabbitmq};
