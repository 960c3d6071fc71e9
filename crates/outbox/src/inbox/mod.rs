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
mod consumer;
mod effect;
mod error;
mod operation;
mod stored;
mod transition;
mod upkeep;

pub use claim::Claimed;
pub use consumer::Inbox;
pub use effect::{Begun, Doubt};
#[cfg(any(feature = "consumer", feature = "http"))]
pub(crate) use error::described;
pub(crate) use error::within_cap;
pub use error::{InboxError, MAX_RESULT};
#[cfg(feature = "consumer")]
pub(crate) use operation::fingerprint;
pub use operation::{Operation, OperationError};
pub use stored::Stored;
pub use transition::{Advanced, Transition};
