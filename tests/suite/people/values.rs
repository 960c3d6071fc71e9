//! Unusual values that drivers and people write.

use crate::world::{World, world};

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
