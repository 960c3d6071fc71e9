//! Times of waiting messages: a clock that was ahead, and a time that people correct.

use crate::world::{SOON, World, world};

/// What a clock that was two hours ahead leaves behind, once it is put right.
const AHEAD: &str = "UPDATE outbox.waiting SET cause = CASE WHEN cause = 'held' THEN 'retry' ELSE cause END, \
                            due_at = coalesce(due_at, clock_timestamp()) + interval '2 h', \
                            due_since = due_since + interval '2 h'; \
                     UPDATE outbox.message SET created_at = created_at + interval '2 h'";

async fn lag(world: &World) -> (i64, f64) {
    let row = world
        .row("SELECT due, oldest_due_age_seconds FROM outbox.status")
        .await;
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_clock_that_was_ahead_delays_no_message_and_hides_no_lag() {
    let world = world().await;
    // Nobody takes the messages: each is tried again and again.
    world.declare_exchange("events").await;
    let relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000")]);
    for key in ["1", "2", "3"] {
        world.insert(Some(key), "created", "1", "").await;
        world.insert(Some(key), "created", "2", "").await;
    }
    world.until("them to wait", "outbox.waiting", 6).await;
    world.sql(AHEAD).await;
    let ahead = "outbox.waiting WHERE due_since > clock_timestamp() OR due_at > clock_timestamp() + interval '1 h'";
    world.until("the times to be corrected", ahead, 0).await;
    let (due, _) = lag(&world).await;
    assert_eq!(due, 6);
    test_support::eventually("a lag", SOON, async || {
        (lag(&world).await.1 > 0.0).then_some(())
    })
    .await;
    relay.line("longer than any back-off", SOON).await;
    let consumer = world.consumer().await;
    consumer.until(6).await;
    world.drained().await;
}

#[tokio::test]
async fn a_message_redriven_by_a_clock_that_was_ahead_is_due_after_a_restart() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    let dead = world
        .insert(Some("1"), "created", "1", "headers = '[]'")
        .await;
    world.until("it to die", "outbox.dead", 1).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world.sql("UPDATE outbox.message SET headers = NULL").await;
    let redrive = ["dead", "redrive", "--all", "--why", "x"];
    crate::commands::ok(&world, &redrive).await;
    for body in ["2", "3", "4"] {
        world.insert(Some("1"), "created", body, "").await;
    }
    world.sql(AHEAD).await;
    assert_eq!(lag(&world).await.0, 4, "each is due");
    let _relay = world.relay(&[]);
    let seen = consumer.until(4).await;
    assert_eq!(seen[0].message_id, dead.to_string());
    world.drained().await;
}

/// A replay waits for its own time and is no lag. Without its mark the message is unsent, so it is both: due, and a lag.
#[tokio::test]
async fn a_message_whose_mark_is_taken_back_does_not_wait_for_its_replay() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    world.commit_many(20, 10).await;
    consumer.until(20).await;
    world.passed().await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    let replay = ["replay", "--aggregate-type", "order", "--why", "x"];
    crate::commands::ok(&world, &replay).await;
    world
        .sql(
            "UPDATE outbox.waiting SET due_at = clock_timestamp() + interval '300 days'; \
             UPDATE outbox.message SET sent_at = NULL WHERE id IN (SELECT id FROM outbox.message ORDER BY id LIMIT 10)",
        )
        .await;
    let relay = world.relay(&[("OUTBOXD_FAILPOINT", "claim.after=hang")]);
    test_support::eventually("a lag", SOON, async || {
        let (due, age) = lag(&world).await;
        (due == 10 && age > 0.0).then_some(())
    })
    .await;
    relay.line("as replays though they are unsent", SOON).await;
    drop(relay);
    let _relay = world.relay(&[]);
    let seen = consumer.until(30).await;
    let is_replay =
        |m: &&crate::world::Seen| format!("{:?}", m.properties).contains("outbox-replay");
    assert_eq!(seen.iter().filter(is_replay).count(), 0);
    let unsent = "outbox.message WHERE sent_at IS NULL";
    world.until("all to be marked", unsent, 0).await;
    assert_eq!(world.count("outbox.waiting WHERE replay").await, 10);
}

/// With triggers off, the claim and the audit look at the time again.
#[tokio::test]
async fn a_scheduled_message_follows_its_time_when_people_correct_it() {
    for role in ["origin", "replica"] {
        let world = world().await;
        let consumer = world.consumer().await;
        let _relay = world.relay(&[]);
        let far = "available_at = clock_timestamp() + interval '300 days'";
        let forward = world.insert(Some("1"), "forward", "1", far).await;
        let cleared = world.insert(Some("2"), "cleared", "1", far).await;
        let postponed = world.insert(Some("3"), "postponed", "1", far).await;
        world.until("all to wait", "outbox.waiting", 3).await;
        world
            .sql(&format!(
                "SET session_replication_role = {role}; \
                 UPDATE outbox.message SET available_at = clock_timestamp() WHERE message_id = '{forward}'; \
                 UPDATE outbox.message SET available_at = NULL WHERE message_id = '{cleared}'; \
                 UPDATE outbox.message SET available_at = clock_timestamp() + interval '1 year' \
                 WHERE message_id = '{postponed}'"
            ))
            .await;
        consumer.until_all(&[forward, cleared]).await;
        world.drained_but(1).await;
        let follows = "outbox.waiting w JOIN outbox.message m USING (lane, id) \
                       WHERE w.cause = 'scheduled' AND w.due_at = m.available_at AND w.due_since = m.available_at";
        world.until("the record to follow", follows, 1).await;
        // The old time has come, in a race with the correction.
        world
            .sql("UPDATE outbox.waiting SET due_at = clock_timestamp(), due_since = clock_timestamp()")
            .await;
        world.until("the claim to look again", follows, 1).await;
        world.insert(Some("4"), "last", "1", "").await;
        consumer.until(3).await;
        world.drained_but(1).await;
        let seen = consumer.seen();
        assert!(
            !seen.iter().any(|m| m.message_id == postponed.to_string()),
            "{role}"
        );
        let (due, _) = lag(&world).await;
        assert_eq!(due, 0, "{role}");
    }
}

/// A message that is postponed while it waits for another reason no longer holds its key back.
#[tokio::test]
async fn a_message_that_is_postponed_while_it_is_tried_again_lets_its_key_go_on() {
    for role in ["origin", "replica"] {
        let world = world().await;
        world.bind("other", "other", &[]).await;
        let _relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000")]);
        let first = world.insert(Some("1"), "created", "1", "").await;
        world.until("it to wait", "outbox.waiting", 1).await;
        let next = world
            .insert(Some("1"), "created", "2", "routing_key = 'other'")
            .await;
        world
            .until("the next to wait behind it", "outbox.waiting", 2)
            .await;
        world
            .sql(&format!(
                "SET session_replication_role = {role}; \
                 UPDATE outbox.message SET available_at = clock_timestamp() + interval '1 year' \
                 WHERE message_id = '{first}'"
            ))
            .await;
        let consumer = world.consume("other").await;
        consumer.until_all(&[next]).await;
        let scheduled = "outbox.waiting WHERE cause = 'scheduled' AND due_at > clock_timestamp() + interval '300 days'";
        world.until("it to be scheduled", scheduled, 1).await;
        world.drained_but(1).await;
    }
}

impl World {
    /// Waits until only this number of messages is unsent.
    async fn drained_but(&self, n: i64) {
        self.until(
            "the others to be sent",
            "outbox.message WHERE sent_at IS NULL",
            n,
        )
        .await;
        self.until("their records to go", "outbox.waiting", n).await;
    }
}

/// No distance can be computed from an infinite time, and the search for work reads the times of all lanes.
#[tokio::test]
async fn a_time_of_minus_infinity_is_past_and_keeps_no_other_message() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    let later = "available_at = clock_timestamp() + interval '1 day'";
    let scheduled = world.insert(Some("1"), "created", "1", later).await;
    world.until("it to wait", "outbox.waiting", 1).await;
    for time in ["'-infinity'", "'4713-01-01 BC'", "'294276-12-31'"] {
        // The record of a scheduled message follows the message again.
        world
            .sql(&format!("UPDATE outbox.waiting SET due_at = {time}"))
            .await;
        let other = world.insert(Some("2"), "created", "2", "").await;
        consumer.until_all(&[other]).await;
    }
    world
        .sql("UPDATE outbox.message SET available_at = '-infinity' WHERE aggregate_id = '1'")
        .await;
    let other = world.insert(Some("2"), "created", "3", "").await;
    consumer.until_all(&[scheduled, other]).await;
    world.drained().await;
}
