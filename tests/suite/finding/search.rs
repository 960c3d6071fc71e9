//! A message is found by its id, with time or without, or by its correlation id; and "unknown" is never said too early.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::ask::{any_id, correlated, found, history, id_ago, id_of, json, refusal, text};
use crate::world::world;

#[tokio::test]
async fn an_id_that_nobody_gave_carries_the_time_and_is_unique() {
    let world = world().await;
    let before = SystemTime::now() - Duration::from_secs(60);
    world.commit_many(1000, 10).await;
    world.sql("SELECT outbox.enqueue('order', '1', 'created', '{}'); \
             SELECT outbox.enqueue_binary('order', '1', 'created', '\\x00', 'application/octet-stream'); \
             INSERT INTO outbox.debezium (aggregatetype, aggregateid, type, payload) VALUES ('order', '1', 'created', '{}')").await;
    let rows = world
        .all("SELECT DISTINCT message_id FROM outbox.message")
        .await;
    assert_eq!(rows.len(), 1003);
    let after = SystemTime::now() + Duration::from_secs(60);
    for row in rows {
        let id: Uuid = row.get(0);
        assert_eq!(
            (id.get_version_num(), id.get_variant()),
            (7, uuid::Variant::RFC4122),
            "{id}"
        );
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        assert!(before < at && at < after, "{id}");
    }
}

#[tokio::test]
async fn an_id_with_time_is_found_wherever_it_stands_in_the_table() {
    let world = world().await;
    history(&world).await;
    let rows = world
        .all(
            "SELECT message_id FROM outbox.message WHERE id IN (SELECT min(id) FROM outbox.message \
               UNION SELECT max(id) FROM outbox.message) OR id % 9000 = 1 ORDER BY id",
        )
        .await;
    assert!(rows.len() >= 9);
    for row in rows {
        let id: Uuid = row.get(0);
        let report = json(&world, &[&id.to_string()], 0).await;
        assert_eq!(report["found"][0]["message_id"], id.to_string());
        let read = report["searched"]["rows"].as_i64().unwrap();
        assert!(
            read <= 1001,
            "found by its time, and not by a wide search: {report:#}"
        );
    }
}

#[tokio::test]
async fn an_id_is_found_though_its_producer_s_clock_is_minutes_off() {
    let world = world().await;
    history(&world).await;
    for minutes in [-20, -1, 1, 20] {
        let id = any_id(
            &world,
            &format!(
                "UPDATE outbox.message SET message_id = {} \
                 WHERE id = (SELECT id FROM outbox.message ORDER BY id OFFSET 36000 + {minutes} LIMIT 1) RETURNING message_id",
                id_of(&format!("(created_at + interval '{minutes} minutes')"))
            ),
        )
        .await;
        assert_eq!(
            found(&world, &[&id.to_string()]).await["message_id"],
            id.to_string()
        );
    }
}

#[tokio::test]
async fn rows_with_wrong_times_and_gaps_in_the_positions_do_not_lead_the_search_astray() {
    let world = world().await;
    history(&world).await;
    world.sql("SELECT setval('outbox.message_id_seq', 5000000000); \
             UPDATE outbox.message SET created_at = CASE WHEN id % 2 = 0 THEN 'infinity' ELSE '-infinity' END::timestamptz \
             WHERE id % 500 IN (0, 1)").await;
    world.commit_many(50, 50).await;
    let rows = world
        .all(
            "SELECT message_id FROM outbox.message \
             WHERE id % 8000 IN (7, 250) OR id > 5000000040 OR id BETWEEN 71980 AND 72000",
        )
        .await;
    assert!(rows.len() >= 45);
    for row in rows {
        let id: Uuid = row.get(0);
        assert_eq!(
            found(&world, &[&id.to_string()]).await["message_id"],
            id.to_string()
        );
    }
}

#[tokio::test]
async fn a_message_of_a_long_transaction_is_said_to_be_possible_and_is_found_once_it_commits() {
    let world = world().await;
    history(&world).await;
    // The id is drawn, and ten minutes go by before the row is written; the transaction then stays open.
    let long = world.postgres().connect(&world.database).await.unwrap();
    long.batch_execute("BEGIN").await.unwrap();
    let sql = format!(
        "INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload) \
         VALUES ({}, 'order', 'long', 'created', '{{}}') RETURNING message_id",
        id_of("(now() - interval '10 minutes')")
    );
    let id: Uuid = long.query_one(&sql, &[]).await.unwrap().get(0);
    world.commit_many(3000, 300).await;
    let said = refusal(&world, &[&id.to_string()], &[]).await;
    assert!(
        said.contains("1 writing transactions are open here"),
        "{said}"
    );
    long.batch_execute("COMMIT").await.unwrap();
    assert_eq!(
        found(&world, &[&id.to_string()]).await["aggregate_id"],
        "long"
    );
}

#[tokio::test]
async fn an_id_without_time_is_found_with_a_hint_and_never_called_unknown_without_a_search() {
    let world = world().await;
    history(&world).await;
    let id = Uuid::new_v4();
    world
        .client
        .execute(
            "INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, created_at, sent_at) \
             VALUES ($1, 'order', 'mine', 'created', '{}', now() - interval '2 minutes', now())",
            &[&id],
        )
        .await
        .unwrap();
    let id = id.to_string();
    let said = refusal(&world, &[&id], &[]).await;
    assert!(
        said.contains("carries no time")
            && said.contains("--key")
            && said.contains("--since")
            && said.contains("--scan reads"),
        "{said}"
    );
    let absent = json(&world, &[&id], 1).await;
    assert_eq!(absent["absent"], "not_searched");
    for hint in [
        &["--key", "order/mine"][..],
        &["--since", "1h"],
        &["--since", "10m", "--until", "0s"],
        &["--scan"],
        &["--key", "order/mine", "--since", "10m"],
    ] {
        let args = [&[id.as_str()], hint].concat();
        assert_eq!(found(&world, &args).await["message_id"], id, "{hint:?}");
    }
    // What waits or is dead needs no hint.
    let dead = Uuid::new_v4();
    world
        .insert(
            Some("d"),
            "created",
            "{}",
            &format!("message_id = '{dead}'"),
        )
        .await;
    world.sql("INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
             SELECT lane, id, message_id, 'unroutable', 9, 'x' FROM outbox.message WHERE aggregate_id = 'd'").await;
    assert_eq!(found(&world, &[&dead.to_string()]).await["state"], "dead");
    // A whole search may say that it is unknown, or was deleted.
    let other = Uuid::new_v4().to_string();
    assert_eq!(
        json(&world, &[&other, "--scan"], 1).await["absent"],
        "maybe_deleted"
    );
    assert_eq!(
        json(&world, &[&other, "--since", "1h"], 1).await["absent"],
        "unknown"
    );
}

#[tokio::test]
async fn an_unknown_id_is_told_apart_from_one_that_retention_may_have_deleted() {
    let world = world().await;
    world.commit_many(10, 10).await;
    let kept = [("OUTBOXD__RETENTION__SENT", "1h")];
    let (young, old) = (id_ago(60).to_string(), id_ago(7200).to_string());
    let said = refusal(&world, &[&young], &kept).await;
    assert!(
        said.contains(&format!("no message with the id {young} was found"))
            && said.contains("Searched around the time in the id")
            && !said.contains("deleted"),
        "{said}"
    );
    let said = refusal(&world, &[&old], &kept).await;
    assert!(said.contains("sent messages are kept for 1h"), "{said}");
    let at_once = refusal(&world, &[&young], &[("OUTBOXD__RETENTION__SENT", "0s")]).await;
    assert!(
        at_once.contains("sent messages are kept for 0s"),
        "{at_once}"
    );
    let absent = json(&world, &[&young], 1).await;
    assert_eq!(
        (&absent["absent"], &absent["found"]),
        (&"unknown".into(), &Value::Array(Vec::new()))
    );
    // An empty table, too.
    world.sql("TRUNCATE outbox.message").await;
    assert_eq!(json(&world, &[&young], 1).await["absent"], "unknown");
    refusal(&world, &["--key", "order/1"], &[]).await;
    refusal(&world, &["--correlation-id", "x"], &[]).await;
}

#[tokio::test]
async fn a_correlation_id_is_found_however_it_is_spelled_and_no_header_stops_the_search() {
    let world = world().await;
    for (key, headers) in [
        ("plain", r#"{"correlation_id":"req-7/é","tenant":"blue"}"#),
        ("escaped", r#"{"correlation_id":"req-7\/\u00e9"}"#),
        ("hostile", r#"{"correlation_id":"\u0000","x":"\ud800"}"#),
        ("other", r#"{"correlation_id":"req-8","note":"req-7/é"}"#),
        ("mention", r#"{"note":"\u0041 req-7/é"}"#),
        ("list", r#"["correlation_id","req-7/é"]"#),
        ("none", "null"),
    ] {
        let set = format!("headers = '{headers}'");
        world.insert(Some(key), "created", "{}", &set).await;
    }
    correlated(&world, "req-7/é", &["escaped", "plain"]).await;
    let said = text(&world, &["--correlation-id", "req-7/é"]).await;
    assert!(
        said.contains("Searched the newest first: ") && said.contains("7 rows"),
        "{said}"
    );

    // Bounded in time, and says so.
    history(&world).await;
    world.sql("UPDATE outbox.message SET headers = '{\"correlation_id\":\"old\"}' \
             WHERE id = (SELECT min(id) FROM outbox.message WHERE created_at > now() - interval '5 hours' AND sent_at IS NOT NULL)").await;
    let said = refusal(&world, &["--correlation-id", "old"], &[]).await;
    assert!(
        said.contains("written from") && !said.contains("deleted"),
        "{said}"
    );
    assert_eq!(
        json(&world, &["--correlation-id", "old", "--since", "6h"], 0).await["found"][0]["state"],
        "sent"
    );
    json(&world, &["--correlation-id", "old", "--scan"], 0).await;
}
