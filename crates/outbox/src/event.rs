//! An event, checked before it is written: the developer sees an event that the relay would refuse, not the operator.

use std::{fmt, time::SystemTime};

use outbox_core::{
    header,
    limits::{self, HEADER_LEVELS, HEADERS_TEXT, NotShort, SHORT},
};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::{NoContext, Timestamp, Uuid};

/// Something that happened to one aggregate.
#[derive(Clone, PartialEq)]
pub struct Event {
    pub(crate) message_id: Uuid,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) body: Body,
    pub(crate) content_type: String,
    pub(crate) headers: Map<String, Value>,
    pub(crate) exchange: Option<String>,
    pub(crate) routing_key: Option<String>,
    pub(crate) available_at: Option<SystemTime>,
}

#[derive(Clone, PartialEq)]
pub(crate) enum Body {
    Json(String),
    Bytes(Vec<u8>),
}

/// The fault of an event; it names the field and never shows content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("{field} has {bytes} bytes; AMQP allows {SHORT}")]
    TooLong { field: String, bytes: usize },
    #[error("{field} holds a control character")]
    ControlCharacter { field: String },
    #[error("the header name \"{name}\" is reserved (x-*, CC, BCC, outbox-*)")]
    ReservedHeader { name: String },
    #[error("a header name is empty")]
    EmptyHeaderName,
    #[error("the header \"{name}\" is nested deeper than {HEADER_LEVELS} levels")]
    TooDeep { name: String },
    #[error("the header \"{name}\" holds a number that AMQP cannot carry; send it as a string")]
    NumberOutOfRange { name: String },
    #[error("correlation_id is not a string")]
    CorrelationIdNotText,
    #[error("the headers have {bytes} bytes of JSON; {HEADERS_TEXT} fit")]
    HeadersTooLarge { bytes: usize },
    #[error("the body is not JSON: {0}")]
    NotJson(String),
}

impl Event {
    /// An event without a key, with the body `null`. This draws its message id, which never changes.
    pub fn new(aggregate_type: impl Into<String>, event_type: impl Into<String>) -> Self {
        Self {
            // By the time in it `outboxd where` finds the message.
            message_id: Uuid::new_v7(Timestamp::now(NoContext)),
            aggregate_type: aggregate_type.into(),
            aggregate_id: None,
            event_type: event_type.into(),
            body: Body::Json("null".to_owned()),
            content_type: "application/json".to_owned(),
            headers: Map::new(),
            exchange: None,
            routing_key: None,
            available_at: None,
        }
    }

    /// Sets the aggregate id. Events of one key are delivered in the order of their positions; without a key there is no order.
    #[must_use]
    pub fn key(mut self, aggregate_id: impl Into<String>) -> Self {
        self.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Sets the body, as JSON.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, EventError> {
        let text = serde_json::to_string(body).map_err(|e| EventError::NotJson(e.to_string()))?;
        self.body = Body::Json(text);
        Ok(self)
    }

    /// Sets the body to existing JSON text; it reaches the broker byte for byte.
    pub fn raw_json(mut self, text: impl Into<String>) -> Result<Self, EventError> {
        let text = text.into();
        serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|e| {
            // The parser's own message may quote the body.
            EventError::NotJson(format!("line {}, column {}", e.line(), e.column()))
        })?;
        self.body = Body::Json(text);
        Ok(self)
    }

    /// Sets the body to any bytes.
    #[must_use]
    pub fn bytes(mut self, content_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        self.content_type = content_type.into();
        self.body = Body::Bytes(bytes);
        self
    }

    /// Replaces the message id, a UUID of version 7, with an id that the caller already has. `outboxd where` finds a message
    /// without further hints if its id carries the time when it was made, as versions 1, 6 and 7 do.
    #[must_use]
    pub fn message_id(mut self, id: Uuid) -> Self {
        self.message_id = id;
        self
    }

    /// Adds an AMQP header: a scalar, or a tree of at most four levels.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Sets the W3C trace context, so that a consumer's span continues this trace.
    #[must_use]
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        self.header("traceparent", traceparent.into())
    }

    /// Sets the correlation id, which becomes the AMQP property.
    #[must_use]
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        self.header("correlation_id", id.into())
    }

    /// Overrides the exchange and routing key of the relay's configuration.
    #[must_use]
    pub fn route(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.exchange = Some(exchange.into());
        self.routing_key = Some(routing_key.into());
        self
    }

    /// Schedules the event: it is not published before this time. Until then it is outside its key's order.
    #[must_use]
    pub fn available_at(mut self, at: SystemTime) -> Self {
        self.available_at = Some(at);
        self
    }

    pub fn id(&self) -> Uuid {
        self.message_id
    }

    /// The body as it will reach the broker.
    pub fn body(&self) -> &[u8] {
        match &self.body {
            Body::Json(text) => text.as_bytes(),
            Body::Bytes(bytes) => bytes,
        }
    }

    /// Refuses an event that the relay would refuse with every configuration.
    pub fn check(&self) -> Result<(), EventError> {
        for (field, text, limited) in [
            ("aggregate_type", Some(&self.aggregate_type), false),
            ("aggregate_id", self.aggregate_id.as_ref(), false),
            ("event_type", Some(&self.event_type), true),
            ("content_type", Some(&self.content_type), true),
            ("exchange", self.exchange.as_ref(), true),
            ("routing_key", self.routing_key.as_ref(), true),
        ] {
            let Some(text) = text else { continue };
            if limited {
                check_short(field, text)?;
            } else {
                check_clean(field, text)?;
            }
        }
        for (name, value) in &self.headers {
            if name == "correlation_id" {
                let Value::String(id) = value else {
                    return Err(EventError::CorrelationIdNotText);
                };
                check_short("correlation_id", id)?;
            } else {
                check_header(name, value)?;
            }
        }
        match self.headers_json() {
            Some(text) if text.len() > HEADERS_TEXT => {
                Err(EventError::HeadersTooLarge { bytes: text.len() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn headers_json(&self) -> Option<String> {
        (!self.headers.is_empty()).then(|| Value::Object(self.headers.clone()).to_string())
    }
}

/// Shows neither the body nor the headers' values, because events end up in logs.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("message_id", &self.message_id)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("event_type", &self.event_type)
            .field("content_type", &self.content_type)
            .field("body_bytes", &self.body().len())
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("available_at", &self.available_at)
            .finish()
    }
}

fn check_short(field: &str, text: &str) -> Result<(), EventError> {
    let field = || field.to_owned();
    limits::short(text).map_err(|problem| match problem {
        NotShort::TooLong => EventError::TooLong {
            field: field(),
            bytes: text.len(),
        },
        NotShort::ControlCharacter => EventError::ControlCharacter { field: field() },
    })
}

fn check_clean(field: &str, text: &str) -> Result<(), EventError> {
    if limits::is_clean(text) {
        return Ok(());
    }
    Err(EventError::ControlCharacter {
        field: field.to_owned(),
    })
}

fn check_header(name: &str, value: &Value) -> Result<(), EventError> {
    check_header_name(name)?;
    if header::is_reserved(name) {
        return Err(EventError::ReservedHeader {
            name: name.to_owned(),
        });
    }
    check_value(name, value, HEADER_LEVELS - 1)
}

fn check_header_name(name: &str) -> Result<(), EventError> {
    if name.is_empty() {
        return Err(EventError::EmptyHeaderName);
    }
    limits::short(name).map_err(|problem| match problem {
        NotShort::TooLong => EventError::TooLong {
            field: "a header name".to_owned(),
            bytes: name.len(),
        },
        NotShort::ControlCharacter => EventError::ControlCharacter {
            field: format!("the header name \"{}\"", name.escape_debug()),
        },
    })
}

/// `name` is the header of the value.
fn check_value(name: &str, value: &Value, levels_left: usize) -> Result<(), EventError> {
    let too_deep = || EventError::TooDeep {
        name: name.to_owned(),
    };
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => match header::number(number) {
            Ok(_) => Ok(()),
            Err(_) => Err(EventError::NumberOutOfRange {
                name: name.to_owned(),
            }),
        },
        Value::Array(items) => {
            let levels = levels_left.checked_sub(1).ok_or_else(too_deep)?;
            items
                .iter()
                .try_for_each(|item| check_value(name, item, levels))
        }
        Value::Object(fields) => {
            let levels = levels_left.checked_sub(1).ok_or_else(too_deep)?;
            fields.iter().try_for_each(|(field, value)| {
                check_header_name(field)?;
                check_value(name, value, levels)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Event {
        Event::new("order", "created").key("1042")
    }

    #[test]
    fn the_id_of_an_event_carries_the_time_and_is_its_own() {
        let before = SystemTime::now() - std::time::Duration::from_millis(1);
        let (one, two) = (event().message_id, event().message_id);
        assert_ne!(one, two);
        let (seconds, nanos) = one.get_timestamp().unwrap().to_unix();
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::new(seconds, nanos);
        assert_eq!(one.get_version_num(), 7);
        assert!(before <= at && at <= SystemTime::now());
    }

    #[test]
    fn what_the_relay_takes_is_fine() {
        let full = event()
            .json(&json!({"a": 1}))
            .unwrap()
            .header("tenant", "blue")
            .header("least", i64::MIN)
            .header("share", 0.5)
            .header("deep", json!({"a": [[1]]}))
            .traceparent("00-1-2-01")
            .correlation_id("c")
            .route("audit", "a.b");
        assert_eq!(full.check(), Ok(()));
    }

    #[test]
    fn what_the_relay_would_refuse_is_refused_here_and_named() {
        let long = "x".repeat(256);
        for (bad, says) in [
            (
                Event::new("order", long.clone()),
                "event_type has 256 bytes",
            ),
            (event().route(long.clone(), "k"), "exchange has 256 bytes"),
            (
                event().route("e", long.clone()),
                "routing_key has 256 bytes",
            ),
            (
                event().bytes(long.clone(), vec![]),
                "content_type has 256 bytes",
            ),
            (
                event().key("a\nb"),
                "aggregate_id holds a control character",
            ),
            (event().header(long, 1), "a header name has 256 bytes"),
            (event().header("", 1), "a header name is empty"),
            (event().header("x-death", 1), "\"x-death\" is reserved"),
            (event().header("CC", 1), "\"CC\" is reserved"),
            (event().header("BCC", 1), "\"BCC\" is reserved"),
            (
                event().header("outbox-key", 1),
                "\"outbox-key\" is reserved",
            ),
            (
                event().header("deep", json!([[[[1]]]])),
                "the header \"deep\" is nested deeper than 4 levels",
            ),
            (
                event().header("n", u64::MAX),
                "the header \"n\" holds a number",
            ),
            (
                event().header("n", json!([{ "a": u64::MAX }])),
                "the header \"n\" holds a number",
            ),
            (
                event().header("a", json!({ "": 1 })),
                "a header name is empty",
            ),
            (
                event().header("a", json!({ "b\n": 1 })),
                "the header name \"b\\n\" holds a control character",
            ),
            (
                event().correlation_id("c".repeat(256)),
                "correlation_id has 256 bytes",
            ),
            (
                event().correlation_id("c\n"),
                "correlation_id holds a control character",
            ),
            (
                event().header("correlation_id", 7),
                "correlation_id is not a string",
            ),
            (
                event().header("h", "x".repeat(131_072)),
                "the headers have 131080 bytes of JSON",
            ),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn raw_json_keeps_its_bytes_and_must_be_json() {
        let text = r#"{ "a" : 1e400, "a":2 }"#;
        assert_eq!(event().raw_json(text).unwrap().body(), text.as_bytes());
        let error = event().raw_json("{hunter2").unwrap_err().to_string();
        assert!(
            error.contains("line 1") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn the_debug_text_holds_neither_body_nor_header_values() {
        let secret = event()
            .json(&json!({ "card": "hunter2" }))
            .unwrap()
            .header("token", "hunter2");
        let text = format!("{secret:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(
            text.contains("\"token\"") && text.contains("body_bytes: 18"),
            "{text}"
        );
    }
}
