//! Triggers and rules that keep the inbox's rows as they are: the function fails, so the caller's transaction rolls back.

use outbox::inbox::{Advanced, Transition};
use tokio_postgres::{Client, error::SqlState};

use crate::settings::{owner, service};

/// The rows that the writes meet.
const ROWS: &str = "\
    SELECT inbox.claim('c', 'applied', inbox.fingerprint('t', 'x', ''::text)); \
    SELECT inbox.claim('c', 'guarded', inbox.fingerprint('t', 'x', ''::text), 'entity', 5); \
    SELECT inbox.begin_effect('c', 'begun', inbox.fingerprint('t', 'x', ''::text)); \
    SELECT inbox.fail('c', 'failed', 'why')";

/// Every write of the inbox: table, operation, call.
const WRITES: [(&str, &str, &str); 13] = [
    (
        "message",
        "INSERT",
        "inbox.claim('c', 'new', inbox.fingerprint('t', 'x', ''::text))",
    ),
    (
        "message",
        "INSERT",
        "inbox.begin_effect('c', 'new', inbox.fingerprint('t', 'x', ''::text))",
    ),
    (
        "message",
        "UPDATE",
        "inbox.claim('c', 'new', inbox.fingerprint('t', 'x', ''::text), 'entity', 4)",
    ),
    (
        "message",
        "UPDATE",
        "inbox.complete('c', 'applied', 'done'::text)",
    ),
    (
        "message",
        "UPDATE",
        "inbox.complete('c', 'applied', NULL::bytea)",
    ),
    (
        "message",
        "UPDATE",
        "inbox.record_effect('c', 'begun', 'done'::text)",
    ),
    ("message", "DELETE", "inbox.abandon_effect('c', 'begun')"),
    ("message", "DELETE", "inbox.prune('c', interval '0')"),
    (
        "entity",
        "INSERT",
        "inbox.claim('c', 'new', inbox.fingerprint('t', 'x', ''::text), 'other', 4)",
    ),
    (
        "entity",
        "UPDATE",
        "inbox.claim('c', 'new', inbox.fingerprint('t', 'x', ''::text), 'entity', 6)",
    ),
    ("attempt", "INSERT", "inbox.fail('c', 'new', 'why')"),
    ("attempt", "UPDATE", "inbox.fail('c', 'failed', 'why')"),
    ("attempt", "DELETE", "inbox.forgive('c', 'failed')"),
];

/// Calls it, and rolls back.
async fn call(client: &Client, call: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await.unwrap();
    let called = client.batch_execute(&format!("SELECT {call}")).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    called
}

async fn a_trigger(database: &str, body: &str, operations: &[&str]) {
    let owner = owner(database).await;
    let client = service(database, &[]).await;
    client.batch_execute(ROWS).await.unwrap();
    let function = format!(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
    );
    owner.batch_execute(&function).await.unwrap();
    for (table, operation, write) in WRITES {
        call(&client, write).await.unwrap();
        if !operations.contains(&operation) {
            continue;
        }
        let trigger = format!(
            "CREATE TRIGGER keep BEFORE {operation} ON inbox.{table} FOR EACH ROW EXECUTE FUNCTION keep()"
        );
        owner.batch_execute(&trigger).await.unwrap();
        let error = call(&client, write).await.expect_err(write);
        let error = error.as_db_error().unwrap();
        let expected = [
            &SqlState::TRIGGERED_ACTION_EXCEPTION,
            &SqlState::T_R_SERIALIZATION_FAILURE,
        ];
        assert!(expected.contains(&error.code()), "{write}: {error:?}");
        let hint = error.hint().unwrap();
        let names = hint.contains("trigger") && hint.contains(&format!("inbox.{table}"));
        assert!(names && error.table() == Some(table), "{write}: {error:?}");
        let drop = format!("DROP TRIGGER keep ON inbox.{table}");
        owner.batch_execute(&drop).await.unwrap();
    }
}

#[tokio::test]
async fn a_trigger_that_returns_old_fails_each_update() {
    a_trigger("swallowed_old", "RETURN OLD;", &["UPDATE"]).await;
}

#[tokio::test]
async fn a_trigger_that_returns_null_fails_each_write() {
    let all = ["INSERT", "UPDATE", "DELETE"];
    a_trigger("swallowed_null", "RETURN NULL;", &all).await;
}

/// The values of the old row in a new one, or other values than those that were given.
#[tokio::test]
async fn a_trigger_that_replaces_the_row_fails_each_insert_and_update() {
    let body = "IF TG_OP = 'UPDATE' THEN NEW := OLD; \
                ELSIF TG_TABLE_NAME = 'message' THEN NEW.idempotency_key := 'other'; \
                ELSIF TG_TABLE_NAME = 'entity' THEN NEW.position := 0; \
                ELSE NEW.attempts := 0; END IF; RETURN NEW;";
    a_trigger("swallowed_replaced", body, &["INSERT", "UPDATE"]).await;
}

/// It returns OLD for each operation, as a function for UPDATE and DELETE does: a row is deleted all the same.
#[tokio::test]
async fn a_trigger_that_lets_a_delete_pass_fails_no_delete() {
    let owner = owner("swallowed_delete").await;
    let client = service("swallowed_delete", &[]).await;
    client.batch_execute(ROWS).await.unwrap();
    let function =
        "CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$";
    owner.batch_execute(function).await.unwrap();
    for table in ["message", "attempt"] {
        let trigger = format!(
            "CREATE TRIGGER pass BEFORE DELETE ON inbox.{table} FOR EACH ROW EXECUTE FUNCTION pass()"
        );
        owner.batch_execute(&trigger).await.unwrap();
    }
    for (_, _, write) in WRITES {
        call(&client, write).await.unwrap();
    }
}

#[tokio::test]
async fn a_rule_in_place_of_a_write_fails_it() {
    let owner = owner("swallowed_rule").await;
    let client = service("swallowed_rule", &[]).await;
    client.batch_execute(ROWS).await.unwrap();
    for condition in ["", "WHERE true"] {
        for (table, operation, write) in WRITES {
            let rule = format!(
                "CREATE RULE keep AS ON {operation} TO inbox.{table} {condition} DO INSTEAD NOTHING"
            );
            owner.batch_execute(&rule).await.unwrap();
            let error = call(&client, write).await.expect_err(write);
            let refused = error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED);
            assert!(refused, "{write}: {error:?}");
            let drop = format!("DROP RULE keep ON inbox.{table}");
            owner.batch_execute(&drop).await.unwrap();
            call(&client, write).await.unwrap();
        }
    }
}

/// The messages are deleted, and the attempts are not.
#[tokio::test]
async fn old_attempts_that_a_trigger_keeps_fail_the_pruning() {
    let owner = owner("swallowed_prune").await;
    let client = service("swallowed_prune", &[]).await;
    client.batch_execute(ROWS).await.unwrap();
    let trigger = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
                   CREATE TRIGGER keep BEFORE DELETE ON inbox.attempt FOR EACH ROW EXECUTE FUNCTION keep()";
    owner.batch_execute(trigger).await.unwrap();
    let error = call(&client, "inbox.prune('c', interval '0')").await;
    let error = error.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().table(), Some("attempt"));
}

/// The same for a table of the service itself.
#[tokio::test]
async fn a_state_that_a_trigger_keeps_is_not_reached() {
    let owner = owner("swallowed_state").await;
    let table = "CREATE TABLE public.orders (id bigint PRIMARY KEY, state text NOT NULL); \
                 INSERT INTO public.orders VALUES (1, 'pending'); \
                 GRANT SELECT, UPDATE ON public.orders TO settings_service; \
                 CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$; \
                 CREATE TRIGGER keep BEFORE UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION keep()";
    owner
        .batch_execute("CREATE SCHEMA IF NOT EXISTS public")
        .await
        .unwrap();
    owner.batch_execute(table).await.unwrap();
    let mut client = service("swallowed_state", &[]).await;
    let orders = Transition::new("public.orders", "id", "state");
    let transaction = client.transaction().await.unwrap();
    let advanced = orders.advance(&transaction, &1_i64, "pending", "paid");
    let found = "pending".to_owned();
    assert_eq!(advanced.await.unwrap(), Advanced::Impossible { found });
}
