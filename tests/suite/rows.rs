//! Bad rows: each is dead with its reason; the relay and all other messages go on.

use crate::world::world;

#[tokio::test]
async fn every_bad_row_dies_with_its_reason_and_holds_nobody_up() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[
        ("OUTBOXD__ROUTING__ALLOWED_EXCHANGES", "audit"),
        ("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1000"),
    ]);
    let cases: &[(&str, &str)] = &[
        ("routing_key_too_long", "routing_key = repeat('é', 128)"),
        ("routing_key_invalid", "routing_key = E'a\\nb'"),
        ("exchange_not_allowed", "exchange = 'elsewhere'"),
        ("headers_invalid", "headers = '[1]'"),
        ("headers_invalid", "headers = '{\"a\":[[[[1]]]]}'"),
        ("headers_invalid", "headers = '{\"\":1}'"),
        (
            "headers_invalid",
            "headers = ('{\"' || repeat('n', 256) || '\":1}')::json",
        ),
        (
            "headers_too_large",
            "headers = json_build_object('big', repeat('x', 200000))",
        ),
        (
            "headers_too_large",
            "headers = json_build_object('big', repeat('x', 131000))",
        ),
        ("header_reserved", "headers = '{\"x-death\":1}'"),
        ("header_reserved", "headers = '{\"CC\":[\"a\"]}'"),
        ("header_reserved", "headers = '{\"BCC\":[\"a\"]}'"),
        ("header_reserved", "headers = '{\"outbox-key\":\"forged\"}'"),
        (
            "number_out_of_range",
            "headers = '{\"n\":9223372036854775808}'",
        ),
        ("number_out_of_range", "headers = '{\"n\":1e400}'"),
        ("content_type_invalid", "content_type = repeat('c', 300)"),
        ("content_type_invalid", "content_type = E'a/b\\r\\nx: y'"),
    ];
    let mut expected = Vec::new();
    for (reason, columns) in cases {
        expected.push((world.insert(Some("k"), "bad", "1", columns).await, *reason));
    }
    expected.push((
        world.insert(Some("a\u{1}b"), "bad", "1", "").await,
        "key_invalid",
    ));
    expected.push((
        world.insert(Some("k"), &"t".repeat(256), "1", "").await,
        "routing_key_too_long",
    ));
    expected.push((
        world
            .insert(Some("k"), &"t".repeat(256), "1", "routing_key = 'r'")
            .await,
        "type_invalid",
    ));
    let big = format!("\"{}\"", "x".repeat(1000));
    expected.push((
        world.insert(Some("k"), "bad", &big, "").await,
        "payload_too_large",
    ));
    expected.push((
        world
            .insert(Some(&"k".repeat(200_000)), "bad", "1", "")
            .await,
        "headers_too_large",
    ));
    let good = world.insert(Some("k"), "good", "1", "").await;

    consumer.until_all(&[good]).await;
    for (id, reason) in &expected {
        test_support::eventually("its death", crate::world::SOON, async || {
            world.reason(*id).await
        })
        .await;
        assert_eq!(world.reason(*id).await.as_deref(), Some(*reason), "{id}");
    }
    world.drained().await;
    assert_eq!(
        world
            .count("outbox.message WHERE sent_at IS NOT NULL")
            .await,
        1
    );
    assert_eq!(
        world.count("outbox.dead WHERE attempts <> 1").await,
        0,
        "no retry mends a bad row"
    );
    relay.terminate().unwrap();
    assert!(relay.ended(crate::world::SOON).await.unwrap().success());
}

/// A row cannot forge log lines: its line breaks are escaped.
#[tokio::test]
async fn a_line_break_in_a_row_cannot_forge_a_log_line() {
    let world = world().await;
    world.declare_exchange("events").await;
    let relay = world.relay(&[
        ("OUTBOXD__LOG__FORMAT", "human"),
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "1"),
    ]);
    let forged = "x\r\n2026-01-01T00:00:00Z ERROR forged";
    let header = format!("headers = json_build_object({}, 1)", quoted(forged));
    world.insert(None, "bad", "1", &header).await;
    let exchange = format!("exchange = {}", quoted(forged));
    world.insert(None, "bad", "1", &exchange).await;
    world.insert(None, forged, "1", "routing_key = 'r'").await;
    world.until("their deaths", "outbox.dead", 3).await;
    relay.line("given up", crate::world::SOON).await;
    assert!(
        !relay
            .lines()
            .iter()
            .any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR forged"))
    );
}

fn quoted(text: &str) -> String {
    format!("E'{}'", text.replace('\r', "\\r").replace('\n', "\\n"))
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
            let id: uuid::Uuid = world.client.query_one(&sql, &[]).await.unwrap().get(0);
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
