//! Converts an envelope to lapin's types.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};
use outbox_core::{envelope::Envelope, header::HeaderValue};

/// The message goes to a requester that waits on `amq.rabbitmq.reply-to`, which is not a queue. Before 4.2 RabbitMQ
/// delivers such a message and also returns it if it is mandatory. Delivery is at most once in either case.
/// <https://www.rabbitmq.com/docs/direct-reply-to>
pub(super) fn is_direct_reply(envelope: &Envelope) -> bool {
    envelope.exchange.is_empty() && envelope.routing_key.starts_with("amq.rabbitmq.reply-to.")
}

/// The builder of the envelope has refused every text above 255 bytes that becomes a short string.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// The message properties of an envelope.
pub fn properties(envelope: &Envelope) -> BasicProperties {
    /// <https://www.rabbitmq.com/docs/publishers#message-properties>
    const PERSISTENT: u8 = 2;
    let p = &envelope.properties;
    let mut headers = FieldTable::default();
    for (name, value) in &envelope.headers {
        headers.insert(short(name), amqp_value(value));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&p.message_id))
        .with_type(short(&p.type_))
        .with_content_type(short(&p.content_type))
        .with_timestamp(p.timestamp_s)
        .with_app_id(short(&p.app_id))
        .with_headers(headers);
    if let Some(id) = &p.correlation_id {
        properties = properties.with_correlation_id(short(id));
    }
    properties
}

fn amqp_value(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(b) => AMQPValue::Boolean(*b),
        HeaderValue::I64(n) => AMQPValue::LongLongInt(*n),
        HeaderValue::F64(n) => AMQPValue::Double(*n),
        HeaderValue::String(s) => AMQPValue::LongString(s.as_str().into()),
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::List(items) => AMQPValue::FieldArray(FieldArray::from(
            items.iter().map(amqp_value).collect::<Vec<_>>(),
        )),
        HeaderValue::Table(fields) => {
            let mut table = FieldTable::default();
            for (name, value) in fields {
                table.insert(short(name), amqp_value(value));
            }
            AMQPValue::FieldTable(table)
        }
    }
}
