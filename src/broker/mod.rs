//! RabbitMQ. Nothing here knows PostgreSQL.

pub mod connect;
mod error;
pub mod publish;
pub mod topology;
pub mod uri;

pub use connect::{Link, LinkState};
pub use error::BrokerError;
pub use publish::Publisher;
