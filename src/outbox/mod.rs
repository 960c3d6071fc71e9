//! The outbox in PostgreSQL. Nothing here knows RabbitMQ.

pub mod claim;
mod error;
pub mod low_water;
pub mod migrate;
pub mod retention;
pub mod session;
pub mod settle;
pub mod status;
pub mod wake;
pub mod work;

pub use error::OutboxError;
