//! The relay's view of a row of `outbox.message`. No I/O.

use std::fmt;

use uuid::Uuid;

/// A fixed hash slot of the key; `outbox.message.lane`.
pub type Lane = i16;

/// Place of a message: its lane, and its position in the lane.
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

/// One row of `outbox.message`, as claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub position: Position,
    pub message_id: Uuid,
    pub aggregate_type: String,
    pub aggregate_id: Option<String>,
    pub event_type: String,
    pub content_type: String,
    /// The JSON text of `headers`, unparsed: an invalid text fails this message, not the claim. `None` also for a text
    /// of more than `limits::HEADERS_TEXT` bytes, which is refused and not fetched.
    pub headers: Option<String>,
    /// Size of the text in bytes.
    pub headers_size: u64,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    /// Microseconds since the Unix epoch, by the database's clock.
    pub created_at_us: i64,
    /// Attempts so far that count towards `relay.max_attempts`.
    pub attempts: u32,
    /// Published before, and sent again by `outboxd replay`.
    pub replay: bool,
    /// Size of the body in bytes; known even if the body was not fetched.
    pub body_size: u64,
    /// `None` if the body is larger than `relay.max_payload_bytes`: it is refused and not fetched.
    pub body: Option<Vec<u8>>,
    /// A column of the row that holds no value of the schema, and why, without its value: the message cannot be published.
    pub damage: Option<String>,
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
        headers_size: 0,
        exchange: None,
        routing_key: None,
        created_at_us: 1_700_000_000_123_456,
        attempts: 0,
        replay: false,
        body_size: 2,
        body: Some(b"{}".to_vec()),
        damage: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_shown_as_the_id_that_people_look_for() {
        assert_eq!(Position { lane: 3, id: 77 }.to_string(), "77");
    }
}
