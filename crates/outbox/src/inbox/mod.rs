//! The consumer's side: each business operation applied once.
//!
//! The check, the business write and the stored result are one transaction; the primary key of `inbox.message` makes the
//! operation unique. Whatever the broker repeats, and whenever consumers race or a process dies, either all of it is
//! committed, or nothing.
//!
//! ```no_run
//! # use outbox::inbox::{Claimed, Inbox, Operation};
//! # async fn handle(client: &mut tokio_postgres::Client, message_id: &str, body: &[u8])
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! let inbox = Inbox::new("payments")?;
//! let operation = Operation::new(message_id, "order_placed", "application/json", body)?;
//! let transaction = client.transaction().await?;
//! match inbox.claim(&transaction, &operation).await? {
//!     Claimed::First => {
//!         transaction.execute("INSERT INTO payment (order_id, cents) VALUES ($1, $2)", &[&1042_i64, &1999_i32]).await?;
//!         inbox.complete(&transaction, &operation, &"paid").await?;
//!         transaction.commit().await?;
//!     }
//!     Claimed::Duplicate(stored) => println!("done before: {:?}", stored.json::<String>()?),
//!     Claimed::Stale => {} // a later position of this entity was applied before
//!     Claimed::Conflict => return Err("the same id with another body: somebody must look".into()),
//!     Claimed::InDoubt => return Err("an external effect was begun and never recorded".into()),
//! }
//! // Acknowledge only now.
//! # Ok(())
//! # }
//! ```

mod claim;
mod effect;
mod operation;
mod transition;
mod upkeep;

pub use effect::{Begun, Doubt};
#[cfg(feature = "consumer")]
pub(crate) use operation::fingerprint;
pub use operation::{Operation, OperationError};
pub use transition::{Advanced, Transition};

use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::{
    GenericClient, Row,
    types::{ToSql, Type},
};

/// Largest stored result, in bytes; the schema refuses more.
pub const MAX_RESULT: usize = 1 << 20;

/// The inbox of one consumer. If two consumers process one message, these are two operations.
#[derive(Debug, Clone)]
pub struct Inbox {
    consumer: String,
}

/// The outcome of a claim. Only `First` goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The operation was not applied before: apply it, complete it, commit.
    First,
    /// The operation was applied before, with this result.
    Duplicate(Stored),
    /// The key was used with another fingerprint. Never acknowledge such a message silently.
    Conflict,
    /// A later position of the entity was applied before.
    Stale,
    /// An external effect under this key was begun and never recorded.
    InDoubt,
}

/// A stored result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// `None` if the operation was completed without a result.
    pub bytes: Option<Vec<u8>>,
    pub content_type: Option<String>,
}

impl Stored {
    /// The result that `complete` stored; `None` without a result.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, InboxError> {
        self.bytes
            .as_deref()
            .map(serde_json::from_slice)
            .transpose()
            .map_err(InboxError::Result)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("inbox: {0}")]
    Database(#[from] tokio_postgres::Error),
    #[error("a stored result has another shape than the handler expects: {0}")]
    Result(serde_json::Error),
    #[error("a result of {bytes} bytes is above {MAX_RESULT}; store a reference to it instead")]
    ResultTooLarge { bytes: usize },
    #[error("a consumer's name must have 1 to 255 bytes")]
    Consumer,
    #[error("a function of the schema inbox returned no row; is it the one of this version?")]
    NoAnswer,
}

impl Inbox {
    /// `consumer` names the consumer; the name must be stable over restarts and versions.
    pub fn new(consumer: impl Into<String>) -> Result<Self, InboxError> {
        let consumer = consumer.into();
        if consumer.is_empty() || consumer.len() > 255 {
            return Err(InboxError::Consumer);
        }
        Ok(Self { consumer })
    }

    pub fn consumer(&self) -> &str {
        &self.consumer
    }
}

/// Calls a function of the schema in one round trip: with the types given, nothing needs to be prepared. It also works through a
/// pooler that gives each transaction another session.
async fn call(
    client: &impl GenericClient,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Row, InboxError> {
    let rows = client.query_typed(sql, parameters).await?;
    rows.into_iter().next().ok_or(InboxError::NoAnswer)
}

/// The result as JSON; refused above the limit.
fn encoded(result: &impl Serialize) -> Result<Vec<u8>, InboxError> {
    let bytes = serde_json::to_vec(result).map_err(InboxError::Result)?;
    within_cap(bytes.len())?;
    Ok(bytes)
}

pub(crate) fn within_cap(bytes: usize) -> Result<(), InboxError> {
    if bytes > MAX_RESULT {
        Err(InboxError::ResultTooLarge { bytes })
    } else {
        Ok(())
    }
}
