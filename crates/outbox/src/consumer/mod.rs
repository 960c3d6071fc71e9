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
