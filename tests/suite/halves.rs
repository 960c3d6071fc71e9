//! A command that ends in the middle says how much it did, and has recorded it.

use nix::sys::signal::Signal;
use test_support::Daemon;

use crate::world::{SOON, World, binary, world};

/// Rows of these lanes can be changed, and those of the others not.
const UP_TO: i16 = 39;

/// So many sent messages, of many lanes, at or below the marks.
async fn sent(messages: usize) -> World {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    world.commit_many(messages, messages).await;
    consumer.until(messages).await;
    world.passed().await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world
}

async fn fails_after(world: &World, event: &str, table: &str) {
    let row = if event == "DELETE" { "OLD" } else { "NEW" };
    world
        .sql(&format!(
            "CREATE FUNCTION public.ends() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN IF {row}.lane > {UP_TO} THEN RAISE EXCEPTION ''no further''; END IF; RETURN {row}; END'; \
             CREATE TRIGGER ends BEFORE {event} ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION public.ends()"
        ))
        .await;
}

async fn recorded(world: &World, action: &str) -> i64 {
    let sql = "SELECT coalesce(sum(affected), 0)::bigint FROM outbox.operation WHERE action = $1";
    world
        .client
        .query_one(sql, &[&action])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn a_prune_that_fails_has_recorded_what_it_deleted_and_says_it() {
    let world = sent(300).await;
    fails_after(&world, "DELETE", "message").await;
    let run = world.outboxd(&["prune", "--older-than", "0s"], &[]).await;
    let left = world.count("outbox.message").await;
    let deleted = 300 - left;
    assert!(deleted > 0 && left > 0, "{deleted} deleted, {left} left");
    run.ends(
        1,
        &[
            "no further",
            &format!("at least {deleted} messages were deleted"),
        ],
    );
    assert_eq!(recorded(&world, "prune").await, deleted);
}

#[tokio::test]
async fn a_replay_that_fails_says_what_it_filed() {
    let world = sent(300).await;
    fails_after(&world, "INSERT", "waiting").await;
    let replay = ["replay", "--aggregate-type", "order", "--why", "x"];
    let run = world.outboxd(&replay, &[]).await;
    let filed = world.count("outbox.waiting").await;
    assert!(filed > 0);
    run.ends(
        1,
        &[
            "no further",
            &format!("at least {filed} messages were filed for replay"),
        ],
    );
    assert_eq!(recorded(&world, "replay").await, filed);
}

#[tokio::test]
async fn a_command_that_is_interrupted_says_what_it_did() {
    let world = sent(300).await;
    let mut person = world.postgres().connect(&world.database).await.unwrap();
    let locks = person.transaction().await.unwrap();
    let lock = format!("SELECT FROM outbox.message WHERE lane > {UP_TO} FOR UPDATE");
    locks.batch_execute(&lock).await.unwrap();
    let env = world.env(&[
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", "20m"),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "20m"),
    ]);
    let args = ["prune", "--older-than", "0s"];
    let mut prune = Daemon::start(&binary(), &args, &env).unwrap();
    let waits = "pg_stat_activity WHERE datname = current_database() AND usename = 'relay' \
                 AND wait_event_type = 'Lock'";
    world.until("it to wait for a lock", waits, 1).await;
    prune.signal(Signal::SIGINT).unwrap();
    assert_eq!(prune.ended(SOON).await.unwrap().code(), Some(1));
    prune.line("interrupted by a signal", SOON).await;
    let deleted = recorded(&world, "prune").await;
    assert!(deleted > 0);
    let said = format!("at least {deleted} messages were deleted");
    prune.line(&said, SOON).await;
}
