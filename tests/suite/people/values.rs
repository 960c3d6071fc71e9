//! Unusual values that drivers and people write.

use crate::world::{World, world};

/// psycopg, Hibernate and Go write JSON null for "none".
#[tokio::test]
async fn headers_that_are_a_json_null_are_no_headers() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world
        .insert(Some("1"), "created", "1", "headers = 'null'")
        .await;
    world
        .insert(None, "created", "2", "headers = E' null\\n'")
        .await;
    world.all_arrived(&consumer).await;
    assert_eq!(world.count("outbox.dead").await, 0);
}

/// No time that PostgreSQL allows stops a worker, the gauges or a command.
#[tokio::test]
async fn a_message_of_any_time_is_sent_and_no_gauge_fails_on_it() {
    let times = [
        "-infinity",
        "infinity",
        "294276-12-31",
        "4713-01-01 BC",
        "1969-12-31",
    ];
    for headers in ["NULL", "'[]'"] {
        let world = world().await;
        for time in times {
            for available in ["NULL", "'-infinity'", "'294276-12-31'"] {
                let columns = format!(
                    "created_at = '{time}'; available_at = {available}; headers = {headers}"
                );
                world.insert(Some(time), "created", "1", &columns).await;
            }
        }
        let lag = world
            .client
            .query_one(
                "SELECT oldest_due_age_seconds, pending FROM outbox.status",
                &[],
            )
            .await
            .unwrap();
        assert!(lag.get::<_, f64>(0).is_finite());
        let consumer = world.consumer().await;
        let relay = world.relay(&[]);
        world
            .until(
                "the far ones to wait",
                "outbox.waiting WHERE cause = 'scheduled'",
                5,
            )
            .await;
        if headers == "NULL" {
            consumer.until(10).await;
        } else {
            world.until("the others to die", "outbox.dead", 10).await;
            for command in [&["dead", "list"] as &[&str], &["status"]] {
                let run = world.outboxd(command, &[]).await;
                run.ends(0, &[]);
            }
        }
        relay.never_said("panicked");
    }
}

async fn as_role(world: &World, role: &str, sql: &str) -> Result<String, String> {
    world
        .postgres()
        .psql(role, role, &world.database, sql)
        .map_err(|e| e.to_string())
}

/// Debezium's producer writes an event, deletes it in the same transaction, and checks that one row was deleted.
#[tokio::test]
async fn debeziums_usual_producer_sends_its_events() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    let deleted = |sql: &str| {
        sql.trim()
            .lines()
            .last()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let mut n = 0;
    for role in ["producer", "owner"] {
        let id = uuid::Uuid::new_v4();
        let sql = format!(
            "BEGIN; INSERT INTO outbox.debezium (id, aggregatetype, aggregateid, type, payload) \
             VALUES ('{id}', 'order', '1', 'created', '{{}}'); \
             WITH gone AS (DELETE FROM outbox.debezium WHERE id = '{id}' RETURNING id) SELECT count(*) FROM gone; COMMIT"
        );
        let out = as_role(&world, role, &sql).await.unwrap();
        assert_eq!(deleted(&out), "1", "{role}");
        n += 1;
        consumer.until(n).await;
    }
    // The same through a view of the service's own, as in docs/guides/producing.md.
    world
        .sql(
            "CREATE VIEW public.outboxevent AS SELECT * FROM outbox.debezium; \
             GRANT INSERT, SELECT (id), DELETE ON public.outboxevent TO producer",
        )
        .await;
    let id = uuid::Uuid::new_v4();
    let sql = format!(
        "BEGIN; INSERT INTO outboxevent VALUES ('{id}', 'order', '1', 'created', '{{}}'); DELETE FROM outboxevent WHERE id = '{id}'; COMMIT"
    );
    as_role(&world, "producer", &sql).await.unwrap();
    consumer.until(n + 1).await;
    world.drained().await;
    assert_eq!(consumer.len(), n + 1);
    for forbidden in [
        "SELECT * FROM outbox.debezium",
        "SELECT payload FROM outbox.debezium",
        "DELETE FROM outbox.message",
    ] {
        let refused = as_role(&world, "producer", forbidden).await.unwrap_err();
        assert!(
            refused.contains("permission denied"),
            "{forbidden}: {refused}"
        );
    }
}
