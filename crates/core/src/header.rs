//! Converts a row's `headers` from JSON text to AMQP field values. No I/O.

use serde_json::{Map, Number, Value};

use crate::{
    limits::{self, HEADER_LEVELS, HEADERS_TEXT, NotShort, SHORT},
    reason::{Reason, Refusal},
};

/// A value of an AMQP field table.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    Bool(bool),
    I64(i64),
    F64(f64),
    String(String),
    Null,
    List(Vec<HeaderValue>),
    Table(Vec<(String, HeaderValue)>),
}

/// The contents of a row's headers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Own {
    pub headers: Vec<(String, HeaderValue)>,
    /// The header `correlation_id` becomes the message property of that name.
    pub correlation_id: Option<String>,
}

pub(crate) fn too_large() -> Refusal {
    let detail = format!("headers have more than {HEADERS_TEXT} bytes of JSON");
    Refusal::new(Reason::HeadersTooLarge, detail)
}

/// `cloudevents`: the attributes of CloudEvents are reserved names as well.
pub(crate) fn parse(text: &str, cloudevents: bool) -> Result<Own, Refusal> {
    let invalid = |detail: String| Refusal::new(Reason::HeadersInvalid, detail);
    if text.len() > HEADERS_TEXT {
        return Err(too_large());
    }
    // The error names only the position, because the parser's text may quote the row.
    let value: Value = serde_json::from_str(text).map_err(|e| {
        invalid(format!(
            "headers cannot be read: line {}, column {}",
            e.line(),
            e.column()
        ))
    })?;
    let fields = match value {
        Value::Object(fields) => fields,
        // ORMs and drivers write JSON `null` for "no headers".
        Value::Null => return Ok(Own::default()),
        _ => {
            return Err(invalid("headers must be a JSON object".to_owned()));
        }
    };
    let mut own = Own::default();
    for (name, value) in fields {
        if name == "correlation_id" {
            match value {
                Value::String(id) if limits::short(&id).is_ok() => {
                    own.correlation_id = Some(id);
                }
                _ => {
                    return Err(invalid(
                        "correlation_id must be a string of at most 255 bytes".to_owned(),
                    ));
                }
            }
            continue;
        }
        check_name(&name)?;
        if is_reserved(&name) || (cloudevents && is_of_cloudevents(&name)) {
            let detail = format!("the header name \"{name}\" is reserved");
            return Err(Refusal::new(Reason::HeaderReserved, detail));
        }
        own.headers
            .push((name, converted(value, HEADER_LEVELS - 1)?));
    }
    Ok(own)
}

/// Reserved names: `x-` is RabbitMQ's, `CC` and `BCC` route copies (<https://www.rabbitmq.com/docs/sender-selected>),
/// and `outbox-` is the relay's. AMQP header names are case-sensitive.
#[inline]
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("x-") || name == "CC" || name == "BCC" || name.starts_with("outbox-")
}

fn is_of_cloudevents(name: &str) -> bool {
    name.starts_with("cloudEvents_") || name.starts_with("cloudEvents:")
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let problem = match limits::short(name) {
        Ok(()) if name.is_empty() => "a header name is empty".to_owned(),
        Ok(()) => return Ok(()),
        Err(NotShort::TooLong) => format!(
            "a header name has {} bytes; AMQP allows {SHORT}",
            name.len()
        ),
        Err(NotShort::ControlCharacter) => "a header name holds a control character".to_owned(),
    };
    Err(Refusal::new(Reason::HeadersInvalid, problem))
}

fn converted(value: Value, levels_left: usize) -> Result<HeaderValue, Refusal> {
    let nested = || {
        if levels_left == 0 {
            let detail = format!("headers are nested deeper than {HEADER_LEVELS} levels");
            return Err(Refusal::new(Reason::HeadersInvalid, detail));
        }
        Ok(levels_left - 1)
    };
    Ok(match value {
        Value::Null => HeaderValue::Null,
        Value::Bool(b) => HeaderValue::Bool(b),
        Value::String(s) => HeaderValue::String(s),
        Value::Number(n) => number(&n)?,
        Value::Array(items) => {
            let levels = nested()?;
            HeaderValue::List(
                items
                    .into_iter()
                    .map(|item| converted(item, levels))
                    .collect::<Result<_, _>>()?,
            )
        }
        Value::Object(fields) => HeaderValue::Table(table(fields, nested()?)?),
    })
}

fn table(
    fields: Map<String, Value>,
    levels_left: usize,
) -> Result<Vec<(String, HeaderValue)>, Refusal> {
    fields
        .into_iter()
        .map(|(name, value)| {
            check_name(&name)?;
            Ok((name, converted(value, levels_left)?))
        })
        .collect()
}

/// A 64-bit integer, or a double if the JSON number is written as one.
pub fn number(n: &Number) -> Result<HeaderValue, Refusal> {
    let refused = |what: &str| {
        Err(Refusal::new(
            Reason::NumberOutOfRange,
            format!("a header's number {what}"),
        ))
    };
    if let Some(n) = n.as_i64() {
        return Ok(HeaderValue::I64(n));
    }
    if !n.as_str().contains(['.', 'e', 'E']) {
        return refused("is an integer beyond 64 bits; send it as a string");
    }
    match n.as_f64() {
        Some(n) if n.is_finite() => Ok(HeaderValue::F64(n)),
        _ => refused("is beyond what a double holds; send it as a string"),
    }
}

/// Size on the wire, in bytes: <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>.
pub(crate) fn table_size(fields: &[(String, HeaderValue)]) -> usize {
    4 + fields
        .iter()
        .map(|(name, value)| 1 + name.len() + 1 + value_size(value))
        .sum::<usize>()
}

fn value_size(value: &HeaderValue) -> usize {
    match value {
        HeaderValue::Bool(_) => 1,
        HeaderValue::I64(_) | HeaderValue::F64(_) => 8,
        HeaderValue::String(s) => 4 + s.len(),
        HeaderValue::Null => 0,
        HeaderValue::List(items) => {
            4 + items.iter().map(|item| 1 + value_size(item)).sum::<usize>()
        }
        HeaderValue::Table(fields) => table_size(fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Reason {
        parse(json, false).unwrap_err().reason
    }

    #[test]
    fn scalars_and_shallow_trees_keep_their_kind() {
        let own = parse(
            r#"{"a":true,"b":-5,"c":1.5,"d":"x","e":null,"f":[1,{"g":[2]}],"h":1e3}"#,
            false,
        )
        .unwrap();
        let values: Vec<_> = own.headers.into_iter().map(|(_, value)| value).collect();
        let inner = vec![("g".to_owned(), HeaderValue::List(vec![HeaderValue::I64(2)]))];
        assert_eq!(
            values,
            [
                HeaderValue::Bool(true),
                HeaderValue::I64(-5),
                HeaderValue::F64(1.5),
                HeaderValue::String("x".to_owned()),
                HeaderValue::Null,
                HeaderValue::List(vec![HeaderValue::I64(1), HeaderValue::Table(inner)]),
                HeaderValue::F64(1000.0),
            ]
        );
    }

    #[test]
    fn headers_that_are_not_an_object_or_too_deep_are_invalid() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        for json in [
            "[]",
            "1",
            "\"x\"",
            "",
            r#"{"a":[[[[1]]]]}"#,
            &deep,
            r#"{"":1}"#,
            r#"{"a":{"":1}}"#,
        ] {
            assert_eq!(refused(json), Reason::HeadersInvalid, "{json}");
        }
        assert!(parse(r#"{"a":[[[1]]]}"#, false).is_ok());
        assert_eq!(
            refused(&format!(r#"{{"{}":1}}"#, "n".repeat(256))),
            Reason::HeadersInvalid
        );
        assert!(parse(&format!(r#"{{"{}":1}}"#, "n".repeat(255)), false).is_ok());
        assert_eq!(refused(r#"{"a\nb":1}"#), Reason::HeadersInvalid);
        for json in [
            r#"{"correlation_id":1}"#,
            &format!(r#"{{"correlation_id":"{}"}}"#, "c".repeat(256)),
        ] {
            assert_eq!(refused(json), Reason::HeadersInvalid, "{json}");
        }
    }

    #[test]
    fn reserved_names_cannot_be_forged() {
        for name in [
            "x-death",
            "x-",
            "CC",
            "BCC",
            "outbox-key",
            "outbox-anything",
        ] {
            assert_eq!(
                refused(&format!(r#"{{"{name}":"v"}}"#)),
                Reason::HeaderReserved,
                "{name}"
            );
        }
        assert!(
            parse(
                r#"{"X-Request-Id":"1","cc":"1","cloudEvents_id":"1"}"#,
                false
            )
            .is_ok()
        );
        assert_eq!(
            parse(r#"{"cloudEvents:id":"1"}"#, true).unwrap_err().reason,
            Reason::HeaderReserved
        );
    }

    #[test]
    fn numbers_beyond_their_kind_are_out_of_range() {
        for n in [
            "9223372036854775808",
            "-9223372036854775809",
            "12345678901234567890123",
            "1e400",
            "-1e400",
        ] {
            assert_eq!(
                refused(&format!(r#"{{"n":{n}}}"#)),
                Reason::NumberOutOfRange,
                "{n}"
            );
        }
        assert!(
            parse(
                r#"{"n":9223372036854775807,"m":-9223372036854775808}"#,
                false
            )
            .is_ok()
        );
    }

    #[test]
    fn too_much_text_is_refused_before_it_is_read() {
        assert_eq!(
            refused(&" ".repeat(HEADERS_TEXT + 1)),
            Reason::HeadersTooLarge
        );
    }

    #[test]
    fn a_refusal_does_not_quote_a_value() {
        let refusal = parse(r#"{"a": hunter2}"#, false).unwrap_err();
        assert!(!refusal.detail.contains("hunter2"), "{}", refusal.detail);
    }

    #[test]
    fn text_up_to_the_limit_is_read() {
        let text = format!("{{}}{}", " ".repeat(HEADERS_TEXT - 2));
        assert_eq!(parse(&text, false), Ok(Own::default()));
    }

    #[test]
    fn null_is_no_headers() {
        assert_eq!(parse("null", false), Ok(Own::default()));
    }

    #[test]
    fn a_correlation_id_moves_to_its_property() {
        let longest = "c".repeat(255);
        let own = parse(&format!(r#"{{"correlation_id":"{longest}","a":1}}"#), true).unwrap();
        assert_eq!(own.correlation_id, Some(longest));
        assert_eq!(own.headers, [("a".to_owned(), HeaderValue::I64(1))]);
        assert_eq!(
            refused(r#"{"correlation_id":"a\nb"}"#),
            Reason::HeadersInvalid
        );
    }

    /// Counted by hand: a table's length takes four bytes, a name its own length and one byte, a value's kind one byte.
    #[test]
    fn a_table_has_the_size_that_it_takes_on_the_wire() {
        let size = |json: &str| table_size(&parse(json, false).unwrap().headers);
        assert_eq!(size("{}"), 4);
        assert_eq!(size(r#"{"a":true}"#), 4 + 2 + 1 + 1);
        assert_eq!(size(r#"{"a":null}"#), 4 + 2 + 1);
        assert_eq!(size(r#"{"abc":7}"#), 4 + 4 + 1 + 8);
        assert_eq!(size(r#"{"a":1.5}"#), 4 + 2 + 1 + 8);
        assert_eq!(size(r#"{"a":"xyz"}"#), 4 + 2 + 1 + 4 + 3);
        let list = 4 + (1 + 8) + (1 + 1);
        assert_eq!(size(r#"{"a":[1,true]}"#), 4 + 2 + 1 + list);
        let table = 4 + 3 + 1 + 8;
        assert_eq!(
            size(r#"{"a":{"bc":1},"d":null}"#),
            4 + (2 + 1 + table) + (2 + 1)
        );
    }
}
