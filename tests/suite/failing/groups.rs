//! `outboxd failures`: messages that failed for one cause are one group, and commands act on it.

use serde_json::Value;

use super::{SLOW, failing, json};
use crate::{
    commands::ok,
    world::{World, world},
};

/// Dead messages with this error, of a key of each.
async fn dead(world: &World, n: usize, reason: &str, error: &str, columns: &str, values: &str) {
    world
        .sql(&format!(
            "WITH m AS (INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload{columns}) \
             SELECT 'order', gen_random_uuid()::text, 'created', '{{}}'{values} FROM generate_series(1, {n}) i \
             RETURNING lane, id, message_id) \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error, died_at) \
             SELECT lane, id, message_id, '{reason}', 3, {error}, now() - id * interval '1 minute' FROM m"
        ))
        .await;
}

fn sizes(groups: &Value) -> Vec<(i64, i64)> {
    let groups = groups.as_array().unwrap().iter();
    let n = |v: &Value| v.as_i64().unwrap();
    groups.map(|g| (n(&g["waiting"]), n(&g["dead"]))).collect()
}

#[tokio::test]
async fn one_cause_is_one_group_whatever_ids_and_numbers_its_errors_have() {
    let world = world().await;
    let own_key = ", exchange, routing_key";
    let value = ", 'audit', 'a.' || i || '.created'";
    let error =
        "'no queue for ''order-' || id || ''' (' || gen_random_uuid() || ', try 1' || id || ')'";
    dead(&world, 30, "unroutable", error, own_key, value).await;
    dead(&world, 20, "unroutable", error, "", "").await;
    dead(&world, 10, "access_refused", error, "", "").await;
    dead(&world, 5, "unroutable", "'something else'", "", "").await;
    let groups = json(&world, &["failures"], 0).await;
    assert_eq!(
        sizes(&groups),
        [(0, 30), (0, 20), (0, 10), (0, 5)],
        "{groups:#}"
    );
    assert_eq!(groups[0]["exchange"], "audit");
    assert_eq!(groups[0]["routing_key"], "a.?.created");
    // As the configuration of the command routes them.
    assert_eq!(groups[1]["exchange"], "events");
    assert_eq!(groups[1]["routing_key"], "order.created");
    assert_eq!(groups[0]["examples"].as_array().unwrap().len(), 3);
    assert!(groups[0]["first"].as_str() < groups[0]["last"].as_str());
    assert!(groups[0]["per_hour"].as_f64().unwrap() > 1.0);
    let again = json(&world, &["failures"], 0).await;
    assert_eq!(groups, again, "the names stay");
    let text = ok(&world, &["failures", "--limit", "2"]).await;
    assert!(
        text.contains("the first 2 of 4 groups: --limit shows more"),
        "{text}"
    );
}

#[tokio::test]
async fn a_group_is_redriven_discarded_and_given_up_and_others_stay() {
    let world = world().await;
    failing(&world, 2).await;
    let groups = json(&world, &["failures"], 0).await;
    assert_eq!(
        groups.as_array().unwrap().len(),
        2,
        "a routing key each: {groups:#}"
    );
    let group = groups[0]["group"].as_str().unwrap().to_owned();
    let example = groups[0]["examples"][0].as_str().unwrap().to_owned();
    let list = json(&world, &["waiting", "list", "--group", &group], 0).await;
    assert_eq!(list[0]["message_id"], example.as_str());
    assert_eq!(list[0]["failure_group"], group.as_str());
    let args = ["waiting", "give-up", "--group", &group, "--why", "x"];
    assert_eq!(json(&world, &args, 0).await["messages"], 1);

    dead(
        &world,
        3,
        "unroutable",
        "'shard ' || id || ' is gone'",
        "",
        "",
    )
    .await;
    let listed = json(&world, &["dead", "list", "--reason", "unroutable"], 0).await;
    let group = listed[0]["failure_group"].as_str().unwrap().to_owned();
    let listed = json(&world, &["dead", "list", "--group", &group], 0).await;
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let args = ["dead", "redrive", "--group", &group, "--dry-run"];
    assert_eq!(json(&world, &args, 0).await["messages"], 3);
    let args = ["dead", "discard", "--group", &group, "--why", "x"];
    assert_eq!(json(&world, &args, 0).await["messages"], 3);
    assert_eq!(world.count("outbox.dead").await, 1);
    let args = ["dead", "discard", "--group", "order", "--why", "x"];
    world
        .outboxd(&args, &[])
        .await
        .ends(2, &["outboxd failures"]);
}

/// A message remembers its redrives while it waits, and when it dies again.
#[tokio::test]
async fn what_fails_again_after_a_redrive_is_counted() {
    let world = world().await;
    world.declare_exchange("events").await;
    let relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "2")]);
    for n in 0..4 {
        let (key, columns) = (format!("k{n}"), if n == 0 { "" } else { "headers = '[]'" });
        world.insert(Some(&key), "lost", "0", columns).await;
    }
    world.until("them to die", "outbox.dead", 4).await;
    let again = async || {
        let groups = json(&world, &["failures"], 0).await;
        let groups = groups.as_array().unwrap().iter();
        groups
            .map(|g| g["failed_again"].as_i64().unwrap())
            .sum::<i64>()
    };
    assert_eq!(again().await, 0);
    ok(&world, &["dead", "redrive", "--all", "--why", "x"]).await;
    let died_again = "outbox.dead WHERE redriven = 1";
    world.until("them to die again", died_again, 4).await;
    assert_eq!(again().await, 4);
    drop(relay);
    // One that waits after its redrive.
    ok(
        &world,
        &["dead", "redrive", "--reason", "unroutable", "--why", "x"],
    )
    .await;
    let _relay = world.relay(&SLOW);
    let waits = "outbox.waiting WHERE redriven = 2 AND reason = 'unroutable'";
    world.until("it to fail once more", waits, 1).await;
    assert_eq!(again().await, 4);
}
