//! What one statement reads does not grow with the outbox. The tests count the rows that a plan read, and not the time.

use serde_json::Value;
use tokio_postgres::SimpleQueryMessage;

use crate::world::{World, repository, world};

/// Rows that the scans of a plan returned or discarded.
fn rows(node: &Value) -> f64 {
    let number = |what: &str| node[what].as_f64().unwrap_or(0.0);
    let table = node["Relation Name"].is_string();
    let mut all = 0.0;
    if table && node["Node Type"].as_str().unwrap().ends_with("Scan") {
        let each = number("Actual Rows") + number("Rows Removed by Filter");
        all += each * number("Actual Loops");
    }
    for inner in node["Plans"].as_array().into_iter().flatten() {
        all += rows(inner);
    }
    all
}

impl World {
    /// Runs a statement of outboxd, of these files, and returns the number of rows that it read.
    pub async fn reads(&self, files: &[&str], types: &str, values: &str) -> f64 {
        let folder = repository().join("src/outbox/sql");
        let sql: String = files
            .iter()
            .map(|file| std::fs::read_to_string(folder.join(file)).unwrap())
            .collect();
        // As a session of outboxd sets it.
        let plans = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; \
                     SET plan_cache_mode = force_generic_plan";
        self.sql(&format!("{plans}; PREPARE measured ({types}) AS {sql}"))
            .await;
        let explain = format!(
            "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE measured ({values}); DEALLOCATE measured"
        );
        let answer = self.client.simple_query(&explain).await.unwrap();
        let text = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan: Value = serde_json::from_str(text.unwrap()).unwrap();
        rows(&plan[0]["Plan"])
    }
}

#[tokio::test]
async fn a_step_of_a_redrive_costs_the_same_at_its_start_and_at_its_end() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', (i % 500)::text, 'created', '{}' FROM generate_series(1, 100000) i; \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
             SELECT lane, id, message_id, 'unroutable', 9, 'x' FROM outbox.message; \
             ANALYZE outbox.message, outbox.dead",
        )
        .await;
    let types = "text[], text, text, text, float8, uuid[], text, text[], text, bigint, bool, timestamptz, smallint, bigint";
    let all = "'{}', NULL, NULL, NULL, NULL, '{}', NULL, '{}', NULL, 1000, false";
    for passed in [0, 50_000, 98_000] {
        let after = match passed {
            0 => "NULL, -1, 0".to_owned(),
            _ => {
                let sql = format!(
                    "SELECT quote_literal(died_at) || ', ' || lane || ', ' || id FROM outbox.dead \
                     ORDER BY died_at, lane, id OFFSET {passed} LIMIT 1"
                );
                world.one(&sql).await
            }
        };
        world.sql("BEGIN").await;
        let values = format!("{all}, {after}");
        let read = world.reads(&["dead_take.sql"], types, &values).await;
        world.sql("ROLLBACK").await;
        assert!(
            (1000.0..=4000.0).contains(&read),
            "{read} rows after {passed}"
        );
    }
}

#[tokio::test]
async fn held_messages_that_are_not_given_up_are_not_read() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, cause, due_since, attempts, destination, failed_probes) \
             SELECT i % 64, i, gen_random_uuid(), 'held', now(), CASE WHEN i > 19990 THEN 9 ELSE 1 END, 7, 5 \
             FROM generate_series(1, 20000) i; \
             ANALYZE outbox.waiting",
        )
        .await;
    let types = "bigint, int, int, bigint";
    let read = world
        .reads(&["held_give_up.sql"], types, "7, 6, 12, 1000")
        .await;
    assert!(read < 100.0, "{read} rows for none");
    let due = "outbox.waiting WHERE due_at IS NOT NULL AND cause = 'probe' AND attempts = 9";
    assert_eq!(world.count(due).await, 0);
    let read = world
        .reads(&["held_give_up.sql"], types, "7, 6, 10, 1000")
        .await;
    assert!(read < 100.0, "{read} rows for ten");
    assert_eq!(world.count(due).await, 10);
}

#[tokio::test]
async fn what_stands_before_a_message_is_counted_from_a_bounded_number_of_rows() {
    let world = world().await;
    // A long transaction holds the mark back.
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, sent_at) \
             SELECT 'order', 'a', 'created', '{}', clock_timestamp() FROM generate_series(1, 60000) i; \
             INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', 'a', 'created', '{}' FROM generate_series(1, 3000); \
             ANALYZE outbox.message",
        )
        .await;
    let last = "SELECT lane || ', ' || id FROM outbox.message ORDER BY id DESC LIMIT 1";
    let last: String = world.one(last).await;
    let types = "smallint, bigint, bigint, bigint, bigint";
    let values = format!("{last}, 2000, 500, 20000");
    let read = world.reads(&["where_ahead.sql"], types, &values).await;
    assert!(read < 30_000.0, "{read} rows");
}
