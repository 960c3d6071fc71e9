//! The size of a row. Rows B19 to B30 of the fault matrix have every bad row.

use crate::world::world;

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
