//! The outbox in PostgreSQL. Nothing here knows RabbitMQ.

pub mod claim;
pub mod ctid;
pub mod dead;
mod error;
mod hosts;
pub mod low_water;
pub mod migrate;
pub mod operation;
pub mod preflight;
pub mod replay;
pub mod retention;
pub mod session;
pub mod settle;
pub mod share;
pub mod status;
pub mod wake;
pub mod work;

pub use error::OutboxError;
