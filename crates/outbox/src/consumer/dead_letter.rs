//! Dead letters: a message that cannot be applied is copied to the dead-letter queue. Once the broker has confirmed the copy,
//! the original is acknowledged.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::sync::Mutex;

use super::{ConsumerError, Message};

const CONFIRM: Duration = Duration::from_secs(30);
/// Longest error in a header, in characters.
const MAX_ERROR: usize = 1000;

/// The reason why a message was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    pub code: &'static str,
    pub attempts: u32,
    pub error: String,
}

/// The dead-letter queue, on a channel of its own. It publishes one message at a time: concurrent publishes on a channel would
/// get each other's confirms and returns.
pub(super) struct DeadLetters {
    channel: Mutex<Channel>,
    queue: String,
    frame_max: usize,
}

impl DeadLetters {
    /// `channel` must be in confirm mode.
    pub fn new(channel: Channel, queue: &str, frame_max: u32) -> Self {
        Self {
            channel: Mutex::new(channel),
            queue: queue.to_owned(),
            frame_max: usize::try_from(frame_max).unwrap_or(usize::MAX),
        }
    }

    /// Returns when the broker has the copy. A crash before the acknowledgement of the original makes two copies, and loses
    /// nothing.
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
        let properties = marked(message.properties(), reason, self.frame_max);
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

/// The message's own properties and the reason, without properties that would act again on the copy, and only as many headers
/// as fit into a frame. Headers that do not fit would close the connection; the broker would deliver the message again, and
/// it would close the next connection.
fn marked(properties: &BasicProperties, reason: &Reason, frame_max: usize) -> BasicProperties {
    let kept = without_expiration_and_user(properties).with_delivery_mode(2);
    let room = frame_max.saturating_sub(size_without_headers(&kept));
    let own = properties.headers().iter().flatten();
    // These name extra queues, to which the broker has routed the original.
    let own = own.filter(|(name, _)| !["CC", "BCC", REMOVED].contains(&name.as_str()));
    let own: Vec<_> = own.map(|(n, v)| (n.clone(), v.clone())).collect();
    kept.with_headers(fitted(own, reason, room))
}

/// Bytes of the content header's frame, without the headers and their length.
/// <https://www.rabbitmq.com/docs/specification>
fn size_without_headers(properties: &BasicProperties) -> usize {
    // Type, channel, size and end of the frame; class, weight, size of the body and flags.
    const FRAME: usize = 1 + 2 + 4 + 1;
    const FIXED: usize = 2 + 2 + 8 + 2;
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts = texts.into_iter().flatten();
    FRAME
        + FIXED
        + texts.map(|text| 1 + text.as_str().len()).sum::<usize>()
        + properties.delivery_mode().map_or(0, |_| 1)
        + properties.priority().map_or(0, |_| 1)
        + properties.timestamp().map_or(0, |_| 8)
}

/// The message's own headers and the reason, in at most `room` bytes. It cuts our diagnostics first, and then leaves out the
/// largest of the message's headers. A header names those that it left out.
fn fitted(mut own: Vec<(ShortString, AMQPValue)>, reason: &Reason, room: usize) -> FieldTable {
    let mut error: String = reason.error.chars().take(MAX_ERROR).collect();
    own.retain(|(name, _)| !OURS.contains(&name.as_str()));
    own.sort_by_key(|(name, value)| entry_size(name.as_str(), value));
    let mut removed = Vec::new();
    loop {
        let mut table = FieldTable::default();
        let mut add = |name: &str, value| {
            table.insert(name.into(), value);
        };
        add(CODE, AMQPValue::LongString(reason.code.into()));
        add(ATTEMPTS, AMQPValue::LongLongInt(i64::from(reason.attempts)));
        if !error.is_empty() {
            add(ERROR, AMQPValue::LongString(error.as_str().into()));
        }
        if !removed.is_empty() {
            add(REMOVED, AMQPValue::LongString(named(&removed).into()));
        }
        for (name, value) in &own {
            table.insert(name.clone(), value.clone());
        }
        let above = table_size(&table).saturating_sub(room);
        if above == 0 {
            return table;
        }
        if !error.is_empty() {
            let mut end = error.len().saturating_sub(above);
            while !error.is_char_boundary(end) {
                end -= 1;
            }
            error.truncate(end);
        } else if let Some((name, _)) = own.pop() {
            removed.push(name);
        } else {
            // Our headers alone fit into any frame that AMQP allows.
            return table;
        }
    }
}

const CODE: &str = "outbox-dead-reason";
const ATTEMPTS: &str = "outbox-dead-attempts";
const ERROR: &str = "outbox-dead-error";
/// Header with the number and the names of the message's headers that were left out.
const REMOVED: &str = "outbox-dead-removed";
const OURS: [&str; 4] = [CODE, ATTEMPTS, ERROR, REMOVED];
/// Most bytes of these names.
const NAMES: usize = 200;

fn named(removed: &[ShortString]) -> String {
    let mut names = String::new();
    for name in removed {
        let separator = if names.is_empty() { "" } else { ", " };
        if names.len() + separator.len() + name.as_str().len() > NAMES {
            names += ", …";
            break;
        }
        names += separator;
        names += name.as_str();
    }
    format!("{}: {names}", removed.len())
}

fn entry_size(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + 1 + value_size(value)
}

/// Bytes of a table on the wire, including its length: <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>.
fn table_size(table: &FieldTable) -> usize {
    let entries = table.inner().iter();
    let entries = entries.map(|(name, value)| entry_size(name.as_str(), value));
    4 + entries.sum::<usize>()
}

/// The recursion is bounded: the guard of the connection limits the nesting.
fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(items) => {
            let items = items.as_slice().iter();
            4 + items.map(|item| 1 + value_size(item)).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_size(table),
    }
}

/// Rebuilds the properties, because lapin cannot unset one. With an expiration, the dead-letter queue would drop the copy after
/// the original was acknowledged. With a `user_id` other than the runner's, the broker would close the channel.
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
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame};
    use lapin::types::DecimalValue;
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
    };

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
        assert_eq!(marked(&original, &reason, 131_072), expected);
    }

    /// Bytes of the frame as the broker gets it.
    fn frame_size(properties: &BasicProperties) -> usize {
        let header = AMQPContentHeader {
            class_id: 60,
            body_size: 0,
            properties: properties.clone(),
        };
        let buffer = vec![0_u8; 400_000];
        let (_, size) = gen_frame(&AMQPFrame::Header(1, header))(buffer.into())
            .unwrap()
            .into_inner();
        usize::try_from(size).unwrap()
    }

    fn text(length: usize) -> AMQPValue {
        AMQPValue::LongString("x".repeat(length).into())
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<f32>().prop_map(AMQPValue::Float),
            any::<f64>().prop_map(AMQPValue::Double),
            Just(AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 2 })),
            Just(AMQPValue::Void),
            (0_usize..3000).prop_map(text),
            (0_usize..3000).prop_map(|n| AMQPValue::ByteArray(vec![7; n].into())),
        ];
        leaf.prop_recursive(4, 20, 5, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..5).prop_map(|items| AMQPValue::FieldArray(items.into())),
                btree_map("[a-z]{0,9}", inner, 0..5).prop_map(|entries| {
                    let mut table = FieldTable::default();
                    for (name, value) in entries {
                        table.insert(name.into(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_dead_letter_fits_into_a_frame_and_says_what_it_lost(
            own in btree_map("[a-zä]{1,40}", value(), 0..12),
            error in ".{0,1500}",
            id in "[a-z]{1,255}",
            frame_max in 4096_usize..12_000,
        ) {
            let mut headers = FieldTable::default();
            for (name, value) in &own {
                headers.insert(short(name), value.clone());
            }
            let original = BasicProperties::default()
                .with_message_id(short(&id))
                .with_type("t".repeat(255).into())
                .with_priority(1)
                .with_headers(headers.clone());
            let reason = Reason { code: "rejected", attempts: 7, error: error.clone() };
            let whole = marked(&original, &reason, 1_000_000);
            let dead = marked(&original, &reason, frame_max);
            prop_assert!(frame_size(&dead) <= frame_max);
            prop_assert_eq!(frame_size(&whole) <= frame_max, dead == whole, "nothing is cut without need");
            prop_assert_eq!(dead.message_id(), original.message_id());
            let left = dead.headers().clone().unwrap();
            prop_assert_eq!(&left.inner()[CODE], &AMQPValue::LongString("rejected".into()));
            prop_assert_eq!(&left.inner()[ATTEMPTS], &AMQPValue::LongLongInt(7));
            let lost = own.keys().filter(|name| !left.contains_key(name.as_str())).count();
            let said = left.inner().get(REMOVED).map(|said| match said {
                AMQPValue::LongString(said) => said.to_string(),
                _ => String::new(),
            });
            prop_assert_eq!(lost > 0, said.is_some());
            let counted = format!("{lost}: ");
            prop_assert!(said.is_none_or(|said| said.starts_with(counted.as_str())));
            prop_assert!(lost == 0 || !left.contains_key(ERROR), "ours give way first");
        }
    }

    /// A frame is filled to the last byte.
    #[test]
    fn headers_that_fill_a_frame_to_the_last_byte_are_kept() {
        let reason = Reason {
            code: "rejected",
            attempts: 1,
            error: String::new(),
        };
        let of = |length| {
            let mut headers = FieldTable::default();
            headers.insert("large".into(), text(length));
            headers.insert("small".into(), AMQPValue::Void);
            marked(
                &BasicProperties::default().with_headers(headers),
                &reason,
                131_072,
            )
        };
        let spare = 131_072 - frame_size(&of(0));
        let full = of(spare);
        assert_eq!(frame_size(&full), 131_072);
        assert!(full.headers().as_ref().unwrap().contains_key("large"));
        let cut = of(spare + 1);
        let left = cut.headers().clone().unwrap();
        assert!(left.contains_key("small") && !left.contains_key("large"));
        assert_eq!(
            left.inner()[REMOVED],
            AMQPValue::LongString("1: large".into())
        );
    }

    fn short(text: &str) -> ShortString {
        ShortString::try_new(text).unwrap()
    }
}
