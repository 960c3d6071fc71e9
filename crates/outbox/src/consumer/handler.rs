//! What a service implements, and how its handler answers.

use std::future::Future;

use tokio_postgres::Transaction;

use super::Message;
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
