//! Where a message goes that cannot be applied: copied, confirmed, and only then acknowledged.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, ShortString},
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

/// The message's own properties and the reason, without what would act again on the copy.
fn marked(properties: &BasicProperties, reason: &Reason) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flatten() {
        // Extra queues: the broker has served them with the original.
        if !["CC", "BCC"].contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
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
    without_expiration_and_user(properties)
        .with_delivery_mode(2)
        .with_headers(headers)
}

/// Rebuilt, since lapin's properties cannot be unset. The dead-letter queue would drop what expires, after it was
/// confirmed and the original acknowledged; and the broker closes the channel when `user_id` is not the runner's own.
fn without_expiration_and_user(properties: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($property:ident $with:ident),+) => {
            $(if let Some(value) = properties.$property().clone() {
                kept = kept.$with(value);
            })+
        };
    }
    keep!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        message_id with_message_id,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id,
        cluster_id with_cluster_id
    );
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_keeps_all_but_what_would_act_on_the_copy() {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        headers.insert("outbox-key".into(), text("k"));
        let plain = BasicProperties::default()
            .with_content_type("text/plain".into())
            .with_content_encoding("gzip".into())
            .with_priority(3)
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_message_id("m".into())
            .with_timestamp(4)
            .with_type("paid".into())
            .with_app_id("a".into())
            .with_cluster_id("cluster".into());
        let mut sent = headers.clone();
        sent.insert("CC".into(), text("other"));
        sent.insert("BCC".into(), text("other"));
        let original = plain
            .clone()
            .with_delivery_mode(1)
            .with_expiration("1".into())
            .with_user_id("producer".into())
            .with_headers(sent);
        let reason = Reason {
            code: "rejected",
            attempts: 2,
            error: "why".to_owned(),
        };
        headers.insert("outbox-dead-reason".into(), text("rejected"));
        headers.insert("outbox-dead-attempts".into(), AMQPValue::LongLongInt(2));
        headers.insert("outbox-dead-error".into(), text("why"));
        let expected = plain.with_delivery_mode(2).with_headers(headers);
        assert_eq!(marked(&original, &reason), expected);
    }
}
