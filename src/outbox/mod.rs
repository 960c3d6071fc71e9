//! The outbox in PostgreSQL. Nothing here knows RabbitMQ.

pub(crate) mod audit;
pub(crate) mod blockers;
mod candidate;
pub(crate) mod claim;
pub(crate) mod ctid;
pub(crate) mod dead;
mod error;
pub(crate) mod find;
pub(crate) mod held;
mod hosts;
pub(crate) mod known;
pub(crate) mod migrate;
pub(crate) mod operation;
pub mod parts;
pub(crate) mod pooler;
pub(crate) mod preflight;
pub(crate) mod rehearsal;
pub(crate) mod replay;
pub(crate) mod retention;
mod row;
pub mod schema;
pub(crate) mod search;
pub mod session;
mod settings;
pub(crate) mod settle;
pub(crate) mod status;
pub(crate) mod unreadable;
pub(crate) mod wake;
pub(crate) mod whereabouts;
pub(crate) mod work;

pub use error::OutboxError;
