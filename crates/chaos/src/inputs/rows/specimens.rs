//! Rows as SQL, and what becomes of each.

/// What becomes of a row.
#[derive(Clone, Copy)]
pub enum End {
    /// With this reason, at the first attempt: no retry mends it.
    Dead(&'static str),
    /// With the bytes that the producer wrote.
    Delivered,
    /// Until its time has come.
    Waits,
}
use End::{Dead, Delivered};

/// Columns as SQL, and the end of the row. What is left out is as it should be.
pub type Variant = (&'static str, End);

pub const TOO_LONG: &[Variant] = &[
    (
        "routing_key = repeat('k', 256)",
        Dead("routing_key_too_long"),
    ),
    // Bytes, not characters.
    (
        "routing_key = repeat('é', 128)",
        Dead("routing_key_too_long"),
    ),
    // By the pattern of the route.
    (
        "event_type = repeat('t', 256)",
        Dead("routing_key_too_long"),
    ),
    ("exchange = repeat('e', 256)", Dead("exchange_invalid")),
    ("exchange = repeat('e', 100000)", Dead("exchange_invalid")),
    (
        "event_type = repeat('t', 256), routing_key = 'r'",
        Dead("type_invalid"),
    ),
    (
        "event_type = repeat('t', 100000), routing_key = 'r'",
        Dead("type_invalid"),
    ),
    (
        "headers = json_build_object(repeat('n', 256), 1)",
        Dead("headers_invalid"),
    ),
    (
        "headers = json_build_object('a', json_build_object(repeat('n', 256), 1))",
        Dead("headers_invalid"),
    ),
    (
        "content_type = repeat('c', 300)",
        Dead("content_type_invalid"),
    ),
    ("routing_key = repeat('k', 255)", Delivered),
    (
        "event_type = repeat('t', 255), routing_key = 'r'",
        Delivered,
    ),
    (
        "headers = json_build_object(repeat('n', 255), 1)",
        Delivered,
    ),
];

pub const NOT_ALLOWED: &[Variant] = &[
    ("exchange = 'elsewhere'", Dead("exchange_not_allowed")),
    ("exchange = 'Audit'", Dead("exchange_not_allowed")),
    ("exchange = 'audit '", Dead("exchange_not_allowed")),
    // The default exchange publishes into any queue.
    (
        "exchange = '', routing_key = 'all'",
        Dead("exchange_not_allowed"),
    ),
    ("exchange = 'amq.topic'", Dead("exchange_not_allowed")),
    ("exchange = 'audit'", Delivered),
    ("exchange = 'events'", Delivered),
];

pub const CONTROL_CHARACTERS: &[Variant] = &[
    (r"aggregate_id = E'a\x01b'", Dead("key_invalid")),
    (r"aggregate_id = E'a\nb'", Dead("key_invalid")),
    (r"aggregate_id = E'a\x7f'", Dead("key_invalid")),
    // A C1 control, two bytes in UTF-8.
    (r"aggregate_id = E'a\u0085b'", Dead("key_invalid")),
    (r"aggregate_type = E'a\tb'", Dead("key_invalid")),
    (
        r"aggregate_type = E'a\rb', aggregate_id = NULL",
        Dead("key_invalid"),
    ),
    (r"routing_key = E'a\nb'", Dead("routing_key_invalid")),
    ("aggregate_id = 'ключ 🔑'", Delivered),
];

pub const EMPTY: &[Variant] = &[
    ("payload = NULL, binary_payload = ''", Delivered),
    (
        "payload = NULL, binary_payload = '', headers = '{}'",
        Delivered,
    ),
    (r#"payload = '""'"#, Delivered),
    ("payload = 'null'", Delivered),
];

pub const STRANGE_JSON: &[Variant] = &[
    (r#"payload = '{"a\u0000b":"\u0000"}'"#, Delivered),
    (r#"payload = '{"n":1e400,"m":-1e-400}'"#, Delivered),
    (r#"payload = '{"a":1,"a":2,"b":{"a":1,"a":1}}'"#, Delivered),
    (
        r#"payload = '{"n":12345678901234567890123,"m":-12345678901234567890123}'"#,
        Delivered,
    ),
    // PostgreSQL's own limit is its stack.
    (
        "payload = (repeat('[', 10000) || repeat(']', 10000))::json",
        Delivered,
    ),
    (
        r#"payload = (repeat('{"a":', 5000) || '1' || repeat('}', 5000))::json"#,
        Delivered,
    ),
    ("payload = ' [ 1 ,2 ] '", Delivered),
    // Not what a parser would write again.
    (
        r#"payload = E' {\n\t"a" : 1.0,  "b":1E+2 , "\\u0041":"\\/" } '"#,
        Delivered,
    ),
    (r#"payload = '"\ud83d\ude00 é"'"#, Delivered),
];

pub const NOT_UTF8: &[Variant] = &[
    (r"payload = NULL, binary_payload = '\xff'", Delivered),
    (
        r"payload = NULL, binary_payload = '\xc328fe00c0808041'",
        Delivered,
    ),
    (r"payload = NULL, binary_payload = '\xeda080'", Delivered),
    (
        "payload = NULL, binary_payload = (SELECT string_agg(set_byte('\\x00', 0, i), '' ORDER BY i) FROM generate_series(0, 255) i)",
        Delivered,
    ),
    (
        r"payload = NULL, binary_payload = '\x1f8b0800', content_type = 'application/gzip'",
        Delivered,
    ),
];

pub const HEADERS: &[Variant] = &[
    (
        "headers = '[1]', aggregate_id = 'key'",
        Dead("headers_invalid"),
    ),
    // What is dead does not hold back its key.
    ("aggregate_id = 'key'", Delivered),
    (r#"headers = '"text"'"#, Dead("headers_invalid")),
    ("headers = '1'", Dead("headers_invalid")),
    ("headers = 'true'", Dead("headers_invalid")),
    ("headers = 'null'", Delivered),
    (r"headers = E' null\n'", Delivered),
    (
        r#"headers = '{"a":{"b":{"c":{"d":{}}}}}'"#,
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"a":{"b":{"c":{"d":1}}}}'"#, Delivered),
    (r#"headers = '{"a":[[[[1]]]]}'"#, Dead("headers_invalid")),
    // Deeper than a parser's own limit.
    (
        r#"headers = ('{"a":' || repeat('[', 5000) || repeat(']', 5000) || '}')::json"#,
        Dead("headers_invalid"),
    ),
    (
        "headers = json_build_object('big', repeat('x', 131072))",
        Dead("headers_too_large"),
    ),
    // The text fits a frame; with the properties it does not.
    (
        "headers = json_build_object('big', repeat('x', 131000))",
        Dead("headers_too_large"),
    ),
    (
        "headers = json_build_object('big', repeat('x', 10000000))",
        Dead("headers_too_large"),
    ),
    // So does the key: it is a header, too.
    (
        "aggregate_id = repeat('k', 200000)",
        Dead("headers_too_large"),
    ),
    (r#"headers = '{"":1}'"#, Dead("headers_invalid")),
    (r#"headers = '{"a":{"":1}}'"#, Dead("headers_invalid")),
    (
        "headers = json_build_object(repeat('n', 256), 1)",
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"x-death":[]}'"#, Dead("header_reserved")),
    (r#"headers = '{"x-anything":1}'"#, Dead("header_reserved")),
    (r#"headers = '{"CC":["a"]}'"#, Dead("header_reserved")),
    (r#"headers = '{"BCC":["a"]}'"#, Dead("header_reserved")),
    (
        r#"headers = '{"outbox-key":"forged"}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"outbox-position":1}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"outbox-replay":true}'"#,
        Dead("header_reserved"),
    ),
    (
        r#"headers = '{"correlation_id":1}'"#,
        Dead("headers_invalid"),
    ),
    (r#"headers = '{"a":{"b":{"c":[]}}}'"#, Delivered),
    (
        "headers = json_build_object('big', repeat('x', 100000))",
        Delivered,
    ),
    (
        r#"headers = '{"a":true,"b":-5,"c":1.5,"d":"x","e":null,"f":[1,{"g":2}]}'"#,
        Delivered,
    ),
    ("headers = '{}'", Delivered),
];

pub const INTEGERS: &[Variant] = &[
    (
        r#"headers = '{"n":9223372036854775808}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":-9223372036854775809}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":18446744073709551616}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":12345678901234567890123}'"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"a":[{"n":9223372036854775808}]}'"#,
        Dead("number_out_of_range"),
    ),
    (r#"headers = '{"n":1e400}'"#, Dead("number_out_of_range")),
    (
        r#"headers = ('{"n":' || repeat('9', 400) || '}')::json"#,
        Dead("number_out_of_range"),
    ),
    (
        r#"headers = '{"n":9223372036854775807,"m":-9223372036854775808}'"#,
        Delivered,
    ),
    // A body is nobody's business.
    (r#"payload = '{"n":9223372036854775808}'"#, Delivered),
];
