//! The RabbitMQ side of the relay. It does not know PostgreSQL.

mod connect;
mod error;
mod publish;
mod topology;
mod wire;

pub(crate) use connect::{Link, LinkState};
pub(crate) use error::BrokerError;
pub(crate) use publish::{Publisher, provoked};
pub(crate) use topology::Exchange;
pub use wire::properties;
