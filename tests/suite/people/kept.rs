//! The schema's own functions follow what people do. A trigger or a rule that keeps their writes from taking effect ends the
//! person's statement with an error that names the table.

use crate::{
    unwritten::trigger,
    world::{World, world},
};

/// A message that waits, and one that is dead; no relay runs.
async fn filed() -> World {
    let world = world().await;
    world
        .commit(&[(Some("1"), "waits", "1"), (Some("2"), "dies", "1")])
        .await;
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, cause, due_at, due_since) \
                 SELECT lane, id, message_id, 'retry', now(), now() FROM outbox.message WHERE event_type = 'waits'; \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
                 SELECT lane, id, message_id, 'unroutable', 1, 'x' FROM outbox.message WHERE event_type = 'dies'; \
             UPDATE outbox.lane SET low_water = 1, candidate = 1, candidate_tx = '1'",
        )
        .await;
    world
}

const REROUTE: &str = "UPDATE outbox.message SET routing_key = 'x' WHERE event_type = 'waits'";
const NEW_KEYS: &str = "UPDATE outbox.message SET aggregate_id = aggregate_id || '0'";
const CORRECT: &str = "UPDATE outbox.message SET payload = '2'";
const EMPTY: &str = "TRUNCATE outbox.message";
const ENQUEUE: &str = "SELECT outbox.enqueue('order', '3', 'created', '{}')";
const BINARY: &str = "SELECT outbox.enqueue_binary('order', '3', 'created', 'x', 'text/plain')";
const DEBEZIUM: &str =
    "INSERT INTO outbox.debezium (aggregatetype, type, payload) VALUES ('order', 'created', '{}')";

async fn refused(world: &World, statement: &str, table: &str) {
    let written = world.client.batch_execute(statement).await;
    let error = written.expect_err(statement);
    let said = error.as_db_error().unwrap();
    assert_eq!(said.code().code(), "09000", "{statement}: {said:?}");
    let names = (said.schema(), said.table());
    assert_eq!(names, (Some("outbox"), Some(table)), "{statement}");
    let hint = said.hint().unwrap_or_default();
    assert!(
        hint.contains(&format!("outbox.{table}")),
        "{statement}: {hint}"
    );
}

#[tokio::test]
async fn what_a_function_of_the_schema_does_not_write_is_an_error() {
    for (event, table, statements) in [
        ("UPDATE", "waiting", &[REROUTE, NEW_KEYS][..]),
        ("DELETE", "waiting", &[EMPTY]),
        ("UPDATE", "dead", &[NEW_KEYS]),
        ("DELETE", "dead", &[EMPTY]),
        ("UPDATE", "lane", &[EMPTY]),
        ("UPDATE OF tx", "message", &[CORRECT]),
        ("INSERT", "message", &[ENQUEUE, BINARY, DEBEZIUM]),
    ] {
        let world = filed().await;
        let bodies: &[&str] = match event {
            "UPDATE" | "UPDATE OF tx" => &["RETURN NULL;", "RETURN OLD;"],
            _ => &["RETURN NULL;"],
        };
        for (n, body) in bodies.iter().enumerate() {
            let keeps = format!("keeps_{n}");
            world.sql(&trigger(&keeps, event, table, body)).await;
            for statement in statements {
                refused(&world, statement, table).await;
            }
            world
                .sql(&format!("DROP TRIGGER {keeps} ON outbox.{table}"))
                .await;
        }
        for statement in statements {
            world.sql(statement).await;
        }
    }
}

/// PostgreSQL itself refuses a statement that returns what it wrote.
#[tokio::test]
async fn a_rule_in_place_of_such_a_write_is_an_error_too() {
    for (event, table, statement) in [
        ("DELETE", "waiting", EMPTY),
        ("DELETE", "dead", EMPTY),
        ("UPDATE", "lane", EMPTY),
        ("UPDATE", "waiting", REROUTE),
        ("UPDATE", "dead", NEW_KEYS),
        ("INSERT", "message", ENQUEUE),
        ("INSERT", "message", BINARY),
        ("INSERT", "message", DEBEZIUM),
    ] {
        let world = filed().await;
        world
            .sql(&format!(
                "CREATE RULE keeps AS ON {event} TO outbox.{table} DO INSTEAD NOTHING"
            ))
            .await;
        let written = world.client.batch_execute(statement).await;
        let error = written.expect_err(statement);
        let said = error.as_db_error().unwrap();
        let named = said.table() == Some(table) || said.message().contains(table);
        assert!(named, "{statement}: {said:?}");
        // A session keeps the plan that the rule made of the statement.
        let other = world.postgres().connect(&world.database).await.unwrap();
        let again = format!("DROP RULE keeps ON outbox.{table}; {statement}");
        other.batch_execute(&again).await.unwrap();
    }
}
