//! Rows that no message can be made of, and strange ones that are right. crates/core has every spelling of them; here each
//! reason is seen from the row to the dead letter.

use std::collections::HashMap;

use lapin::types::AMQPValue;
use test_support::amqp;
use uuid::Uuid;

use crate::world::{SOON, World, world};

/// Reasons, and columns as SQL of rows that are dead with them at the first attempt: no retry mends them.
const DEAD: &[(&str, &[&str])] = &[
    (
        "routing_key_too_long",
        &[
            // Bytes, not characters.
            "routing_key = repeat('é', 128)",
            // By the pattern of the route.
            "event_type = repeat('t', 256)",
        ],
    ),
    ("routing_key_invalid", &[r"routing_key = E'a\nb'"]),
    ("exchange_invalid", &["exchange = repeat('e', 100000)"]),
    (
        "type_invalid",
        &["event_type = repeat('t', 256), routing_key = 'r'"],
    ),
    ("content_type_invalid", &["content_type = repeat('c', 300)"]),
    (
        "key_invalid",
        &[
            r"aggregate_id = E'a\x01b'",
            // A C1 control, two bytes in UTF-8.
            r"aggregate_id = E'a\u0085b'",
            r"aggregate_type = E'a\rb', aggregate_id = NULL",
        ],
    ),
    (
        "headers_invalid",
        &[
            "headers = '[1]', aggregate_id = 'a key'",
            "headers = json_build_object(repeat('n', 256), 1)",
            r#"headers = '{"a":{"b":{"c":{"d":{}}}}}'"#,
            // Deeper than a parser's own limit.
            r#"headers = ('{"a":' || repeat('[', 5000) || repeat(']', 5000) || '}')::json"#,
        ],
    ),
    (
        "headers_too_large",
        &[
            // The text fits a frame; with the properties it does not.
            "headers = json_build_object('big', repeat('x', 131000))",
            "headers = json_build_object('big', repeat('x', 10000000))",
            // So does the key: it is a header, too.
            "aggregate_id = repeat('k', 200000)",
        ],
    ),
    (
        "header_reserved",
        &[
            r#"headers = '{"x-death":[]}'"#,
            r#"headers = '{"outbox-key":"forged"}'"#,
        ],
    ),
    (
        "number_out_of_range",
        &[
            r#"headers = '{"n":12345678901234567890123}'"#,
            r#"headers = '{"n":1e400}'"#,
        ],
    ),
    (
        "payload_too_large",
        &[
            "payload = to_json(repeat('x', 1048576 - 1))",
            "payload = NULL, binary_payload = decode(repeat('ff', 1048576 + 1), 'hex')",
        ],
    ),
];

/// Columns of rows that arrive with the bytes that the producer wrote.
const DELIVERED: &[&str] = &[
    "routing_key = repeat('k', 255)",
    "event_type = repeat('t', 255), routing_key = 'r'",
    // What is dead does not hold back its key.
    "aggregate_id = 'a key'",
    "aggregate_id = 'ключ 🔑'",
    r"headers = E' null\n'",
    "headers = json_build_object(repeat('n', 255), repeat('x', 100000))",
    r#"headers = '{"a":true,"b":-5,"c":1.5,"d":"x","e":null,"f":[1,{"g":2}]}'"#,
    r#"headers = '{"n":9223372036854775807,"m":-9223372036854775808}'"#,
    "payload = NULL, binary_payload = '', headers = '{}'",
    "payload = 'null'",
    "payload = ' [ 1 ,2 ] '",
    // Not what a parser would write again.
    r#"payload = E' {\n\t"a" : 1.0,  "b":1E+2 , "\\u0041":"\\/" } '"#,
    r#"payload = '{"a\u0000b":"\u0000","c":"\ud83d\ude00 é"}'"#,
    r#"payload = '{"a":1,"a":2,"b":1e400,"c":12345678901234567890123}'"#,
    "payload = (repeat('[', 10000) || repeat(']', 10000))::json",
    "payload = to_json(repeat('x', 1048576 - 2))",
    r"payload = NULL, binary_payload = '\xc328fe00c0808041eda080'",
    r"payload = NULL, binary_payload = '\x1f8b0800', content_type = 'application/gzip'",
];

/// A row with these columns, of a key of its own unless they name one. No relay may see it meanwhile.
pub async fn row(world: &World, columns: &str) -> Uuid {
    let key = format!("row {}", world.ledger.len());
    let id = world.insert(Some(&key), "x", "{}", "").await;
    let update = format!("UPDATE outbox.message SET {columns} WHERE message_id = '{id}'");
    world.sql(&update).await;
    id
}

/// Each row comes to its end, no row of another key waits for it, and the relay comes to no harm.
async fn each_ends(
    world: &World,
    settings: &[(&str, &str)],
    dead: &[(&str, &[&str])],
    good: &[&str],
) {
    let consumer = world.consumer().await;
    let (mut bad, mut delivered) = (Vec::new(), Vec::new());
    for (reason, rows) in dead {
        for columns in *rows {
            bad.push((row(world, columns).await, *reason, *columns));
            delivered.push(world.insert(Some("healthy"), "created", "{}", "").await);
        }
    }
    for columns in good {
        delivered.push(row(world, columns).await);
    }
    let relay = world.relay(settings);
    consumer.until_all(&delivered).await;
    world.drained().await;
    let sql = "SELECT reason, attempts FROM outbox.dead WHERE message_id = $1";
    for (id, reason, columns) in bad {
        let row = world.client.query_opt(sql, &[&id]).await.unwrap();
        let row = row.unwrap_or_else(|| panic!("{columns} is not dead"));
        let end: (&str, i32) = (row.get(0), row.get(1));
        assert_eq!(end, (reason, 1), "{columns}");
    }
    let sql = "SELECT message_id::text, coalesce(binary_payload, convert_to(payload::text, 'UTF8')) FROM outbox.message";
    let rows = world.all(sql).await;
    let bodies: HashMap<String, Vec<u8>> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    let seen = consumer.seen();
    assert_eq!(seen.len(), delivered.len(), "each good one once");
    for message in seen {
        let as_written = bodies[&message.message_id] == message.body;
        assert!(as_written, "the body of {} was changed", message.message_id);
    }
    relay.never_said("panicked");
    relay.never_said("backing off");
}

#[tokio::test]
async fn a_bad_row_is_dead_with_its_reason_and_a_strange_one_arrives_byte_for_byte() {
    let world = world().await;
    let settings = [("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1MiB")];
    each_ends(&world, &settings, DEAD, DELIVERED).await;
}

#[tokio::test]
async fn a_row_reaches_no_exchange_outside_the_list_of_allowed_ones() {
    let world = world().await;
    world.bind("all", "#", &[]).await;
    let channel = world.channel().await;
    amqp::bind(&channel, "audit", "all").await.unwrap();
    let refused = [
        "exchange = 'elsewhere'",
        "exchange = 'Audit'",
        "exchange = 'audit '",
        "exchange = '', routing_key = 'all'",
        "exchange = 'amq.topic'",
    ];
    let settings = [("OUTBOXD__ROUTING__ALLOWED_EXCHANGES", "audit")];
    let dead = [("exchange_not_allowed", &refused[..])];
    let good = ["exchange = 'audit'", "exchange = 'events'"];
    each_ends(&world, &settings, &dead, &good).await;
}

/// As many attempts as the column holds, and the next one is due. Of a message that is delivered they are a header.
#[tokio::test]
async fn a_count_of_attempts_that_is_full_overflows_nothing() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.declare_exchange("unbound").await;
    for (key, columns) in [
        ("one left", "exchange = 'unbound'"),
        ("unroutable", "exchange = 'unbound'"),
        ("refused", "headers = '[]'"),
        ("works", ""),
    ] {
        world.insert(Some(key), "created", "{}", columns).await;
    }
    let filed = "INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, due_at, due_since, attempts) \
                 SELECT lane, id, message_id, outbox.key_hash(aggregate_type, aggregate_id), 'retry', clock_timestamp(), \
                        clock_timestamp(), CASE aggregate_id WHEN 'one left' THEN 2147483646 ELSE 2147483647 END \
                 FROM outbox.message";
    world.sql(filed).await;
    let _relay = world.relay(&[]);
    let dead = "outbox.dead WHERE attempts = 2147483647 AND reason";
    let unroutable = format!("{dead} = 'unroutable'");
    world.until("the unroutable", &unroutable, 2).await;
    let refused = format!("{dead} = 'headers_invalid'");
    world.until("the refused", &refused, 1).await;
    let delivered = consumer.until(1).await;
    assert_eq!(
        delivered[0].header("outbox-attempt"),
        Some(AMQPValue::LongLongInt(2_147_483_648))
    );
    world.drained().await;
}

/// What a row or a setting would write as a line of its own.
const FORGED: &str = "2026-01-01T00:00:00Z ERROR forged";

/// A log for people: JSON escapes line breaks by its nature.
#[tokio::test]
async fn no_row_and_no_setting_writes_a_line_of_a_log_or_of_a_command() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut bad = Vec::new();
    for columns in [
        "aggregate_type = $",
        "aggregate_id = $",
        "event_type = $",
        "event_type = $, routing_key = 'r'",
        "routing_key = $",
        "exchange = $",
        "content_type = $",
        "headers = json_build_object($, 1)",
        "headers = json_build_object('x-' || $, 1)",
        "headers = json_build_object('correlation_id', $)",
    ] {
        let forging = columns.replace('$', &format!(r"E'x\r\n{FORGED}'"));
        bad.push(row(&world, &forging).await.to_string());
    }
    // Values are the consumers' business, and reach no log.
    for columns in [
        "headers = json_build_object('a', $)",
        "payload = to_json($)",
    ] {
        let forging = format!(r"E'x\r\n{FORGED}'::text");
        row(&world, &columns.replace('$', &forging)).await;
    }
    let relay = world.relay(&[("OUTBOXD__LOG__FORMAT", "human")]);
    consumer.until(2).await;
    world.drained().await;
    relay.line("given up", SOON).await;
    let mut said = relay.lines().join("\n");
    let show = bad.iter().map(|id| vec!["dead", "show", id]);
    let list = [vec!["dead", "list"], vec!["dead", "list", "--json"]];
    for args in list.into_iter().chain(show) {
        let run = world.outboxd(&args, &[]).await;
        run.ends(0, &[]);
        said += &run.said();
    }
    let text = format!("5\r\n{FORGED}");
    for name in [
        "OUTBOXD__RELAY__BATCH_SIZE",
        "OUTBOXD__RELAY__POLL_INTERVAL",
        "OUTBOXD__ADMIN__LISTEN",
        "OUTBOXD__LOG__LEVEL",
        "OUTBOXD__ROUTING__EXCHANGE",
        "OUTBOXD__ROUTING__ROUTING_KEY",
        "OUTBOXD__BROKER__CA_FILE",
        "OUTBOXD__BROKER__URL",
        "OUTBOXD__DATABASE__PASSWORD_FILE",
        "OUTBOXD__SOURCE__0__NAME",
        "OUTBOXD__X\r\n2026-01-01T00:00:00Z ERROR forged",
    ] {
        let human = ("OUTBOXD__LOG__FORMAT", "human");
        let run = world.outboxd(&["run"], &[human, (name, &text)]).await;
        run.ends(78, &[]);
        said += &run.said();
    }
    let forged = |line: &&str| {
        line.to_lowercase()
            .starts_with("2026-01-01t00:00:00z error")
    };
    assert_eq!(said.split('\n').find(forged), None);
    assert!(!said.contains('\r'));
}

/// The relay does not fetch a large body only to measure it. The length that the server reports must be correct.
#[tokio::test]
async fn a_body_is_as_long_as_its_octets_however_the_server_stores_it() {
    const LIMIT: i32 = 40_000;
    let world = world().await;
    let consumer = world.consumer().await;
    let limit = LIMIT.to_string();
    let _relay = world.relay(&[("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", &limit)]);
    // PostgreSQL stores an incompressible body uncompressed, outside its row.
    let hard = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i)";
    let mut expected = Vec::new();
    for (text, compressed) in [
        ("repeat('x', 50000)".to_owned(), true),
        (format!("'éé' || {hard}"), false),
    ] {
        for (octets, dies) in [(LIMIT, false), (LIMIT + 1, true)] {
            let pad = format!(
                "convert_from(substr(convert_to({text}, 'UTF8'), 1, {}), 'UTF8')",
                octets - 2
            );
            let sql = format!(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 VALUES ('order', '1', 'sized', ('\"' || {pad} || '\"')::json) RETURNING message_id"
            );
            let id: uuid::Uuid = world.one(&sql).await;
            let stored = "SELECT pg_column_compression(payload) IS NOT NULL FROM outbox.message WHERE message_id = $1";
            let row = world.client.query_one(stored, &[&id]).await.unwrap();
            assert_eq!(row.get::<_, bool>(0), compressed, "{text}");
            expected.push((id, dies));
        }
    }
    world.drained().await;
    for (id, dies) in expected {
        let reason = world.reason(id).await;
        assert_eq!(reason.as_deref(), dies.then_some("payload_too_large"));
    }
    for message in consumer.until(2).await {
        assert_eq!(message.body.len(), LIMIT as usize);
    }
}
