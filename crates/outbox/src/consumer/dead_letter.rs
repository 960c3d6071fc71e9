//! Where a message goes that cannot be applied: copied, confirmed, and only then acknowledged.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, ShortString},
};
use tokio::sync::Mutex;

use super::{ConsumerError, Message};

const CONFIRM: Duration = Duration::from_secs(30);
/// Longest error that is passed on, in characters.
const MAX_ERROR: usize = 1000;

/// Why a message was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    pub code: &'static str,
    pub attempts: u32,
    pub error: String,
}

/// The dead-letter queue, on a channel of its own. One publish at a time: concurrent ones on a channel would be told
/// each other's confirms and returns.
pub(super) struct DeadLetters {
    channel: Mutex<Channel>,
    queue: String,
}

impl DeadLetters {
    /// `channel` must be in confirm mode.
    pub fn new(channel: Channel, queue: &str) -> Self {
        Self {
            channel: Mutex::new(channel),
            queue: queue.to_owned(),
        }
    }

    /// Returns when the broker has it. A crash before the original is acknowledged makes two copies, and loses none.
    pub async fn publish(&self, message: &Message, reason: &Reason) -> Result<(), ConsumerError> {
        let refused = |why| {
            Err(ConsumerError::DeadLetter {
                queue: self.queue.clone(),
                why,
            })
        };
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let name = ShortString::try_new(self.queue.as_str()).unwrap_or_default();
        let properties = marked(message.properties(), reason);
        let channel = self.channel.lock().await;
        let publish = async {
            let confirm = channel.basic_publish(
                ShortString::default(),
                name,
                options,
                &message.body,
                properties,
            );
            confirm.await?.await
        };
        match tokio::time::timeout(CONFIRM, publish).await {
            Err(_) => refused("no confirm within 30 s"),
            Ok(Err(error)) => Err(ConsumerError::Broker(error)),
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)))) => refused("there is no such queue"),
            Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => {
                refused("the broker did not take it")
            }
        }
    }
}

fn marked(properties: &BasicProperties, reason: &Reason) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    let error: String = reason.error.chars().take(MAX_ERROR).collect();
    for (name, value) in [
        (
            "outbox-dead-reason",
            AMQPValue::LongString(reason.code.into()),
        ),
        (
            "outbox-dead-attempts",
            AMQPValue::LongLongInt(i64::from(reason.attempts)),
        ),
        ("outbox-dead-error", AMQPValue::LongString(error.into())),
    ] {
        headers.insert(name.into(), value);
    }
    properties
        .clone()
        .with_delivery_mode(2)
        .with_headers(headers)
}
