//! Order within a key, whatever happens to the message before.

use std::collections::HashSet;

use uuid::Uuid;

use crate::world::{SOON, World, world};

const STRICT: (&str, &str) = ("OUTBOXD__RELAY__ORDERING", "strict");
const PIPELINED: (&str, &str) = ("OUTBOXD__RELAY__ORDERING", "pipelined");

async fn hot_and_many_keys(ordering: (&'static str, &'static str)) {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[ordering, ("OUTBOXD__RELAY__BATCH_SIZE", "100")]);
    world.commit_many(400, 1).await;
    world.commit_many(1600, 37).await;
    consumer.until(2000).await;
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn keys_keep_their_order_in_strict_mode() {
    hot_and_many_keys(STRICT).await;
}

#[tokio::test]
async fn keys_keep_their_order_in_pipelined_mode_while_nothing_fails() {
    hot_and_many_keys(PIPELINED).await;
}

/// A new message is claimed together with the head of its key, while other messages of the key are between the two.
#[tokio::test]
async fn a_key_is_released_although_a_new_message_joins_the_end_of_its_queue() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let mut relay = world.relay(&[STRICT]);
    world.insert(Some("bad"), "nobody", "0", "").await;
    let waits = "outbox.waiting WHERE cause";
    world
        .until("the head to wait", &format!("{waits} = 'retry'"), 1)
        .await;
    for n in 1..=20 {
        world.insert(Some("bad"), "good", &n.to_string(), "").await;
    }
    world
        .until("the others behind", &format!("{waits} = 'behind'"), 20)
        .await;
    relay.kill().await.unwrap();
    world.insert(Some("bad"), "good", "21", "").await;
    let now = "UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'";
    world.sql(now).await;
    world.bind("all", "#", &[]).await;
    let _relay = world.relay(&[STRICT]);
    consumer.until(22).await;
    world.clean(&consumer, 0).await;
}

/// Within one claim: the message after one that was just refused is not published either.
#[tokio::test]
async fn a_failing_message_is_not_overtaken_in_strict_mode() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    for key in 0..20 {
        let key = key.to_string();
        // Each message has a destination of its own, because a destination that fails for two messages would hold them.
        world
            .insert(Some(&key), &format!("nobody{key}"), "0", "")
            .await;
        world.insert(Some(&key), "good", "1", "").await;
        world.insert(Some(&key), "good", "2", "").await;
    }
    let _relay = world.relay(&[
        STRICT,
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ]);
    let waits = "outbox.waiting WHERE cause";
    world
        .until("the heads to wait", &format!("{waits} = 'retry'"), 20)
        .await;
    world
        .until("the others behind", &format!("{waits} = 'behind'"), 40)
        .await;
    assert_eq!(consumer.len(), 0);
    world.bind("all", "#", &[]).await;
    let now = "UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'";
    world.sql(now).await;
    consumer.until(60).await;
    world.clean(&consumer, 0).await;
}

/// The head falls due in the claim that first reads a newer message of its key, while a third message is filed behind the head:
/// all of them are sent.
#[tokio::test]
async fn a_head_releases_its_key_though_a_new_message_came_with_it() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let slow = [
        STRICT,
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1h"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1h"),
    ];
    world.insert(Some("k"), "nobody", "0", "").await;
    world.insert(Some("k"), "good", "1", "").await;
    let relay = world.relay(&slow);
    let behind = "outbox.waiting WHERE cause = 'behind'";
    world.until("the second to stand behind", behind, 1).await;
    drop(relay);
    world.insert(Some("k"), "good", "2", "").await;
    world.bind("all", "#", &[]).await;
    let now = "UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'";
    world.sql(now).await;
    let _relay = world.relay(&slow);
    consumer.until(3).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
}

/// The hot key's lane is never empty, and no worker ever waits.
#[tokio::test]
async fn a_hot_key_does_not_keep_other_keys_from_being_found() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[("OUTBOXD__RELAY__WORKERS", "1")]);
    let insert = |key: &str, n: usize| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', {key}, 'created', '0' FROM generate_series(1, {n}) n RETURNING message_id"
        )
    };
    world.sql(&insert("'hot'", 20_000)).await;
    consumer.until(1).await;
    let rows = world.all(&insert("n", 20)).await;
    let others: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let before = consumer.len();
    consumer.until_all(&others).await;
    // The test counts messages instead of time, because a slow machine sends fewer meanwhile.
    let others: HashSet<String> = others.iter().map(Uuid::to_string).collect();
    let seen = consumer.seen();
    let last = seen.iter().rposition(|m| others.contains(&m.message_id));
    let waited = last.unwrap().saturating_sub(before);
    assert!(waited < 10_000, "behind {waited} messages of the hot key");
}

/// Without this, the fuller lanes of a backlog would lag further and further behind the others.
#[tokio::test]
async fn a_claim_reads_more_of_a_lane_that_is_behind() {
    let world = world().await;
    let consumer = world.consumer().await;
    let insert = |key: &str| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', '{key}', '{key}', '0' FROM generate_series(1, 60)"
        )
    };
    let sql = [
        &insert("behind"),
        "SELECT setval('outbox.message_id_seq', 1000000)",
        &insert("ahead"),
        "UPDATE outbox.lane l SET low_water = 1000000 \
         FROM outbox.message m WHERE m.aggregate_id = 'ahead' AND m.lane = l.lane",
    ];
    world.sql(&sql.join("; ")).await;
    let lanes = "(SELECT DISTINCT lane FROM outbox.message) m";
    assert_eq!(world.count(lanes).await, 2, "other keys are needed");
    // Pipelined order makes one wave, however long it takes. In strict order a claim cuts the chain of a key after a second.
    let relay = world.relay(&[
        PIPELINED,
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__BATCH_SIZE", "60"),
        ("OUTBOXD_FAILPOINT", "confirm.before_settle=hang"),
    ]);
    relay.line("failpoint reached", SOON).await;
    let seen = consumer.until(60).await;
    let behind = seen.iter().filter(|s| s.routing_key.ends_with("behind"));
    assert_eq!(behind.count(), 40, "twice as many as of the other");
}

/// A candidate's transaction id from another cluster with higher transaction ids would hold the mark for years.
#[tokio::test]
async fn a_candidate_from_another_cluster_does_not_hold_the_mark() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let sql = "UPDATE outbox.lane SET candidate = 1, candidate_tx = '1000000000000'";
    world.sql(sql).await;
    world.commit_many(5000, 500).await;
    let _relay = world.relay(&[]);
    marks_moved(&world, 0).await;
}

async fn marks_moved(world: &World, above: i64) {
    test_support::eventually("the low-water marks to move", SOON, async || {
        world.commit_many(640, 500).await;
        world.drained().await;
        let row = world.row("SELECT max(low_water) FROM outbox.lane").await;
        (row.get::<_, i64>(0) > above).then_some(())
    })
    .await;
}
