//! A consumer that applies each message once: claim → handler → commit → ack, in that order.
//!
//! - Messages of one key (the `outbox-key` header) never run at the same time, and keep their order, also while one of
//!   them waits for a retry. This holds within one copy of a service. Several copies on one queue share the messages of a
//!   key, and apply them in any order, unless the queue has a single active consumer
//!   ([`ConsumerOptions::single_active_consumer`]).
//! - A message that ends the process, not only its own attempt, is tried alone from the second time on. So the runner does not
//!   give up other messages because of it.
//! - Anybody who may publish to the queue can write any message. The runner dead-letters headers that no relay would write,
//!   and believes forged headers that look right (docs/guides/consuming.md, "Who is believed").
//! - The writes of a handler that fails are rolled back. Attempts are counted in transactions of their own.
//! - No message is dropped: the runner acknowledges a message when its effect is committed, when it is a duplicate, or when
//!   its copy in the dead-letter queue is confirmed.
//! - The runner replaces a lost connection, on either side. Unacknowledged messages come again, and are duplicates if they
//!   were committed.

mod burst;
mod dead_letter;
mod message;
mod options;
mod process;
mod run;
mod session;
mod trace;
mod turns;
mod worker;

use std::future::Future;

use tokio_postgres::Transaction;

pub use message::Message;
pub use options::{ConsumerOptions, OptionsError, ReplayPolicy};
pub use run::{ConsumerError, run};

use crate::inbox::{Operation, OperationError};

/// The service's code for a message.
pub trait Handler: Send + Sync + 'static {
    /// The operation, named by the message id by default. Name it by a business key (`pay_123`) if one fact may be published
    /// under two message ids. Add the stale guard if only the newest state counts.
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        message.operation()
    }

    /// Applies the message in the transaction that holds its claim, and returns the result that duplicates get.
    fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;
}

/// The result that a handler stores for duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply(pub(crate) Option<Vec<u8>>);

impl Reply {
    pub fn none() -> Self {
        Self(None)
    }

    /// A result that is stored as JSON.
    pub fn json(value: &impl serde::Serialize) -> Result<Self, Failure> {
        serde_json::to_vec(value)
            .map(|bytes| Self(Some(bytes)))
            .map_err(|e| Failure::Reject(e.to_string()))
    }
}

/// The kind of a handler's failure. The handler decides, because only the handler knows what is safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Try again later: a lock, a time-out, an unavailable service.
    #[error("{0}")]
    Retry(String),
    /// Never try again: the message itself is wrong.
    #[error("{0}")]
    Reject(String),
    /// An external effect may or may not have happened: a person must look.
    #[error("{0}")]
    InDoubt(String),
}

impl From<tokio_postgres::Error> for Failure {
    /// The database may accept later what it refuses now, so this is a retry; the attempts are bounded.
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Retry(
            error
                .as_db_error()
                .map_or_else(|| error.to_string(), |db| db.message().to_owned()),
        )
    }
}
