//! RabbitMQ. Nothing here knows PostgreSQL.

mod connect;
mod error;
mod publish;
mod topology;

pub(crate) use connect::{Link, LinkState};
pub(crate) use error::BrokerError;
pub use publish::properties;
pub(crate) use publish::{Publisher, provoked};
