//! What the tests of `outboxd where` ask it, and the rows that they ask about.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio_postgres::Client;
use uuid::{Timestamp, Uuid};

use crate::{
    commands::ok,
    world::{FAR, FARTHER, World},
};

/// The relay's back-off is far away: a state that a test looks at does not end meanwhile.
pub const SLOW: [(&str, &str); 2] = [
    ("OUTBOXD__RELAY__BACKOFF_INITIAL", FAR),
    ("OUTBOXD__RELAY__BACKOFF_MAX", FARTHER),
];

/// An id of version 7 of this time, in SQL.
pub fn id_of(time: &str) -> String {
    format!(
        "(lpad(to_hex(floor(extract(epoch FROM {time}) * 1000)::bigint), 12, '0') || '7' \
          || right(gen_random_uuid()::text, 21))::uuid"
    )
}

pub fn id_ago(seconds: u64) -> Uuid {
    let at = SystemTime::now() - Duration::from_secs(seconds);
    Uuid::new_v7(Timestamp::try_from(at).unwrap())
}

pub async fn found(world: &World, args: &[&str]) -> Value {
    let report = json(world, args, 0).await;
    assert_eq!(report["found"].as_array().unwrap().len(), 1, "{report:#}");
    report["found"][0].clone()
}

pub async fn json(world: &World, args: &[&str], code: i32) -> Value {
    let args = [&["where", "--json"], args].concat();
    let run = world.outboxd(&args, &[]).await;
    assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout))
}

/// The messages that a search by correlation id finds have these keys.
pub async fn correlated(world: &World, id: &str, expected: &[&str]) -> Value {
    let report = json(world, &["--correlation-id", id], 0).await;
    let found = report["found"].as_array().unwrap().iter();
    let keys = found.map(|m| m["aggregate_id"].as_str().unwrap());
    let keys: std::collections::BTreeSet<&str> = keys.collect();
    assert_eq!(Vec::from_iter(keys), expected, "{report:#}");
    report
}

pub async fn text(world: &World, args: &[&str]) -> String {
    ok(world, &[&["where"], args].concat()).await
}

/// A command that finds nothing: exit code 1, and what it says.
pub async fn refusal(world: &World, args: &[&str], more: &[(&str, &str)]) -> String {
    let run = world.outboxd(&[&["where"], args].concat(), more).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{}", run.stderr);
    run.stderr
}

/// Events of ten hours, two a second, with ids of their time; a few lanes have all of them.
pub async fn history(world: &World) {
    world.sql(&format!(
            "INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, created_at, sent_at) \
             SELECT {}, 'order', (i % 97 / 5)::text, 'created', '{{}}', at, at \
             FROM (SELECT i, now() - (72000 - i) * interval '500 ms' AS at FROM generate_series(1, 72000) i) s; \
             UPDATE outbox.lane SET low_water = (SELECT max(id) FROM outbox.message); \
             ANALYZE outbox.message",
            id_of("at")
        )).await;
}

pub async fn any_id(world: &World, sql: &str) -> Uuid {
    world.one(sql).await
}

/// Holds a lane as a relay does, or anybody.
pub async fn hold_lane_of(world: &World, id: Uuid, application: &str) -> Client {
    let client = world.postgres().connect(&world.database).await.unwrap();
    client
        .batch_execute(&format!("SET application_name = '{application}'; BEGIN"))
        .await
        .unwrap();
    let sql = "SELECT l.lane FROM outbox.lane l JOIN outbox.message m USING (lane) WHERE m.message_id = $1 FOR UPDATE OF l";
    client.query_one(sql, &[&id]).await.unwrap();
    client
}
