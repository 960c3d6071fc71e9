//! What a row of `outbox.message` is to the relay. No I/O.

use std::fmt;

use uuid::Uuid;

/// A fixed hash slot of the key; `outbox.message.lane`.
pub type Lane = i16;

/// Where a message stands: its lane, and its place in the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub lane: Lane,
    pub id: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

/// Messages with one key keep their order. Without an `aggregate_id` there is no key, and no order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub aggregate_type: String,
    pub aggregate_id: String,
}

/// One row of `outbox.message`, as claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub position: Position,
    pub message_id: Uuid,
    pub aggregate_type: String,
    pub aggregate_id: Option<String>,
    pub event_type: String,
    pub content_type: String,
    /// The JSON text of `headers`, unparsed: a bad one is this message's fault, not the claim's.
    pub headers: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    /// Microseconds since the Unix epoch, by the database's clock.
    pub created_at_us: i64,
    /// Attempts already made and counted against `relay.max_attempts`.
    pub attempts: u32,
    /// Published before; sent again on purpose by `outboxd replay`.
    pub replay: bool,
    /// Bytes of the body. Known even when the body was not fetched.
    pub body_size: u64,
    /// `None` when it is over `relay.max_payload_bytes`: it is refused without being fetched.
    pub body: Option<Vec<u8>>,
}

impl Message {
    pub fn key(&self) -> Option<Key> {
        self.aggregate_id.as_ref().map(|aggregate_id| Key {
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: aggregate_id.clone(),
        })
    }
}

#[cfg(test)]
pub(crate) fn sample() -> Message {
    Message {
        position: Position { lane: 3, id: 77 },
        message_id: Uuid::from_u128(0x0191_d3a4),
        aggregate_type: "order".to_owned(),
        aggregate_id: Some("1042".to_owned()),
        event_type: "created".to_owned(),
        content_type: "application/json".to_owned(),
        headers: None,
        exchange: None,
        routing_key: None,
        created_at_us: 1_700_000_000_123_456,
        attempts: 0,
        replay: false,
        body_size: 2,
        body: Some(b"{}".to_vec()),
    }
}
