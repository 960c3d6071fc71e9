//! Envelope: the AMQP message built from a row, or the reason why the row cannot become one. No I/O.
//!
//! RabbitMQ closes the channel or the connection when a short string has more than 255 bytes, or when a content header
//! does not fit into one frame (<https://www.rabbitmq.com/amqp-0-9-1-reference>). Such a row is refused here, so that
//! it affects no other message.

use std::time::{Duration, UNIX_EPOCH};

use crate::{
    header::{self, HeaderValue},
    limits::{self, HEADERS_TEXT, NotShort, SHORT},
    message::Message,
    reason::{Reason, Refusal},
    route::Router,
};

/// 9999-12-31T23:59:59.999999Z. PostgreSQL stores later times and "infinity"; formatting such a time would panic.
const LAST_RFC3339_US: u64 = 253_402_300_799_999_999;

/// An AMQP message and its destination. No short string has more than 255 bytes.
#[derive(Debug, PartialEq)]
pub struct Envelope {
    pub exchange: String,
    pub routing_key: String,
    pub mandatory: bool,
    pub properties: Properties,
    /// The row's headers first, then the relay's. A row cannot forge the relay's headers.
    pub headers: Vec<(String, HeaderValue)>,
    pub body: Vec<u8>,
}

impl Envelope {
    /// The key that orders messages; a message without a key has no order.
    #[inline]
    pub fn key(&self) -> Option<&str> {
        self.headers
            .iter()
            .rev()
            .find_map(|(name, value)| match value {
                HeaderValue::String(key) if name == KEY => Some(key.as_str()),
                _ => None,
            })
    }
}

/// The header that holds a message's key.
const KEY: &str = "outbox-key";

/// <https://www.rabbitmq.com/docs/publishers#message-properties>. The delivery mode is always persistent.
#[derive(Debug, PartialEq)]
pub struct Properties {
    pub message_id: String,
    pub type_: String,
    pub content_type: String,
    /// Whole seconds since the Unix epoch, the precision of AMQP.
    pub timestamp_s: u64,
    pub app_id: String,
    pub correlation_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeOptions {
    pub app_id: String,
    /// The `source` of CloudEvents in AMQP's binary mode. `None`: plain messages.
    pub cloudevents_source: Option<String>,
    pub max_payload_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct EnvelopeBuilder {
    router: Router,
    options: EnvelopeOptions,
}

impl EnvelopeBuilder {
    pub fn new(router: Router, options: EnvelopeOptions) -> Self {
        Self { router, options }
    }

    /// Moves the body and other fields out of the message. `frame_max` is the negotiated frame size in bytes; 0 means
    /// no limit.
    pub fn build(&self, message: &mut Message, frame_max: u32) -> Result<Envelope, Refusal> {
        if let Some(damage) = &message.damage {
            return Err(Refusal::new(
                Reason::Unreadable,
                format!("the row's {damage}"),
            ));
        }
        key_is_clean(message)?;
        let routed = self.router.route(message)?;
        let body = message.body.take().ok_or_else(|| {
            Refusal::new(
                Reason::PayloadTooLarge,
                format!(
                    "the body has {} bytes; relay.max_payload_bytes is {}",
                    message.body_size, self.options.max_payload_bytes
                ),
            )
        })?;
        let type_ = message.event_type.clone();
        short("event_type", &type_, Reason::TypeInvalid)?;
        let content_type = std::mem::take(&mut message.content_type);
        short("content_type", &content_type, Reason::ContentTypeInvalid)?;

        let cloudevents = self.options.cloudevents_source.as_deref();
        let own = match message.headers.take() {
            Some(text) => header::parse(&text, cloudevents.is_some())?,
            None if message.headers_size > HEADERS_TEXT as u64 => {
                return Err(header::too_large());
            }
            None => header::Own::default(),
        };
        let mut headers = own.headers;
        // The relay's headers: four, and seven of CloudEvents.
        headers.reserve_exact(if cloudevents.is_some() { 11 } else { 4 });
        self.add_ours(&mut headers, message, cloudevents);
        let properties = Properties {
            message_id: message.message_id.to_string(),
            type_,
            content_type,
            timestamp_s: u64::try_from(message.created_at_us / 1_000_000).unwrap_or(0),
            app_id: self.options.app_id.clone(),
            correlation_id: own.correlation_id,
        };
        let size = content_header_size(&properties, &headers);
        // The frame itself adds eight bytes.
        if frame_max != 0 && size + 8 > frame_max as usize {
            return Err(Refusal::new(
                Reason::HeadersTooLarge,
                format!(
                    "headers and properties take {size} bytes; a frame of this broker has {frame_max}"
                ),
            ));
        }
        Ok(Envelope {
            exchange: routed.exchange,
            routing_key: routed.routing_key,
            mandatory: routed.mandatory,
            properties,
            headers,
            body,
        })
    }

    fn add_ours(
        &self,
        headers: &mut Vec<(String, HeaderValue)>,
        message: &Message,
        cloudevents: Option<&str>,
    ) {
        let mut add = |name: &str, value| headers.push((name.to_owned(), value));
        let text = |text: &str| HeaderValue::String(text.to_owned());
        let key = message
            .aggregate_id
            .as_ref()
            .map(|id| format!("{}:{id}", message.aggregate_type));
        if let Some(source) = cloudevents {
            // Binary mode of the AMQP binding, with RabbitMQ's spelling of the prefix:
            // <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
            add("cloudEvents_specversion", text("1.0"));
            add(
                "cloudEvents_id",
                HeaderValue::String(message.message_id.to_string()),
            );
            add("cloudEvents_source", text(source));
            add("cloudEvents_type", text(&message.event_type));
            let at = u64::try_from(message.created_at_us).unwrap_or(0);
            let at = UNIX_EPOCH + Duration::from_micros(at.min(LAST_RFC3339_US));
            add(
                "cloudEvents_time",
                HeaderValue::String(humantime::format_rfc3339_micros(at).to_string()),
            );
            if let (Some(id), Some(key)) = (&message.aggregate_id, &key) {
                add("cloudEvents_subject", text(id));
                add("cloudEvents_partitionkey", text(key));
            }
        }
        if let Some(key) = key {
            add(KEY, HeaderValue::String(key));
        }
        add("outbox-position", HeaderValue::I64(message.position.id));
        if message.attempts > 0 {
            add(
                "outbox-attempt",
                HeaderValue::I64(i64::from(message.attempts) + 1),
            );
        }
        if message.replay {
            add("outbox-replay", HeaderValue::Bool(true));
        }
    }
}

fn key_is_clean(message: &Message) -> Result<(), Refusal> {
    let texts = [
        ("aggregate_type", Some(&message.aggregate_type)),
        ("aggregate_id", message.aggregate_id.as_ref()),
    ];
    for (column, text) in texts {
        if text.is_some_and(|text| !limits::is_clean(text)) {
            return Err(Refusal::new(
                Reason::KeyInvalid,
                format!("{column} holds a control character"),
            ));
        }
    }
    Ok(())
}

fn short(column: &str, text: &str, reason: Reason) -> Result<(), Refusal> {
    let detail = match limits::short(text) {
        Ok(()) => return Ok(()),
        Err(NotShort::TooLong) => format!(
            "{column} has {} bytes or more; AMQP allows {SHORT}",
            text.len()
        ),
        Err(NotShort::ControlCharacter) => format!("{column} holds a control character"),
    };
    Err(Refusal::new(reason, detail))
}

/// Size of the content header frame's payload, in bytes: the fixed part and the properties that the relay sets.
fn content_header_size(p: &Properties, headers: &[(String, HeaderValue)]) -> usize {
    // Class 2, weight 2, body size 8, flags 2.
    const FIXED: usize = 14;
    const DELIVERY_MODE: usize = 1;
    const TIMESTAMP: usize = 8;
    let short = |text: &str| 1 + text.len();
    let correlation_id = p.correlation_id.as_deref().map_or(0, short);
    FIXED
        + DELIVERY_MODE
        + TIMESTAMP
        + short(&p.message_id)
        + short(&p.type_)
        + short(&p.content_type)
        + short(&p.app_id)
        + correlation_id
        + header::table_size(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{message::sample, route::RoutingRules};

    const FRAME_MAX: u32 = 131_072;

    fn builder(cloudevents_source: Option<&str>) -> EnvelopeBuilder {
        let router = Router::new(RoutingRules {
            exchange: "events".to_owned(),
            routing_key: "{aggregate_type}.{event_type}".to_owned(),
            mandatory: true,
            ..RoutingRules::default()
        });
        let options = EnvelopeOptions {
            app_id: "outboxd".to_owned(),
            cloudevents_source: cloudevents_source.map(str::to_owned),
            max_payload_bytes: 1 << 20,
        };
        EnvelopeBuilder::new(router.unwrap(), options)
    }

    fn built(mut message: Message) -> Result<Envelope, Refusal> {
        builder(None).build(&mut message, FRAME_MAX)
    }

    fn reason(message: Message) -> Reason {
        built(message).unwrap_err().reason
    }

    fn with_headers(json: &str) -> Message {
        Message {
            headers: Some(json.to_owned()),
            ..sample()
        }
    }

    fn text(text: &str) -> HeaderValue {
        HeaderValue::String(text.to_owned())
    }

    fn named(name: &str, value: HeaderValue) -> (String, HeaderValue) {
        (name.to_owned(), value)
    }

    #[test]
    fn a_row_becomes_the_contracted_message() {
        let headers = r#"{"traceparent":"00-1-2-01","correlation_id":"c1","tenant":"blue"}"#;
        let envelope = built(Message {
            attempts: 2,
            replay: true,
            ..with_headers(headers)
        })
        .unwrap();
        assert_eq!(
            envelope,
            Envelope {
                exchange: "events".to_owned(),
                routing_key: "order.created".to_owned(),
                mandatory: true,
                properties: Properties {
                    message_id: sample().message_id.to_string(),
                    type_: "created".to_owned(),
                    content_type: "application/json".to_owned(),
                    timestamp_s: 1_700_000_000,
                    app_id: "outboxd".to_owned(),
                    correlation_id: Some("c1".to_owned()),
                },
                headers: vec![
                    named("tenant", text("blue")),
                    named("traceparent", text("00-1-2-01")),
                    named("outbox-key", text("order:1042")),
                    named("outbox-position", HeaderValue::I64(77)),
                    named("outbox-attempt", HeaderValue::I64(3)),
                    named("outbox-replay", HeaderValue::Bool(true)),
                ],
                body: b"{}".to_vec(),
            }
        );
    }

    #[test]
    fn a_first_attempt_and_a_message_without_a_key_carry_no_such_header() {
        let envelope = built(Message {
            aggregate_id: None,
            ..sample()
        })
        .unwrap();
        assert_eq!(
            envelope.headers,
            [named("outbox-position", HeaderValue::I64(77))]
        );
    }

    #[test]
    fn a_time_beyond_rfc_3339_becomes_its_last_day() {
        for (created_at_us, time) in [
            (i64::MAX, "9999-12-31T23:59:59.999999Z"),
            (i64::MIN, "1970-01-01T00:00:00.000000Z"),
        ] {
            let mut message = Message {
                created_at_us,
                ..sample()
            };
            let envelope = builder(Some("/shop")).build(&mut message, FRAME_MAX);
            let headers = envelope.unwrap().headers;
            assert!(headers.contains(&named("cloudEvents_time", text(time))));
        }
    }

    #[test]
    fn cloudevents_in_binary_mode() {
        let envelope = builder(Some("/shop"))
            .build(&mut sample(), FRAME_MAX)
            .unwrap();
        let expected = [
            ("cloudEvents_specversion", "1.0".to_owned()),
            ("cloudEvents_id", sample().message_id.to_string()),
            ("cloudEvents_source", "/shop".to_owned()),
            ("cloudEvents_type", "created".to_owned()),
            ("cloudEvents_time", "2023-11-14T22:13:20.123456Z".to_owned()),
            ("cloudEvents_subject", "1042".to_owned()),
            ("cloudEvents_partitionkey", "order:1042".to_owned()),
        ];
        for (have, (name, value)) in envelope.headers.iter().zip(expected) {
            assert_eq!(*have, named(name, HeaderValue::String(value)));
        }
        let forged =
            builder(Some("/shop")).build(&mut with_headers(r#"{"cloudEvents_id":"1"}"#), FRAME_MAX);
        assert_eq!(forged.unwrap_err().reason, Reason::HeaderReserved);
    }

    #[test]
    fn a_body_is_sent_unchanged() {
        let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
        let bodies: [&[u8]; 6] = [
            b"",
            b"\xff\x00\xfe",
            br#""\u0000""#,
            br#"{"a":1e400,"a":1}"#,
            b"12345678901234567890123",
            &deep,
        ];
        for body in bodies {
            let message = Message {
                body: Some(body.to_vec()),
                ..sample()
            };
            assert_eq!(built(message).unwrap().body, body);
        }
    }

    #[test]
    fn a_bad_row_is_refused_with_its_reason() {
        type Change = fn(&mut Message);
        let cases: [(Change, Reason); 6] = [
            (
                |m| (m.body, m.body_size) = (None, 9 << 20),
                Reason::PayloadTooLarge,
            ),
            (
                |m| m.aggregate_id = Some("a\u{1}".to_owned()),
                Reason::KeyInvalid,
            ),
            (
                |m| m.aggregate_type = "a\r\n".to_owned(),
                Reason::KeyInvalid,
            ),
            (|m| m.event_type = "x".repeat(256), Reason::TypeInvalid),
            (|m| m.event_type = "a\n".to_owned(), Reason::TypeInvalid),
            (
                |m| m.content_type = "x".repeat(256),
                Reason::ContentTypeInvalid,
            ),
        ];
        for (change, expected) in cases {
            // The pattern of the route would refuse such a type first.
            let mut message = Message {
                routing_key: Some("r".to_owned()),
                ..sample()
            };
            change(&mut message);
            assert_eq!(reason(message), expected);
        }
    }

    #[test]
    fn the_largest_header_that_fits_a_frame_is_sent_and_one_byte_more_is_refused() {
        let with = |n: usize| built(with_headers(&format!(r#"{{"h":"{}"}}"#, "x".repeat(n))));
        let fixed = {
            let envelope = with(0).unwrap();
            content_header_size(&envelope.properties, &envelope.headers)
        };
        let fits = FRAME_MAX as usize - 8 - fixed;
        assert!(with(fits).is_ok());
        assert_eq!(with(fits + 1).unwrap_err().reason, Reason::HeadersTooLarge);
        let mut message = with_headers(&format!(r#"{{"h":"{}"}}"#, "x".repeat(5000)));
        assert_eq!(
            builder(None).build(&mut message, 4096).unwrap_err().reason,
            Reason::HeadersTooLarge
        );
    }

    #[test]
    fn a_message_has_the_key_that_the_relay_wrote() {
        let own_header = || with_headers(r#"{"tenant":"blue"}"#);
        assert_eq!(built(own_header()).unwrap().key(), Some("order:1042"));
        let without = Message {
            aggregate_id: None,
            ..own_header()
        };
        assert_eq!(built(without).unwrap().key(), None);
    }

    /// Counted by hand: class, weight, body size and flags. Each short string has one byte for its length.
    #[test]
    fn a_content_header_has_the_size_that_it_takes_on_the_wire() {
        let properties = |correlation_id| Properties {
            message_id: "12345".to_owned(),
            type_: "t".to_owned(),
            content_type: "text".to_owned(),
            timestamp_s: 0,
            app_id: "ab".to_owned(),
            correlation_id,
        };
        let fixed = (2 + 2 + 8 + 2) + 1 + 8;
        let texts = (1 + 5) + (1 + 1) + (1 + 4) + (1 + 2);
        let no_headers = 4;
        assert_eq!(
            content_header_size(&properties(None), &[]),
            fixed + texts + no_headers
        );
        let one_header = [named("h", HeaderValue::Null)];
        assert_eq!(
            content_header_size(&properties(Some("xyz".to_owned())), &one_header),
            fixed + texts + (1 + 3) + (4 + 2 + 1)
        );
    }

    #[test]
    fn a_connection_without_a_largest_frame_takes_any_header() {
        let mut message = with_headers(&format!(r#"{{"h":"{}"}}"#, "x".repeat(131_000)));
        assert!(builder(None).build(&mut message, 0).is_ok());
    }

    #[test]
    fn headers_that_were_too_large_to_be_fetched_are_refused() {
        let unfetched = |headers_size| Message {
            headers: None,
            headers_size,
            ..sample()
        };
        assert_eq!(reason(unfetched(131_073)), Reason::HeadersTooLarge);
        assert!(built(unfetched(131_072)).is_ok());
    }

    proptest! {
        /// Any row becomes an envelope within AMQP's limits, or a reason, and never a panic.
        #[test]
        fn any_row_is_an_envelope_or_a_refusal(
            aggregate_type in ".{0,300}", aggregate_id in proptest::option::of(".{0,300}"), event_type in ".{0,300}",
            exchange in proptest::option::of(".{0,300}"), routing_key in proptest::option::of(".{0,300}"),
            content_type in ".{0,300}", headers in proptest::option::of(".{0,300}"), created_at_us: i64,
            attempts: u32, body in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
        ) {
            let message = Message {
                aggregate_type, aggregate_id, event_type, exchange, routing_key, content_type, headers, created_at_us,
                attempts, body, ..sample()
            };
            if let Ok(envelope) = built(message) {
                let p = &envelope.properties;
                for text in [&envelope.exchange, &envelope.routing_key, &p.type_, &p.content_type] {
                    prop_assert!(text.len() <= SHORT && !text.contains(char::is_control));
                }
                prop_assert!(envelope.headers.iter().all(|(name, _)| !name.is_empty() && name.len() <= SHORT));
            }
        }
    }
}
