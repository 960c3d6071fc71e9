//! Messages that cannot be marked, or not even filed, beside messages that can.

use crate::{
    kit::{BATCH, SETTINGS, WORKERS},
    unwritten::{drop_trigger, named, no_flood, trigger},
    world::{SOON, World, world},
};

/// Others are marked between its attempts. They prove nothing about it.
#[tokio::test]
async fn one_message_that_cannot_be_marked_is_said_when_it_begins_and_when_it_ends() {
    const BEGINS: &str = "messages cannot be marked as sent";
    const ENDS: &str = "messages are marked as sent again";
    let world = world().await;
    let consumer = world.consumer().await;
    let refuses = "IF NEW.aggregate_id = ''poison'' THEN RAISE ''kept back''; END IF; RETURN NEW;";
    world
        .sql(&trigger("refuses", "UPDATE", "message", refuses))
        .await;
    let (relay, port) = world.watched(&SETTINGS);
    world.insert(Some("poison"), "created", "1", "").await;
    named(&relay, port, "kept back").await;
    let count = |text: &str| {
        let lines = relay.lines();
        lines.iter().filter(|line| line.contains(text)).count()
    };
    let mut others = 0;
    while count("it is tried again") < 6 {
        world.commit_many(5, 5).await;
        others += 5;
        consumer.until(others).await;
    }
    assert_eq!((count(BEGINS), count(ENDS)), (1, 0));
    drop_trigger(&world, "refuses", "message").await;
    world.drained().await;
    test_support::eventually("the end of the failure", SOON, async || {
        (count(ENDS) > 0).then_some(())
    })
    .await;
    assert_eq!((count(BEGINS), count(ENDS)), (1, 1));
}

/// Messages of a claim.
const SMALL: usize = 4;

/// SQL that inserts more messages than two claims read. All go nowhere, and are in lane 5: each with a key of its own, all with
/// one key, or without a key.
fn more_than_a_claim(kind: &str) -> String {
    let n = 3 * SMALL;
    let (key, id) = match kind {
        "keys" => ("'bad-' || i", "gen_random_uuid()"),
        "key" => (
            "(SELECT 'bad-' || i FROM generate_series(1, 1000) i \
                     WHERE outbox.key_hash('order', 'bad-' || i) & 63 = 5 LIMIT 1)",
            "gen_random_uuid()",
        ),
        _ => (
            "NULL",
            "overlay(md5(i::text) PLACING '0' FROM 1 FOR 1)::uuid",
        ),
    };
    format!(
        "INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, exchange) \
         SELECT m.id, 'order', m.key, 'bad', '1', 'nowhere' \
         FROM (SELECT {id} AS id, {key} AS key FROM generate_series(1, 100000) i) m \
         WHERE CASE WHEN m.key IS NULL THEN uuid_hash_extended(m.id, 0) ELSE outbox.key_hash('order', m.key) END & 63 = 5 \
         LIMIT {n}"
    )
}

async fn lane_5(world: &World, event: &str, keys: &str) {
    let insert = format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
         SELECT 'order', k.key, '{event}', '2' FROM (SELECT '{keys}' || i AS key FROM generate_series(1, 5000) i) k \
         WHERE outbox.key_hash('order', k.key) & 63 = 5 ORDER BY k.key LIMIT 40"
    );
    let written = world.ledger.insert(&world.client, &insert, &[]).await;
    written.unwrap();
}

/// They are the first of their lane, and each claim would read them, and nothing else.
#[tokio::test]
async fn more_messages_that_cannot_be_filed_than_a_claim_reads_keep_no_other_message() {
    for kind in ["keys", "key", "none"] {
        let world = world().await;
        let consumer = world.consumer().await;
        let refuses = "RAISE ''never filed'';";
        world
            .sql(&trigger("refuses", "INSERT", "waiting", refuses))
            .await;
        let (relay, port) = world.watched(&[("OUTBOXD__RELAY__BATCH_SIZE", "4"), SETTINGS[1]]);
        let insert = more_than_a_claim(kind);
        let bad = world.ledger.insert(&world.client, &insert, &[]).await;
        assert_eq!(bad.unwrap().len(), 3 * SMALL);
        named(&relay, port, "never filed").await;
        lane_5(&world, "created", "good-").await;
        let unsent = "outbox.message WHERE sent_at IS NULL AND event_type = 'created'";
        world.until("the others to be sent", unsent, 0).await;
        // Later messages of their keys overtake none of them.
        world
            .sql(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 SELECT 'order', m.aggregate_id, 'later', '3' FROM outbox.message m \
                 WHERE m.event_type = 'bad' AND m.aggregate_id IS NOT NULL GROUP BY m.aggregate_id",
            )
            .await;
        lane_5(&world, "created", "more-").await;
        world.until("more to be sent", unsent, 0).await;
        let overtook = "outbox.message WHERE sent_at IS NOT NULL AND event_type = 'later'";
        assert_eq!(world.count(overtook).await, 0);
        no_flood(&world, &consumer, &relay, 2 * WORKERS * BATCH).await;
        let lost = "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.sent_at IS NULL AND m.id <= l.low_water";
        assert_eq!(world.count(lost).await, 0, "the mark stays before them");
        drop_trigger(&world, "refuses", "waiting").await;
        world
            .sql("UPDATE outbox.message SET exchange = NULL WHERE sent_at IS NULL")
            .await;
        world.drained().await;
        let order = "SELECT count(*) FROM outbox.message b JOIN outbox.message l USING (lane, aggregate_id) \
                     WHERE b.event_type = 'bad' AND l.event_type = 'later' AND b.sent_at > l.sent_at";
        let row = world.client.query_one(order, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0);
    }
}
