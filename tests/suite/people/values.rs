//! Unusual values that drivers and people write.

use crate::world::{SOON, World, world};

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
            .row("SELECT oldest_due_age_seconds, pending FROM outbox.status")
            .await;
        assert!(lag.get::<_, f64>(0).is_finite());
        let consumer = world.consumer().await;
        let relay = world.relay(&[]);
        world.waiting("cause = 'scheduled'", 5).await;
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

/// Each row without a value is the fault of this row, and no message, gauge or command waits for it.
#[tokio::test]
async fn a_row_without_a_value_that_the_schema_requires_dies_alone() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.commit_many(1, 1).await;
    consumer.until(1).await;
    world
        .sql(
            "ALTER TABLE outbox.message ALTER tx DROP NOT NULL, ALTER message_id DROP NOT NULL, \
             ALTER aggregate_type DROP NOT NULL, ALTER event_type DROP NOT NULL, ALTER content_type DROP NOT NULL, \
             ALTER created_at DROP NOT NULL, DROP CONSTRAINT message_has_one_payload",
        )
        .await;
    let columns = [
        "aggregate_type",
        "event_type",
        "content_type",
        "created_at",
        "payload",
    ];
    let rows: String = columns
        .iter()
        .map(|column| {
            let row = "INSERT INTO outbox.message (aggregate_type, event_type, content_type, created_at, payload) \
                       SELECT r.aggregate_type, r.event_type, r.content_type, r.created_at, r.payload \
                       FROM (SELECT 'order' AS aggregate_type, 'canary' AS event_type, 'text/plain' AS content_type, \
                                    now() AS created_at, '{}'::json AS payload) r;";
            row.replace(&format!("r.{column}"), "NULL")
        })
        .collect();
    let no_id = "INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload) \
                 VALUES (NULL, 'order', 'nobody', 'created', '1');";
    let no_tx = "INSERT INTO outbox.message (tx, aggregate_type, aggregate_id, event_type, payload) \
                 VALUES (NULL, 'order', 'tx', 'created', '1');";
    world
        .sql(&format!("BEGIN; {rows}{no_id}{no_tx} COMMIT"))
        .await;
    world.commit_many(200, 200).await;
    consumer.until(202).await;
    for column in columns {
        world
            .until(
                &format!("the row without {column} to be dead"),
                &format!("outbox.dead WHERE reason = 'unreadable' AND last_error LIKE '%{column} is NULL%'"),
                1,
            )
            .await;
    }
    assert_eq!(world.count("outbox.dead").await, 5);
    assert_eq!(
        world
            .count("outbox.dead WHERE last_error LIKE '%canary%'")
            .await,
        0
    );
    let id = world
        .client
        .query_one("SELECT message_id::text FROM outbox.dead LIMIT 1", &[])
        .await;
    let id: String = id.unwrap().get(0);
    for command in [
        &["dead", "list"] as &[&str],
        &["dead", "show", &id],
        &["where", &id],
        &["where", "--key", "order/nobody"],
        &["status"],
        &["replay", "--since", "1h", "--dry-run"],
        &["dead", "redrive", "--all", "--dry-run"],
    ] {
        world.outboxd(command, &[]).await.ends(0, &[]);
    }
    // It cannot be filed either, so it stays until somebody gives it an id.
    world
        .sql("UPDATE outbox.message SET message_id = gen_random_uuid() WHERE message_id IS NULL")
        .await;
    consumer.until(203).await;
    world.drained().await;
}

/// A column of another type fails every read, so no message is to blame.
#[tokio::test]
async fn a_column_of_another_type_is_named_and_gives_no_message_up() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    relay.line("relay started", crate::world::SOON).await;
    world
        .sql("ALTER TABLE outbox.message ALTER created_at TYPE date")
        .await;
    world.commit_many(10, 10).await;
    relay
        .line(
            "has the type date, which outboxd does not read",
            crate::world::SOON,
        )
        .await;
    assert_eq!(world.count("outbox.dead").await, 0);
    world
        .sql("ALTER TABLE outbox.message ALTER created_at TYPE timestamptz")
        .await;
    consumer.until(10).await;
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

/// A team makes the view again with one more column, and forgets the triggers. PostgreSQL must not pass writes to other rows.
#[tokio::test]
async fn debeziums_view_without_its_triggers_refuses_every_write() {
    let world = world().await;
    let insert = "INSERT INTO outbox.debezium (id, aggregatetype, aggregateid, type, payload) \
                  VALUES (gen_random_uuid(), 'order', '1', 'created', '{}')";
    as_role(&world, "producer", insert).await.unwrap();
    let refused = as_role(&world, "owner", "UPDATE outbox.debezium SET payload = '1'")
        .await
        .unwrap_err();
    assert!(refused.contains("cannot update view"), "{refused}");
    world
        .sql(
            "DO $$ DECLARE had text := pg_get_viewdef('outbox.debezium'); BEGIN \
                 DROP VIEW outbox.debezium; \
                 EXECUTE 'CREATE VIEW outbox.debezium AS ' \
                         || replace(replace(had, ';', ''), 'm.payload', 'm.payload, m.headers'); \
             END $$; \
             GRANT INSERT, UPDATE, SELECT (id), DELETE ON outbox.debezium TO producer",
        )
        .await;
    for (write, refusal) in [
        (insert, "cannot insert into view"),
        ("DELETE FROM outbox.debezium", "cannot delete from view"),
        (
            "UPDATE outbox.debezium SET type = 'x'",
            "cannot update view",
        ),
    ] {
        for role in ["producer", "owner"] {
            let refused = as_role(&world, role, write).await.unwrap_err();
            assert!(refused.contains(refusal), "{write}: {refused}");
        }
    }
    world
        .has("outbox.message WHERE event_type = 'created'", 1)
        .await;
}

/// Without an id, the event gets one, and the statement returns it.
#[tokio::test]
async fn an_event_through_debeziums_view_gets_an_id_if_it_has_none() {
    let world = world().await;
    let sql = "INSERT INTO outbox.debezium (aggregatetype, type, payload) \
               SELECT 'order', 'created', '{}' FROM generate_series(1, 3) RETURNING id";
    let ids = world.all(sql).await;
    let mut found = 0;
    for row in ids {
        let id: uuid::Uuid = row.get(0);
        found += world
            .count(&format!("outbox.message WHERE message_id = '{id}'"))
            .await;
    }
    assert_eq!(found, 3);
}

/// No claim reads these records, no probe finds them, and no audit mends them.
#[tokio::test]
async fn a_record_that_nobody_would_ever_see_is_refused() {
    let world = world().await;
    world.insert(Some("1"), "created", "1", "").await;
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, cause, due_since, destination, failed_probes) \
                 SELECT lane, id, message_id, 'held', now(), 1, 0 FROM outbox.message; \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
                 VALUES (1, 1, gen_random_uuid(), 'expired', 1, 'x')",
        )
        .await;
    for (edit, refusal) in [
        (
            "waiting SET destination = NULL",
            "waiting_held_has_a_destination",
        ),
        (
            "waiting SET failed_probes = NULL",
            "waiting_held_has_a_destination",
        ),
        ("waiting SET lane = 64", "waiting_lane_check"),
        ("waiting SET lane = -1", "waiting_lane_check"),
        ("waiting SET cause = 'replay'", "waiting_replay_is_marked"),
        (
            "waiting SET attempts = -1000",
            "waiting_counts_are_not_negative",
        ),
        (
            "waiting SET failed_probes = -1000",
            "waiting_counts_are_not_negative",
        ),
        ("dead SET lane = 64", "dead_lane_check"),
        ("lane SET candidate = 1", "lane_candidate_is_whole"),
        ("lane SET candidate_tx = '1'", "lane_candidate_is_whole"),
        (
            "lane SET candidate = 1, candidate_tx = '9223372036854775808'",
            "lane_candidate_is_whole",
        ),
    ] {
        let update = format!("UPDATE outbox.{edit}");
        let refused = world.client.batch_execute(&update).await.expect_err(edit);
        let refused = refused.as_db_error().unwrap();
        assert_eq!(refused.constraint(), Some(refusal), "{edit}");
    }
}

/// Without the stored size of its headers, a message keeps them.
#[tokio::test]
async fn headers_without_their_stored_size_are_sent() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    relay.line("connected to both servers", SOON).await;
    world
        .sql("ALTER TABLE outbox.message ALTER headers_size DROP EXPRESSION")
        .await;
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, event_type, payload, headers) \
             VALUES ('order', 'created', '1', '{\"tenant\": \"blue\"}')",
        )
        .await;
    let seen = consumer.until(1).await;
    assert_eq!(seen[0].text_header("tenant").as_deref(), Some("blue"));
}
