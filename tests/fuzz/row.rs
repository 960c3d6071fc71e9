//! Rows: what becomes an envelope goes onto the wire and comes back equal; nothing of the relay's is forged; what does
//! not is refused for a reason that stays.

use std::collections::BTreeMap;

use amq_protocol::{
    frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame},
    protocol::{AMQPClass, basic},
};
use lapin::types::{AMQPValue, FieldTable};
use outbox_core::{
    envelope::{Envelope, EnvelopeBuilder, EnvelopeOptions},
    limits::HEADERS_TEXT,
    message::{Message, Position},
    reason::{Reason, Refusal},
    route::{Router, RoutingRules, Rule},
};
use outboxd::broker::properties;
use proptest::{prelude::*, test_runner::TestCaseResult};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// In every body, and in nothing else.
const CANARY: &[u8] = b"cAnArY";
const MAX_PAYLOAD: u64 = 4096;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    aggregate_type: String,
    aggregate_id: Option<String>,
    event_type: String,
    content_type: String,
    headers: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    created_at_us: i64,
    position: i64,
    attempts: u32,
    replay: bool,
    /// Behind the canary; `None`: too large, and not fetched.
    body: Option<Vec<u8>>,
    frame_max: u32,
    cloudevents: bool,
    /// Only in the corpus: the reason code, or `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-zA-Z0-9._:-]{0,12}",
        1 => ".{0,20}",
        1 => any::<String>(),
        1 => "[a-z]{250,260}",
        1 => "é{125,130}",
        1 => prop::sample::select(vec!["", "\0", "a\r\nb", "\u{7f}", "\u{85}", "#", "*", "{event_type}", "amq.", "\u{202e}"])
            .prop_map(str::to_owned),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "1e400",
            "-1e400",
            "123456789012345678901234",
            "-0",
            "-0.0",
            "1E2",
            "0.1e-999",
            "9223372036854775808"
        ])
        .prop_map(|n| serde_json::from_str(n).unwrap()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..4)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    let known = vec![
        "traceparent",
        "tracestate",
        "correlation_id",
        "x-death",
        "x-delay",
        "CC",
        "BCC",
        "outbox-key",
        "outbox-position",
        "outbox-attempt",
        "outbox-replay",
        "cloudEvents_id",
        "cloudEvents:id",
        "cloudEvents_source",
        "OUTBOX-KEY",
        "",
        "x",
    ];
    prop_oneof![
        2 => prop::sample::select(known).prop_map(str::to_owned),
        4 => "[a-z-]{1,8}",
        1 => text(),
    ]
}

fn headers() -> impl Strategy<Value = Option<String>> {
    let fields = prop::collection::vec((name(), json()), 0..5);
    let object = fields.prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>());
    let object = object
        .prop_map(|fields| Value::Object(fields).to_string())
        .boxed();
    let mangled =
        (object.clone(), any::<prop::sample::Index>(), ".").prop_map(|(text, at, with)| {
            let at = at.index(text.chars().count());
            let mut chars: Vec<String> = text.chars().map(String::from).collect();
            chars[at] = with;
            chars.concat()
        });
    let deep =
        (1..20_000usize).prop_map(|n| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n)));
    let wide = (1..1200usize, 1..160usize).prop_map(|(n, length)| {
        let value = "v".repeat(length);
        let fields = (0..n).map(|i| (format!("h{i}"), Value::from(value.clone())));
        Value::Object(fields.collect()).to_string()
    });
    prop_oneof![
        2 => Just(None),
        10 => object.prop_map(Some),
        2 => mangled.prop_map(Some),
        1 => json().prop_map(|value| Some(value.to_string())),
        1 => any::<String>().prop_map(Some),
        1 => deep.prop_map(Some),
        1 => wide.prop_map(Some),
    ]
}

fn inputs() -> impl Strategy<Value = Input> {
    let texts = (text(), prop::option::of(text()), text(), text());
    let route = (prop::option::of(text()), prop::option::of(text()));
    let body = prop::option::weighted(0.95, prop::collection::vec(any::<u8>(), 0..40));
    let frame_max = prop_oneof![4 => Just(131_072u32), 1 => Just(0u32), 2 => 4096..8192u32];
    let numbers = (any::<i64>(), any::<i64>(), any::<u32>(), any::<bool>());
    (
        texts,
        headers(),
        route,
        numbers,
        body,
        frame_max,
        any::<bool>(),
    )
        .prop_map(
            |(texts, headers, route, numbers, body, frame_max, cloudevents)| Input {
                aggregate_type: texts.0,
                aggregate_id: texts.1,
                event_type: texts.2,
                content_type: texts.3,
                headers,
                exchange: route.0,
                routing_key: route.1,
                created_at_us: numbers.0,
                position: numbers.1,
                attempts: numbers.2,
                replay: numbers.3,
                body,
                frame_max,
                cloudevents,
                expect: None,
            },
        )
}

impl Input {
    fn message(&self) -> Message {
        let body = self
            .body
            .as_ref()
            .map(|tail| [CANARY, tail.as_slice()].concat());
        Message {
            position: Position {
                lane: 1,
                id: self.position,
            },
            message_id: Uuid::from_u128(7),
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            event_type: self.event_type.clone(),
            content_type: self.content_type.clone(),
            headers: self.headers.clone(),
            headers_size: self.headers.as_ref().map_or(0, |text| text.len() as u64),
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            created_at_us: self.created_at_us,
            attempts: self.attempts,
            replay: self.replay,
            body_size: body.as_ref().map_or(MAX_PAYLOAD + 1, |b| b.len() as u64),
            body,
            damage: None,
        }
    }

    fn built(&self, frame_max: u32) -> Result<Envelope, Refusal> {
        let router = Router::new(RoutingRules {
            exchange: "events".to_owned(),
            routing_key: "{aggregate_type}.{event_type}".to_owned(),
            mandatory: true,
            routes: vec![Rule {
                aggregate_type: Some("keyed*".to_owned()),
                routing_key: Some("{aggregate_id}".to_owned()),
                ..Rule::default()
            }],
            allowed_exchanges: Some(vec!["audit".to_owned(), "é".repeat(200)]),
        });
        let options = EnvelopeOptions {
            app_id: "outboxd".to_owned(),
            cloudevents_source: self.cloudevents.then(|| "/shop".to_owned()),
            max_payload_bytes: MAX_PAYLOAD,
        };
        EnvelopeBuilder::new(router.unwrap(), options).build(&mut self.message(), frame_max)
    }
}

fn judge(input: &Input) -> TestCaseResult {
    let built = input.built(input.frame_max);
    if let Some(expect) = &input.expect {
        let said = built
            .as_ref()
            .map_or_else(|refusal| refusal.reason.as_str(), |_| "accepted");
        prop_assert_eq!(said, expect);
    }
    match built {
        Ok(envelope) => accepted(input, &envelope),
        Err(refusal) => refused(input, &refusal),
    }
}

fn accepted(input: &Input, envelope: &Envelope) -> TestCaseResult {
    let message = input.message();
    prop_assert_eq!(
        Some(&envelope.body),
        message.body.as_ref(),
        "bytes pass through unchanged"
    );
    prop_assert_eq!(&envelope.properties.type_, &input.event_type);
    prop_assert_eq!(&envelope.properties.content_type, &input.content_type);
    for key in [
        &message.aggregate_type,
        message.aggregate_id.as_ref().unwrap_or(&String::new()),
    ] {
        prop_assert!(!key.contains(char::is_control));
    }
    prop_assert!(
        ["events", "audit"].contains(&envelope.exchange.as_str()),
        "{}",
        envelope.exchange
    );
    if let Some(named) = &input.routing_key {
        prop_assert_eq!(&envelope.routing_key, named);
    }
    let wire = header_frame(envelope)?;
    if input.frame_max != 0 {
        prop_assert!(
            wire <= input.frame_max as usize,
            "{} bytes on the wire",
            wire
        );
    }
    publish_frame(envelope)?;
    headers_are_right(input, envelope)
}

/// Encodes and parses a frame; `WriteContext` has the bytes.
fn there_and_back(frame: &AMQPFrame) -> Result<(AMQPFrame, usize), TestCaseError> {
    let written = gen_frame(frame)(WriteContext::from(Vec::new()));
    let (bytes, _) = written
        .map_err(|e| TestCaseError::fail(format!("not encoded: {e:?}")))?
        .into_inner();
    let (rest, parsed) = parse_frame(bytes.as_slice())
        .map_err(|e| TestCaseError::fail(format!("not parsed: {e:?}")))?;
    prop_assert!(rest.is_empty());
    Ok((parsed, bytes.len()))
}

/// Bytes of the frame with the properties, which come back equal.
fn header_frame(envelope: &Envelope) -> Result<usize, TestCaseError> {
    let properties = properties(envelope);
    let content = AMQPContentHeader {
        class_id: 60,
        body_size: envelope.body.len() as u64,
        properties: properties.clone(),
    };
    let (parsed, bytes) = there_and_back(&AMQPFrame::Header(1, content))?;
    let AMQPFrame::Header(1, back) = parsed else {
        return Err(TestCaseError::fail("another frame came back"));
    };
    prop_assert_eq!(back.body_size, envelope.body.len() as u64);
    prop_assert_eq!(&back.properties, &properties);
    let texts = [
        (
            back.properties.message_id(),
            &envelope.properties.message_id,
        ),
        (back.properties.kind(), &envelope.properties.type_),
        (
            back.properties.content_type(),
            &envelope.properties.content_type,
        ),
        (back.properties.app_id(), &envelope.properties.app_id),
    ];
    for (have, want) in texts {
        prop_assert_eq!(have.as_ref().map(|text| text.as_str()), Some(want.as_str()));
    }
    let id = back
        .properties
        .correlation_id()
        .as_ref()
        .map(|id| id.as_str());
    prop_assert_eq!(id, envelope.properties.correlation_id.as_deref());
    prop_assert_eq!(back.properties.delivery_mode(), &Some(2));
    let count = back
        .properties
        .headers()
        .as_ref()
        .map_or(0, |h| h.inner().len());
    prop_assert_eq!(count, envelope.headers.len(), "no header hides another");
    Ok(bytes)
}

fn publish_frame(envelope: &Envelope) -> TestCaseResult {
    let short = |text: &str| {
        lapin::types::ShortString::try_new(text).map_err(|e| TestCaseError::fail(e.to_string()))
    };
    let publish = basic::Publish {
        exchange: short(&envelope.exchange)?,
        routing_key: short(&envelope.routing_key)?,
        mandatory: envelope.mandatory,
        immediate: false,
    };
    let frame = AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Publish(publish)));
    let (parsed, _) = there_and_back(&frame)?;
    prop_assert_eq!(parsed, frame);
    Ok(())
}

/// The relay's headers are exactly these, whatever the row says; the row's are what it says.
fn headers_are_right(input: &Input, envelope: &Envelope) -> TestCaseResult {
    let table = properties(envelope).headers().clone().unwrap_or_default();
    let is_ours = |name: &str| {
        let cloud = name.starts_with("cloudEvents_") || name.starts_with("cloudEvents:");
        name.starts_with("outbox-") || (input.cloudevents && cloud)
    };
    let mut ours = BTreeMap::new();
    let mut own = BTreeMap::new();
    for (name, value) in table.inner() {
        let name = name.as_str();
        prop_assert!(
            !name.starts_with("x-") && name != "CC" && name != "BCC",
            "{} was forged",
            name
        );
        let into = if is_ours(name) { &mut ours } else { &mut own };
        into.insert(name.to_owned(), value.clone());
    }

    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut expected = BTreeMap::from([(
        "outbox-position".to_owned(),
        AMQPValue::LongLongInt(input.position),
    )]);
    let key = input
        .aggregate_id
        .as_ref()
        .map(|id| format!("{}:{id}", input.aggregate_type));
    if let Some(key) = &key {
        expected.insert("outbox-key".to_owned(), text(key));
    }
    if input.attempts > 0 {
        let attempt = AMQPValue::LongLongInt(i64::from(input.attempts) + 1);
        expected.insert("outbox-attempt".to_owned(), attempt);
    }
    if input.replay {
        expected.insert("outbox-replay".to_owned(), AMQPValue::Boolean(true));
    }
    if input.cloudevents {
        prop_assert!(ours.remove("cloudEvents_time").is_some());
        let attributes = [
            ("specversion", "1.0"),
            ("source", "/shop"),
            ("type", &input.event_type),
        ];
        for (name, value) in attributes {
            expected.insert(format!("cloudEvents_{name}"), text(value));
        }
        let id = Uuid::from_u128(7).to_string();
        expected.insert("cloudEvents_id".to_owned(), text(&id));
        if let (Some(id), Some(key)) = (&input.aggregate_id, &key) {
            expected.insert("cloudEvents_subject".to_owned(), text(id));
            expected.insert("cloudEvents_partitionkey".to_owned(), text(key));
        }
    }
    prop_assert_eq!(ours, expected);

    let given: Value = input
        .headers
        .as_ref()
        .map_or(Value::Object(serde_json::Map::new()), |text| {
            serde_json::from_str(text).expect("accepted headers are JSON")
        });
    let mut given = match given {
        Value::Object(given) => given,
        // Database drivers write this for "no headers".
        Value::Null => serde_json::Map::new(),
        _ => {
            return Err(TestCaseError::fail(
                "accepted headers are an object, or null",
            ));
        }
    };
    let id = given.remove("correlation_id");
    prop_assert_eq!(
        id.as_ref().and_then(Value::as_str),
        envelope.properties.correlation_id.as_deref()
    );
    prop_assert_eq!(own.len(), given.len());
    for (name, value) in &given {
        let have = own.get(name);
        prop_assert!(
            have.is_some_and(|have| same(have, value, 1)),
            "{}: {:?} for {}",
            name,
            have,
            value
        );
    }
    Ok(())
}

fn same(have: &AMQPValue, given: &Value, level: usize) -> bool {
    match (have, given) {
        (AMQPValue::Void, Value::Null) => true,
        (AMQPValue::Boolean(a), Value::Bool(b)) => a == b,
        (AMQPValue::LongString(a), Value::String(b)) => a.as_bytes() == b.as_bytes(),
        (AMQPValue::LongLongInt(a), Value::Number(b)) => {
            b.as_str().parse() == Ok(*a) || (*a == 0 && b.as_str() == "-0")
        }
        (AMQPValue::Double(a), Value::Number(b)) => {
            b.as_str().contains(['.', 'e', 'E']) && a.is_finite() && b.as_str().parse() == Ok(*a)
        }
        (AMQPValue::FieldArray(a), Value::Array(b)) => {
            let a = a.as_slice();
            level < 4 && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, level + 1))
        }
        (AMQPValue::FieldTable(a), Value::Object(b)) => level < 4 && same_table(a, b, level + 1),
        _ => false,
    }
}

fn same_table(have: &FieldTable, given: &serde_json::Map<String, Value>, level: usize) -> bool {
    let have = have.inner();
    have.len() == given.len()
        && given.iter().all(|(name, value)| {
            have.get(name.as_str())
                .is_some_and(|have| same(have, value, level))
        })
}

fn refused(input: &Input, refusal: &Refusal) -> TestCaseResult {
    use Reason::*;
    let detail = &refusal.detail;
    let again = input.built(input.frame_max);
    prop_assert_eq!(again.as_ref(), Err(refusal), "the reason stays");
    prop_assert!(
        !detail.contains("cAnArY") && !detail.contains(char::is_control),
        "{:?}",
        detail
    );
    prop_assert!(
        !detail.is_empty() && detail.len() < 600,
        "{} bytes of detail",
        detail.len()
    );

    let control = |text: &str| text.contains(char::is_control);
    let bad = |text: &str| text.len() > 255 || control(text);
    let pattern = format!("{}.{}", input.aggregate_type, input.event_type);
    let routing_key = match (&input.routing_key, &input.aggregate_id) {
        (Some(named), _) => Some(named.clone()),
        (None, id) if input.aggregate_type.starts_with("keyed") => id.clone(),
        (None, _) => Some(pattern),
    };
    let right = match refusal.reason {
        KeyInvalid => {
            control(&input.aggregate_type) || input.aggregate_id.as_deref().is_some_and(control)
        }
        PayloadTooLarge => input.body.is_none(),
        TypeInvalid => bad(&input.event_type),
        ContentTypeInvalid => bad(&input.content_type),
        ExchangeNotAllowed => input
            .exchange
            .as_deref()
            .is_some_and(|named| !["events", "audit"].contains(&named)),
        ExchangeInvalid => input.exchange.as_deref().is_some_and(bad),
        RoutingKeyTooLong => routing_key.is_some_and(|key| key.len() > 255),
        RoutingKeyInvalid => routing_key.is_some_and(|key| control(&key)),
        NoRoute => routing_key.is_none(),
        HeadersInvalid | HeaderReserved | NumberOutOfRange => input.headers.is_some(),
        HeadersTooLarge => match input.built(0) {
            Ok(envelope) => header_frame(&envelope)? > input.frame_max as usize,
            Err(_) => input
                .headers
                .as_ref()
                .is_some_and(|text| text.len() > HEADERS_TEXT),
        },
        other => {
            return Err(TestCaseError::fail(format!(
                "{other:?} is not a row's fault"
            )));
        }
    };
    prop_assert!(right, "{:?}: {}", refusal.reason, detail);
    Ok(())
}

#[test]
fn rows() {
    crate::fuzz("row", &inputs(), judge);
}
