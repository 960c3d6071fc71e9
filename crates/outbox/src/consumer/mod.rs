//! A consumer that applies each message once: claim → handler → commit → ack, in that order.
//!
//! - Messages of one key (the `outbox-key` header) never run at the same time, and keep their order, also while one of
//!   them waits for a retry. This holds within one copy of a service. Several copies on one queue share the messages of a
//!   key, and apply them in any order, unless the queue has a single active consumer
//!   ([`ConsumerOptions::single_active_consumer`]).
//! - A message that ends the process, not only its own attempt, is tried alone after the second time: what is applied
//!   beside it is not given up for it.
//! - What a message is and says is the word of whoever may publish to the queue. Headers that no relay would write are
//!   dead-lettered; forged ones that look right are believed (docs/guides/consuming.md, "Who is believed").
//! - What a handler wrote is rolled back with its failure. Attempts are counted in transactions of their own.
//! - Nothing is dropped: a message is acknowledged when its effect is committed, when it is a duplicate, or when its
//!   copy in the dead-letter queue is confirmed.
//! - A lost connection, on either side, is reconnected; what was not acknowledged comes again, and is a duplicate if
//!   it was committed.

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

/// What a service does with a message.
pub trait Handler: Send + Sync + 'static {
    /// What names the operation: by default the message id. Name a business key instead (`pay_123`) where one fact may
    /// be published under two message ids; add the stale guard where only the newest state counts.
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        message.operation()
    }

    /// Applies the message, inside the transaction that holds its claim, and returns what duplicates get.
    fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;
}

/// What a handler leaves for duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply(pub(crate) Option<Vec<u8>>);

impl Reply {
    pub fn none() -> Self {
        Self(None)
    }

    /// Stored as JSON.
    pub fn json(value: &impl serde::Serialize) -> Result<Self, Failure> {
        serde_json::to_vec(value)
            .map(|bytes| Self(Some(bytes)))
            .map_err(|e| Failure::Reject(e.to_string()))
    }
}

/// How a handler failed; it decides, because it alone knows what is safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Again later: a lock, a time-out, a service that is away.
    #[error("{0}")]
    Retry(String),
    /// Never: the message itself is wrong.
    #[error("{0}")]
    Reject(String),
    /// An external effect may or may not have happened: a person must look.
    #[error("{0}")]
    InDoubt(String),
}

impl From<tokio_postgres::Error> for Failure {
    /// What the database refuses once it may take later; the attempts are bounded.
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Retry(
            error
                .as_db_error()
                .map_or_else(|| error.to_string(), |db| db.message().to_owned()),
        )
    }
}
