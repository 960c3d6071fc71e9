//! Replays: sent messages are published again, because somebody asked for it.

use crate::world::{SOON, repository, world};

#[tokio::test]
async fn a_replay_publishes_again_under_the_same_id_and_says_so() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.commit_many(20, 5).await;
    let first = world.insert(Some("1"), "special", "{}", "").await;
    consumer.until(21).await;
    world.drained().await;
    assert_eq!(
        world.outboxd(&["replay", "--why", "x"], &[]).await.code,
        2,
        "a filter is asked for"
    );
    assert!(
        world
            .ok("replay --type special --dry-run")
            .await
            .contains('1')
    );
    world
        .ok("replay --type special --why 'consumer lost it'")
        .await;
    let again = consumer.until(22).await.pop().unwrap();
    assert_eq!(again.message_id, first.to_string());
    assert_eq!(
        again.header("outbox-replay"),
        Some(lapin::types::AMQPValue::Boolean(true))
    );
    world.ok(&format!("replay {first} --why 'once more'")).await;
    consumer.until(23).await;
    world.ok("replay --key order/1 --why 'by key'").await;
    consumer.until(23 + 5).await;
    let since = world
        .ok("replay --since 2000-01-01T00:00:00Z --until 2001-01-01T00:00:00Z --dry-run")
        .await;
    assert!(since.contains('0'), "{since}");
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(
        report.is_clean() && report.duplicates == 0 && report.replayed == 7,
        "{report}"
    );
    world
        .has("outbox.operation WHERE action = 'replay'", 3)
        .await;
}

/// What would stand behind a replay that failed has nobody to release it.
#[tokio::test]
async fn replays_of_a_key_are_all_sent_when_the_first_of_them_fails() {
    let world = world().await;
    world.declare_exchange("events").await;
    for _ in 0..3 {
        world.insert(Some("1"), "created", "{}", "").await;
    }
    let sql = "UPDATE outbox.message SET sent_at = clock_timestamp()";
    world.sql(sql).await;
    world.ok("replay --key order/1 --why lost").await;
    let relay = world.relay(&[("OUTBOXD__RELAY__BACKOFF_INITIAL", "200ms")]);
    relay.line("not delivered; it is tried again", SOON).await;
    let consumer = world.consumer().await;
    consumer.until(3).await;
    world
        .until(
            "none to wait",
            "outbox.message m JOIN outbox.waiting USING (lane, id)",
            0,
        )
        .await;
}

#[tokio::test]
async fn a_replay_keeps_to_its_rate() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.commit_many(20, 1).await;
    consumer.until(20).await;
    world.drained().await;
    let began = std::time::Instant::now();
    world
        .ok("replay --aggregate-type order --rate 10 --why slowly")
        .await;
    let seen = consumer.until(40).await;
    let took = seen[39].at - began;
    assert!(took >= std::time::Duration::from_millis(1900), "{took:?}");
}

/// The runbook's own statements, while relays work.
#[tokio::test]
async fn a_replay_is_stopped_as_the_runbook_says() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relays = (world.relay(&[]), world.relay(&[]));
    world.commit_many(400, 20).await;
    consumer.until(400).await;
    world.drained().await;
    // All of it would take nearly seven minutes.
    world
        .ok("replay --aggregate-type order --rate 1 --why 'by mistake'")
        .await;
    consumer.until(402).await;
    let runbook = std::fs::read_to_string(repository().join("docs/guides/replay.md")).unwrap();
    let (_, stop) = runbook
        .split_once("BEGIN;\nSELECT count(*) FROM (SELECT FROM outbox.lane")
        .unwrap();
    let (stop, _) = stop.split_once("COMMIT;").unwrap();
    let stop = format!("BEGIN;\nSELECT count(*) FROM (SELECT FROM outbox.lane{stop}COMMIT;");
    // New messages flow meanwhile, so lanes are held.
    world.commit_many(2000, 200).await;
    world.sql(&stop).await;
    assert_eq!(world.count("outbox.waiting WHERE replay").await, 0);
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(
        report.is_clean() && (2..400).contains(&report.replayed),
        "{report}"
    );
}
