//! Why a consumer ends, or connects again.

use super::OptionsError;

#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    #[error("{0}")]
    Options(#[from] OptionsError),
    #[error("RabbitMQ: {0}")]
    Broker(lapin::Error),
    #[error("RabbitMQ did not answer in time ({0})")]
    Timeout(&'static str),
    #[error("RabbitMQ: {0}")]
    Ended(&'static str),
    #[error("the dead-letter queue {queue}: {why}; nothing is acknowledged")]
    DeadLetter { queue: String, why: &'static str },
    #[error("a handler panicked")]
    Panicked,
}
