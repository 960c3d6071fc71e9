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

mod attempt;
mod burst;
mod dead_letter;
mod error;
mod handler;
mod held;
mod keys;
mod message;
mod options;
mod process;
mod run;
mod session;
mod shared;
mod trace;
mod turns;
mod worker;

pub use error::ConsumerError;
pub use handler::{Failure, Handler, Reply};
pub use message::Message;
pub use options::{ConsumerOptions, OptionsError, ReplayPolicy};
pub use run::run;
