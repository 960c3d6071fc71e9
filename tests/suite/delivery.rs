//! From a row to a confirmed message.

use lapin::types::AMQPValue;

use crate::world::{SOON, world};

#[tokio::test]
async fn a_committed_event_arrives_as_the_contract_says() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[("OUTBOXD__RELAY__APP_ID", "shop")]);
    let headers = r#"headers = '{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b","correlation_id":"c-1","tenant":"blue","n":5,"deep":{"a":[1]}}'"#;
    let id = world.insert(Some("1042"), "created", r#"{ "total" : 1.10 }"#, headers).await;
    let seen = consumer.until(1).await.remove(0);

    assert_eq!(seen.message_id, id.to_string());
    assert_eq!((seen.exchange.as_str(), seen.routing_key.as_str()), ("events", "order.created"));
    assert_eq!(seen.body, br#"{ "total" : 1.10 }"#, "byte for byte");
    let p = &seen.properties;
    assert_eq!(p.kind().as_ref().unwrap().as_str(), "created");
    assert_eq!(p.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(p.app_id().as_ref().unwrap().as_str(), "shop");
    assert_eq!(p.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(*p.delivery_mode(), Some(2));
    let created: i64 = world
        .client
        .query_one("SELECT extract(epoch FROM created_at)::bigint FROM outbox.message WHERE created_at - interval '0.5 s' IS NOT NULL", &[])
        .await
        .unwrap()
        .get(0);
    assert!(p.timestamp().unwrap().abs_diff(u64::try_from(created).unwrap()) <= 1);
    assert_eq!(seen.text_header("traceparent").unwrap(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(seen.text_header("tracestate").unwrap(), "a=b");
    assert_eq!(seen.text_header("tenant").unwrap(), "blue");
    assert_eq!(seen.header("n").unwrap(), AMQPValue::LongLongInt(5));
    assert_eq!(seen.text_header("outbox-key").unwrap(), "order:1042");
    assert!(matches!(seen.header("outbox-position").unwrap(), AMQPValue::LongLongInt(_)));
    assert_eq!(seen.header("outbox-attempt"), None, "only from the second attempt on");
    assert_eq!(seen.header("outbox-replay"), None);

    world.drained().await;
    relay.terminate().unwrap();
    assert!(relay.ended(SOON).await.unwrap().success());
    let report = world.judge(&consumer).await;
    assert!(report.is_clean() && report.duplicates == 0, "{report}");
}

#[tokio::test]
async fn a_rolled_back_event_never_arrives() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world
        .client
        .batch_execute(
            "BEGIN; INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('order', 'ghost', '1'); ROLLBACK",
        )
        .await
        .unwrap();
    world.commit(&[(None, "real", "2")]).await;
    let seen = consumer.until(1).await;
    assert_eq!(seen[0].routing_key, "order.real");
    world.drained().await;
    assert_eq!(consumer.len(), 1);
}
