//! The library for services: writes events into the outbox, in the transaction of the business change, and applies each
//! received event once ([`inbox`]).
//!
//! ```no_run
//! # async fn place(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let transaction = client.transaction().await?;
//! transaction.execute("INSERT INTO orders (id, cents) VALUES ($1, $2)", &[&1042_i64, &1999_i32]).await?;
//! let event = outbox::Event::new("order", "created")
//!     .key("1042")
//!     .json(&serde_json::json!({ "id": 1042, "cents": 1999 }))?;
//! let message_id = outbox::enqueue(&transaction, &event).await?;
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A producer needs the role `outbox_producer` and nothing else. The library shares the rules for a row with the relay
//! (`outbox-core`), so it refuses an event that the relay would refuse. The schema is the contract between the two.

#[cfg(feature = "consumer")]
pub mod consumer;
mod enqueue;
mod event;
#[cfg(feature = "http")]
pub mod http;
pub mod inbox;
#[cfg(any(feature = "consumer", feature = "http"))]
mod metrics;
#[cfg(any(feature = "consumer", feature = "http"))]
mod upkeep;

pub use enqueue::{EnqueueError, enqueue, enqueue_all};
pub use event::{Event, EventError};
