//! A search reads a bounded number of rows, and says what it did not read.

use uuid::Uuid;

use super::ask::{correlated, found, history, json, refusal, text};
use crate::{locked::with_prepared_transactions, world::world};

#[tokio::test]
async fn a_search_over_a_gap_of_positions_reads_no_more_than_elsewhere() {
    let world = world().await;
    history(&world).await;
    let id = Uuid::new_v4();
    world
        .sql(&format!(
            "SELECT setval('outbox.message_id_seq', 5000000000); \
             UPDATE outbox.message SET message_id = '{id}', headers = '{{\"correlation_id\":\"far\"}}' \
             WHERE id = (SELECT max(id) - 10 FROM outbox.message)"
        ))
        .await;
    world.commit_many(10, 10).await;
    let report = json(&world, &[&id.to_string(), "--scan"], 0).await;
    let read = report["searched"]["rows"].as_i64().unwrap();
    assert!(read <= 33_000, "{report:#}");
    // This search goes on to the end of the table.
    let report = json(&world, &["--correlation-id", "far", "--scan"], 0).await;
    assert_eq!(report["found"][0]["message_id"], id.to_string());
    assert_eq!(report["searched"]["rows"], 72_010);
    assert_eq!(report["searched"]["first_position"], 1);
}

#[tokio::test]
async fn a_lane_that_was_read_in_part_is_not_said_to_be_sent() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, sent_at) \
             SELECT 'order', 'a', 'created', '{}', CASE WHEN i > 1 THEN now() END FROM generate_series(1, 20010) i; \
             UPDATE outbox.lane SET low_water = 20010",
        )
        .await;
    let report = json(&world, &["--key", "order/a"], 0).await;
    assert_eq!(report["open_is_cut"], true, "{report:#}");
    let said = text(&world, &["--key", "order/a"]).await;
    assert!(
        !said.contains("everything of this key is sent")
            && said.contains("there may be more that are not sent"),
        "{said}"
    );
    // Its last row is in reach now.
    world
        .sql("DELETE FROM outbox.message WHERE id > 20000 - 100")
        .await;
    let report = json(&world, &["--key", "order/a"], 0).await;
    assert_eq!(report["open"][0]["state"], "stranded");
    assert_eq!(report["open_is_cut"], false);
    world.sql("UPDATE outbox.message SET sent_at = now()").await;
    let said = text(&world, &["--key", "order/a"]).await;
    assert!(said.contains("everything of this key is sent"), "{said}");
}

#[tokio::test]
async fn a_time_is_not_estimated_where_the_mark_is_far_behind() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, sent_at) \
             SELECT 'order', 'a', 'created', '{}', CASE WHEN i <= 21000 THEN clock_timestamp() END \
             FROM generate_series(1, 24001) i",
        )
        .await;
    let sql = "SELECT message_id FROM outbox.message ORDER BY id DESC LIMIT 1";
    let id: Uuid = world.one(sql).await;
    let before = &found(&world, &[&id.to_string()]).await["before"];
    assert_eq!(before["is_about"], true, "{before:#}");
    let why = before["no_estimate"].as_str().unwrap();
    assert!(why.contains("far behind"), "{why}");
}

#[tokio::test]
async fn a_correlation_id_is_found_in_the_spelling_of_any_json_writer() {
    let world = world().await;
    let id = "a&b<c>+'\"/é𝄞";
    for (key, spelled) in [
        ("go", r#"a\u0026b\u003cc\u003e+'\"/é𝄞"#),
        (
            "dotnet",
            r#"a\u0026b\u003Cc\u003E\u002B\u0027\u0022/\u00E9\uD834\uDD1E"#,
        ),
        ("python", r#"a&b<c>+'\"/\u00e9\ud834\udd1e"#),
        (
            "php",
            r#"a\u0026b\u003Cc\u003E+\u0027\u0022\/\u00e9\ud834\udd1e"#,
        ),
        ("nested", r#"a&b<c>+'\"/é𝄞","x":"\u0041"#),
    ] {
        let headers =
            format!(r#"{{ "n": {{"correlation_id": "\u0041"}}, "correlation_id" : "{spelled}"}}"#);
        let headers = headers.replace('\'', "''");
        let set = format!("headers = '{headers}'");
        world.insert(Some(key), "created", "{}", &set).await;
    }
    // More than one statement returns, and each with an escape.
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
             SELECT 'order', 'other', 'created', '{}', '{\"correlation_id\":\"a\\u0026b\",\"name\":\"\\u00e9\\u0000\"}' \
             FROM generate_series(1, 300)",
        )
        .await;
    let report = correlated(&world, id, &["dotnet", "go", "nested", "php", "python"]).await;
    assert_eq!(report["searched"]["is_cut"], false);
}

#[tokio::test]
async fn a_prepared_transaction_counts_among_the_open_writers() {
    let world = with_prepared_transactions().await;
    let id = Uuid::now_v7();
    let client = world.postgres().connect(&world.database).await.unwrap();
    client
        .batch_execute(&format!(
            "BEGIN; \
             INSERT INTO outbox.message (message_id, aggregate_type, event_type, payload) VALUES ('{id}', 'order', 'created', '1'); \
             PREPARE TRANSACTION 'undecided'"
        ))
        .await
        .unwrap();
    let said = refusal(&world, &[&id.to_string()], &[]).await;
    assert!(
        said.contains("1 writing transactions are open here"),
        "{said}"
    );
    client
        .batch_execute("COMMIT PREPARED 'undecided'")
        .await
        .unwrap();
    found(&world, &[&id.to_string()]).await;
}
