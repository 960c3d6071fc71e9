//! A delivery, as a handler sees it.

use lapin::{Acker, BasicProperties, message::Delivery, types::AMQPValue};

use crate::inbox::{Operation, OperationError, fingerprint};

/// A message from the broker.
#[derive(Debug, Clone)]
pub struct Message {
    pub routing_key: String,
    pub body: Vec<u8>,
    /// Only a hint: brokers set it also on messages that no consumer ever saw.
    pub redelivered: bool,
    properties: BasicProperties,
}

impl Message {
    /// The message, and its acker.
    pub(super) fn from_delivery(delivery: Delivery) -> (Self, Acker) {
        let message = Self {
            routing_key: delivery.routing_key.to_string(),
            body: delivery.data,
            redelivered: delivery.redelivered,
            properties: delivery.properties,
        };
        (message, delivery.acker)
    }

    /// `None` if the message has no id: the runner dead-letters it instead of guessing one.
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(|id| id.as_str())
    }

    /// The name under which the runner counts the message's deliveries: the message id, or a fingerprint of its contents. The
    /// runner counts before it runs any code of the service, so it does not ask the handler.
    pub(super) fn name(&self) -> String {
        match self.operation() {
            Ok(operation) => operation.key().to_owned(),
            Err(_) => {
                let hash = fingerprint(self.type_(), self.content_type(), &self.body);
                hash.iter().fold("unnamed:".to_owned(), |name, byte| {
                    name + &format!("{byte:02x}")
                })
            }
        }
    }

    pub fn type_(&self) -> &str {
        self.properties
            .kind()
            .as_ref()
            .map_or("", |kind| kind.as_str())
    }

    pub fn content_type(&self) -> &str {
        self.properties
            .content_type()
            .as_ref()
            .map_or("", |kind| kind.as_str())
    }

    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// The value of a text header.
    pub fn text_header(&self, name: &str) -> Option<String> {
        match self.header(name)? {
            AMQPValue::LongString(text) => {
                std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned)
            }
            _ => None,
        }
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    /// The names of unreadable headers that the guard of the connection left out.
    pub(super) fn removed(&self) -> Option<String> {
        let said = self.header(amqp_guard::REMOVED)?;
        Some(match said {
            AMQPValue::LongString(text) => text.to_string(),
            _ => String::new(),
        })
    }

    /// The name of a relay header with a value that no relay writes. If the runner accepted such a value, its writer could
    /// silently get around the order of a key, the stale guard or the replay policy.
    pub(super) fn invalid_header(&self) -> Option<&'static str> {
        let is_there = |name| self.header(name).is_some();
        [
            ("outbox-key", is_there("outbox-key") && self.key().is_none()),
            (
                "outbox-position",
                is_there("outbox-position") && self.position().is_none(),
            ),
            (
                "outbox-replay",
                !matches!(
                    self.header("outbox-replay"),
                    None | Some(AMQPValue::Boolean(_))
                ),
            ),
        ]
        .into_iter()
        .find_map(|(name, invalid)| invalid.then_some(name))
    }

    /// The key, whose order the runner keeps; `None`: no order.
    pub fn key(&self) -> Option<String> {
        self.text_header("outbox-key")
    }

    /// The message's position in its outbox; above 0.
    pub fn position(&self) -> Option<i64> {
        match self.header("outbox-position")? {
            AMQPValue::LongLongInt(position) => Some(*position).filter(|position| *position > 0),
            _ => None,
        }
    }

    /// Whether the message was published again on purpose.
    pub fn is_replay(&self) -> bool {
        matches!(self.header("outbox-replay"), Some(AMQPValue::Boolean(true)))
    }

    /// W3C trace context of the producer.
    pub fn traceparent(&self) -> Option<String> {
        self.text_header("traceparent")
    }

    /// The operation, named by the message id.
    pub fn operation(&self) -> Result<Operation, OperationError> {
        self.operation_as(self.message_id().unwrap_or_default())
    }

    /// The operation, named by a business key.
    pub fn operation_as(&self, key: &str) -> Result<Operation, OperationError> {
        Operation::new(key, self.type_(), self.content_type(), &self.body)
    }
}
