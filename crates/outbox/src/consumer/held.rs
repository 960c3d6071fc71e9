//! A delivery in hand.

use std::sync::atomic::{AtomicBool, Ordering};

use lapin::{Acker, options::BasicAckOptions};

use super::{ConsumerError, Message, shared::ANSWER, turns::Ordinary};

/// A delivery that is not acknowledged yet.
pub(super) struct Held {
    pub message: Message,
    pub acker: Acker,
    /// While it is to be tried beside others.
    pub ordinary: Option<Ordinary>,
}

impl Held {
    pub async fn acknowledge(&self, settled: &AtomicBool) -> Result<(), ConsumerError> {
        match tokio::time::timeout(ANSWER, self.acker.ack(BasicAckOptions::default())).await {
            Ok(acknowledged) => acknowledged.map_err(ConsumerError::Broker)?,
            Err(_) => return Err(ConsumerError::Timeout("acknowledge")),
        };
        settled.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// What must not overtake each other. Without a key each message is on its own.
pub(super) fn key_of(message: &Message) -> String {
    match message.key() {
        Some(key) => format!("k{key}"),
        None => format!("m{}", message.message_id().unwrap_or_default()),
    }
}
