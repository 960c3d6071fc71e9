//! `outboxd waiting`: what it lists, and that it changes no message that a relay has at that moment.

use super::{SLOW, failing, json};
use crate::{
    commands::ok,
    finding::hold_lane_of,
    world::{FAR, Gate, World, world},
};

const WHY: [&str; 4] = ["--why", "queue bound", "--by", "ada"];

async fn records(world: &World) -> i64 {
    world.count("outbox.operation").await
}

#[tokio::test]
async fn the_list_says_what_each_message_waits_for_and_what_it_leaves_out() {
    let world = world().await;
    let ids = failing(&world, 2).await;
    world.insert(Some("k0"), "lost0", "1", "").await;
    let later = "available_at = clock_timestamp() + interval '1 hour'";
    world.insert(Some("k9"), "x", "1", later).await;
    let _relay = world.relay(&SLOW);
    world.until("all to wait", "outbox.waiting", 4).await;

    let all = json(&world, &["waiting", "list"], 0).await;
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    for (message, id) in all.iter().zip(&ids) {
        assert_eq!(message["message_id"], id.to_string());
        assert_eq!(message["state"], "failing");
        assert_eq!(message["reason"], "unroutable");
        assert_eq!(message["attempts"], 1);
        assert!(message["since"].is_string() && message["next_try_at"].is_string());
        assert!(message["last_error"].as_str().unwrap().len() > 5);
        assert!(message["behind"].is_null());
    }
    let behind = json(&world, &["waiting", "list", "--state", "behind"], 0).await;
    assert_eq!(behind[0]["behind"], ids[0].to_string(), "{behind:#}");
    let text = ok(&world, &["waiting", "list", "--limit", "1"]).await;
    assert!(text.contains("the first 1; there are more"), "{text}");
    assert!(
        text.contains("not shown: 1 behind, 1 scheduled; --state"),
        "{text}"
    );
    for (args, n) in [
        (&["--key", "order/k1"][..], 1),
        (&["--type", "lost1"], 1),
        (&["--exchange", "events"], 2),
        (&["--exchange", "other"], 0),
        (&["--reason", "nacked"], 0),
        (&["--older-than", "1h"], 0),
        (&["--state", "scheduled"], 1),
    ] {
        let list = json(&world, &[&["waiting", "list"], args].concat(), 0).await;
        assert_eq!(list.as_array().unwrap().len(), n, "{args:?}");
    }
    let absent = "0190163d-8694-739b-aea5-966c26f8ad91";
    let run = world.outboxd(&["waiting", "list", absent], &[]).await;
    run.ends(1, &["no waiting message has this id"]);
    for command in ["retry-now", "give-up"] {
        let args = ["waiting", command, absent, "--why", "x"];
        world.outboxd(&args, &[]).await.ends(1, &[absent]);
        let args = ["waiting", command, "--why", "x"];
        assert_eq!(
            world.outboxd(&args, &[]).await.code,
            2,
            "all only with --all"
        );
    }
    assert_eq!(records(&world).await, 0);
}

#[tokio::test]
async fn a_dry_run_counts_and_changes_nothing() {
    let world = world().await;
    failing(&world, 3).await;
    let before = waiting(&world).await;
    for command in ["retry-now", "give-up"] {
        let args = ["waiting", command, "--all", "--dry-run"];
        let done = json(&world, &args, 0).await;
        assert_eq!(
            (&done["messages"], &done["dry_run"]),
            (&3.into(), &true.into())
        );
    }
    assert_eq!(waiting(&world).await, before);
    assert_eq!(records(&world).await, 0);
    assert_eq!(world.count("outbox.dead").await, 0);
}

async fn waiting(world: &World) -> Vec<String> {
    let sql = "SELECT w::text FROM outbox.waiting w ORDER BY id";
    let rows = world.client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Two relays publish all the time, and hold nearly every lane nearly all the time.
#[tokio::test]
async fn messages_are_tried_now_while_two_relays_run_and_none_is_lost_or_overtaken() {
    let world = world().await;
    world.bind("all", "order.created", &[]).await;
    let consumer = world.consume("all").await;
    let relays = [world.relay(&SLOW), world.relay(&SLOW)];
    for n in 0..60 {
        let (key, kind) = (n.to_string(), format!("lost{n}"));
        world.insert(Some(&key), &kind, "0", "").await;
    }
    let waits = "outbox.waiting WHERE cause";
    world
        .until("the heads", &format!("{waits} = 'retry'"), 60)
        .await;
    world.commit_many(600, 60).await;
    world
        .until("the others", &format!("{waits} = 'behind'"), 600)
        .await;
    // The back-off has a random part: some would be due by themselves.
    let later = "UPDATE outbox.waiting SET due_at = clock_timestamp() + interval '30 minutes' WHERE cause = 'retry'";
    world.sql(later).await;
    world.bind("all", "#", &[]).await;
    // Traffic of other keys, in all lanes.
    let noise = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 SELECT 'noise', 'n' || i, 'created', '{}' FROM generate_series(1, 10000) i";
    world
        .ledger
        .insert(&world.client, noise, &[])
        .await
        .unwrap();
    let args = [&["waiting", "retry-now", "--all", "--json"], &WHY[..]].concat();
    let patient = [
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", FAR),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", FAR),
    ];
    let run = world.outboxd(&args, &patient).await;
    run.ends(0, &[]);
    let done: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(done["messages"], 60, "{done:#}");
    consumer.until(10_660).await;
    world.clean(&consumer, 0).await;
    let recorded =
        "outbox.operation WHERE action = 'retry-now' AND affected = 60 AND finished_at IS NOT NULL";
    assert_eq!((records(&world).await, world.count(recorded).await), (1, 1));
    drop(relays);
}

#[tokio::test]
async fn a_message_that_is_given_up_is_dead_frees_its_key_and_can_be_redriven() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let ids = failing(&world, 1).await;
    world.insert(Some("k0"), "good", "1", "").await;
    let _relay = world.relay(&SLOW);
    let behind = "outbox.waiting WHERE cause = 'behind'";
    world.until("the next to wait", behind, 1).await;
    let id = ids[0].to_string();
    let args = [
        "waiting",
        "give-up",
        &id,
        "--why",
        "wrong order",
        "--by",
        "ada",
    ];
    ok(&world, &args).await;
    consumer.until(1).await;
    assert_eq!(world.reason(ids[0]).await.as_deref(), Some("given_up"));
    let shown = ok(&world, &["dead", "show", &id]).await;
    for text in ["given up by ada (wrong order)", "unroutable"] {
        assert!(shown.contains(text), "{shown}");
    }
    world.bind("all", "#", &[]).await;
    ok(
        &world,
        &["dead", "redrive", "--reason", "given_up", "--why", "x"],
    )
    .await;
    consumer.until(2).await;
    world.drained().await;
    let actions = "outbox.operation WHERE action IN ('give-up', 'redrive') AND affected = 1 AND finished_at IS NOT NULL";
    assert_eq!(world.count(actions).await, 2);
}

/// The relay has published the message, and stands still before it writes the outcome.
#[tokio::test]
async fn a_message_that_a_relay_has_claimed_is_skipped_and_named() {
    let world = world().await;
    let ids = failing(&world, 1).await;
    let id = ids[0].to_string();
    let consumer = world.consumer().await;
    ok(&world, &[&["waiting", "retry-now", &id], &WHY[..]].concat()).await;
    let gate = Gate::new();
    let failpoint = gate.at("confirm.before_settle");
    let relay = world.relay(&[
        ("OUTBOXD_FAILPOINT", &failpoint),
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FAR),
    ]);
    consumer.until(1).await;
    let impatient = [("OUTBOXD__DATABASE__LOCK_TIMEOUT", "100ms")];
    for command in ["give-up", "retry-now"] {
        world
            .sql("UPDATE outbox.waiting SET due_at = now() + interval '1 hour'")
            .await;
        let args = [&["waiting", command, &id], &WHY[..]].concat();
        let run = world.outboxd(&args, &impatient).await;
        run.ends(1, &[&id, "1 messages were skipped", "at this moment"]);
    }
    gate.open();
    world.drained().await;
    assert_eq!(world.count("outbox.dead").await, 0);
    assert_eq!(records(&world).await, 1, "of the first command");
    world.clean(&consumer, 0).await;
    drop(relay);
}

/// Of the held messages of a destination one is tried; the relay releases the others when it succeeds.
#[tokio::test]
async fn held_messages_follow_the_probe_of_their_destination() {
    let world = world().await;
    world.declare_exchange("events").await;
    let relay = world.relay(&SLOW);
    for n in 0..20 {
        let key = format!("h{n}");
        world.insert(Some(&key), "lost", "0", "").await;
    }
    let held = "outbox.waiting WHERE cause = 'held'";
    world.until("them to be held", "outbox.waiting", 20).await;
    let held = world.count(held).await;
    assert!(held > 2, "{held}");
    let consumer = world.consumer().await;
    let args = [&["waiting", "retry-now", "--state", "held"], &WHY[..]].concat();
    let done = json(&world, &args, 0).await;
    assert_eq!(done["messages"], 1, "{done:#}");
    assert_eq!(done["held_behind_a_probe"], held - 1);
    // Those that failed before the circuit opened wait for their own try.
    let rest = [&["waiting", "retry-now", "--state", "failing"], &WHY[..]].concat();
    world.outboxd(&rest, &[]).await.ends(0, &[]);
    consumer.until(20).await;
    world.clean(&consumer, 0).await;
    drop(relay);
}

#[tokio::test]
async fn a_message_behind_another_one_or_scheduled_is_not_tried_and_is_named() {
    let world = world().await;
    failing(&world, 1).await;
    let behind = world.insert(Some("k0"), "good", "1", "").await;
    let _relay = world.relay(&SLOW);
    let waits = "outbox.waiting WHERE cause = 'behind'";
    world.until("the next to wait", waits, 1).await;
    let args = ["waiting", "retry-now", &behind.to_string(), "--why", "x"];
    let run = world.outboxd(&args, &[]).await;
    run.ends(1, &["an earlier message of its key"]);
    let args = ["waiting", "retry-now", "--state", "behind", "--why", "x"];
    world.outboxd(&args, &[]).await.ends(2, &["an earlier one"]);
    assert_eq!(records(&world).await, 0);
}

/// Somebody else than a relay holds the lane of one message; the others are done.
#[tokio::test]
async fn a_locked_lane_keeps_only_its_own_messages_back() {
    let world = world().await;
    let ids = failing(&world, 12).await;
    let holder = hold_lane_of(&world, ids[0], "psql").await;
    let impatient = [("OUTBOXD__DATABASE__LOCK_TIMEOUT", "100ms")];
    let args = ["waiting", "give-up", "--all", "--why", "x", "--json"];
    let run = world.outboxd(&args, &impatient).await;
    run.ends(1, &["were skipped"]);
    let done: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let (given_up, claimed) = (
        done["messages"].as_i64().unwrap(),
        done["claimed"].as_i64().unwrap(),
    );
    assert_eq!(given_up + claimed, 12, "{done:#}");
    assert!(claimed >= 1 && given_up >= 1, "{done:#}");
    assert_eq!(world.count("outbox.dead").await, given_up);
    drop(holder);
    let again = json(&world, &["waiting", "give-up", "--all", "--why", "x"], 0).await;
    assert_eq!(again["messages"], claimed);
}
