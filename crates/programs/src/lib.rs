//! Where PostgreSQL, RabbitMQ and PgBouncer are on this machine, and how they get there.
//!
//! A crate of its own, because a task that only has to find them must not compile their clients first.

mod error;
mod install;
mod place;

pub use error::{Error, Result};
pub use install::{Tools, install};
pub use place::{pgbouncer, postgres, rabbitmq};
