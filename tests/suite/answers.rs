//! The broker's answers: returned, nacked, refused.

use std::collections::HashMap;

use lapin::types::AMQPValue;
use test_support::{RabbitMqOptions, amqp, eventually};

use crate::world::{SOON, own_world_with, world};

/// One claim and one wave: of one key, whose messages go at once. No envelope can be built of every fifth, and every fifth is
/// returned, each from a destination of its own: one that fails for two messages would hold them.
#[tokio::test]
async fn around_a_message_that_is_refused_within_a_wave_each_is_sent_as_itself() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
               SELECT 'order', 'k', CASE i % 5 WHEN 2 THEN 'nobody' || i ELSE 'good' END, to_json(i), \
                      CASE i % 5 WHEN 3 THEN '[]'::json END \
               FROM generate_series(1, 50) i RETURNING message_id, payload::text";
    let rows = world.all(sql).await;
    let bodies: HashMap<String, String> = rows
        .iter()
        .map(|row| (row.get::<_, uuid::Uuid>(0).to_string(), row.get(1)))
        .collect();
    let _relay = world.relay(&[
        ("OUTBOXD__RELAY__ORDERING", "pipelined"),
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ]);
    let sent = "outbox.message WHERE sent_at IS NOT NULL";
    world.until("all that can be to be sent", sent, 30).await;
    for seen in consumer.until(30).await {
        let body = String::from_utf8(seen.body).unwrap();
        assert_eq!(bodies[&seen.message_id], body);
    }
    let wrong = "(SELECT payload::text::int % 5 AS kind, m.sent_at, d.reason AS died_of, w.reason AS waits_for \
                  FROM outbox.message m LEFT JOIN outbox.dead d USING (lane, id) \
                  LEFT JOIN outbox.waiting w USING (lane, id)) m \
                 WHERE (kind = 2) IS DISTINCT FROM (waits_for IS NOT DISTINCT FROM 'unroutable') \
                    OR (kind = 3) IS DISTINCT FROM (died_of IS NOT DISTINCT FROM 'headers_invalid') \
                    OR (kind NOT IN (2, 3)) IS DISTINCT FROM (sent_at IS NOT NULL)";
    assert_eq!(world.count(wrong).await, 0, "each has its own outcome");
    assert_eq!(consumer.len(), 30);
}

#[tokio::test]
async fn a_later_attempt_says_which_one_it_is() {
    let world = world().await;
    world.declare_exchange("events").await;
    let relay = world.relay(&[]);
    world.commit(&[(Some("1"), "created", "{}")]).await;
    relay.line("not delivered; it is tried again", SOON).await;
    let consumer = world.consumer().await;
    let seen = consumer.until(1).await.remove(0);
    assert!(
        matches!(seen.header("outbox-attempt"), Some(AMQPValue::LongLongInt(n)) if n >= 2),
        "{seen:?}"
    );
}

#[tokio::test]
async fn messages_of_a_claim_that_fail_alike_are_one_line_of_the_log() {
    const N: usize = 200;
    let world = world().await;
    world.declare_exchange("events").await;
    // Each message has a destination of its own, because messages of one failing destination would be held.
    let sql = "INSERT INTO outbox.message (aggregate_type, event_type, payload) \
               SELECT 'order', 'type' || i, '{}' FROM generate_series(1, 200) i";
    world.sql(sql).await;
    let relay = world.relay(&[
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ]);
    world
        .waiting(
            "reason = 'unroutable' AND last_error LIKE '%NO_ROUTE%'",
            N as i64,
        )
        .await;
    let told = || -> Vec<usize> {
        let messages = |line: &String| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            let told = event["message"] == "not delivered; it is tried again";
            told.then(|| event["messages"].as_u64().unwrap_or(0) as usize)
        };
        relay.lines().iter().filter_map(messages).collect()
    };
    // Some messages are tried twice meanwhile, because a delay can be zero.
    eventually("all to be counted", SOON, async || {
        (told().iter().sum::<usize>() >= N).then_some(())
    })
    .await;
    assert!(told().len() < N / 4, "{:?}", told());
}

#[tokio::test]
async fn without_mandatory_an_unroutable_message_counts_as_sent() {
    let world = world().await;
    world.declare_exchange("events").await;
    let _relay = world.relay(&[("OUTBOXD__ROUTING__MANDATORY", "false")]);
    world.commit(&[(None, "nobody", "{}")]).await;
    world.marked(1).await;
}

#[tokio::test]
async fn a_full_queue_nacks_and_drains_when_there_is_room_and_nothing_dies() {
    let world = world().await;
    let limits = [
        ("x-max-length", AMQPValue::LongInt(5)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    world.bind("small", "#", &limits).await;
    let relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "4")]);
    world.commit_many(60, 60).await;
    relay.line("nacked", SOON).await;
    // A quorum queue's channel can nack for good after a failover; a new one does not, and the connection stays.
    relay.line("going on with a new channel", SOON).await;
    relay.never_said("RabbitMQ failed");
    // Nacks use up at most half of the attempts.
    world
        .waiting("reason = 'nacked' AND attempts >= 2", 55)
        .await;
    let consumer = world.consume("small").await;
    consumer.until(60).await;
    world.clean(&consumer, 0).await;
    assert_eq!(world.count("outbox.dead").await, 0);
}

#[tokio::test]
async fn a_missing_exchange_fails_only_its_own_messages() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000")]);
    for n in 0..40 {
        world.insert(None, "good", &n.to_string(), "").await;
        world
            .insert(None, "lost", &n.to_string(), "exchange = 'not-there'")
            .await;
    }
    consumer.until(40).await;
    world.waiting("reason = 'exchange_missing'", 40).await;
    // The good messages lost no attempt because of their neighbours.
    assert!(
        consumer
            .seen()
            .iter()
            .all(|m| m.header("outbox-attempt").is_none())
    );
    assert!(
        world
            .count("outbox.waiting WHERE last_error LIKE '%not-there%'")
            .await
            == 40,
        "the broker's words are kept"
    );
    let channel = world.channel().await;
    amqp::bind(&channel, "not-there", "all").await.unwrap();
    consumer.until(80).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
}

/// A body above the broker's own limit closes the channel; its neighbours keep their first attempt.
#[tokio::test]
async fn a_message_that_the_broker_finds_impossible_dies_alone() {
    let world = own_world_with(RabbitMqOptions {
        config: vec!["max_message_size = 1000".to_owned()],
        ..RabbitMqOptions::default()
    })
    .await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    relay.line("relay started", SOON).await;
    for n in 0..10 {
        world.insert(None, "good", &n.to_string(), "").await;
    }
    let big = format!("\"{}\"", "x".repeat(2000));
    let poison = world.insert(None, "big", &big, "").await;
    for n in 0..10 {
        world.insert(None, "good", &n.to_string(), "").await;
    }
    consumer.until(20).await;
    world.dead("reason = 'precondition_failed'", 1).await;
    assert_eq!(
        world.reason(poison).await.as_deref(),
        Some("precondition_failed")
    );
    assert!(
        consumer
            .seen()
            .iter()
            .all(|m| m.header("outbox-attempt").is_none())
    );
}

#[tokio::test]
async fn a_backlog_of_poison_lets_healthy_messages_flow() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    world
        .client
        .execute(
            "INSERT INTO outbox.message (aggregate_type, event_type, payload) \
             SELECT 'order', 'nobody', '1' FROM generate_series(1, 5000)",
            &[],
        )
        .await
        .unwrap();
    let _relay = world.relay(&[
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000"),
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1s"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "2s"),
    ]);
    world
        .until("all of it to wait", "outbox.waiting", 5000)
        .await;
    let attempts = async || -> i64 {
        let sql = "SELECT sum(attempts) FROM outbox.waiting";
        world.client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = attempts().await;
    world.insert(Some("1"), "good", "1", "").await;
    consumer.until(1).await;
    // Each lane has its turn, after at most two rounds of the poison.
    let tried = attempts().await - before;
    assert!(tried <= 10_000, "behind {tried} other attempts");
}
