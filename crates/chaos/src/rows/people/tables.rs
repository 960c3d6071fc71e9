//! Tables that people empty or correct by hand. Rows 58, 62, 63.

use std::time::Duration;

use lapin::{Channel, types::AMQPValue};
use test_support::amqp;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    arena::{Arena, QUEUE, SOON, Setup, WINDOW},
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::{AUDITED, BESIDE, Scene},
};

pub const ROWS: &[Row] = rows! { setup;
    58, "TRUNCATE ... RESTART IDENTITY and a refill in one transaction, at work, asleep, stopped, ten times in a row" => refilled(setup);
    62, "outbox.lane, waiting, dead, migration emptied, one row or all" => emptied(setup);
    63, "key, route, headers or body corrected, rows deleted by hand, while pending, waiting, dead" => corrected(setup);
};

const BEGIN_AGAIN: &str = "positions of the outbox begin again";
/// Messages that the audit has filed.
const STRANDED: &str = "outbox_stranded_messages_total";
/// Whatever was found was sent within this.
const SOON_SENT: Duration = Duration::from_secs(15);

/// One transaction: the table is emptied, its positions begin anew, and there are new events. Returns how many were
/// deleted before they were sent, and the new ones.
async fn refill(flow: &Flow, owner: &Client, keys: &str) -> Result<(usize, Vec<Uuid>)> {
    let mut generation = flow.traffic.standstill().await;
    // While it works on these.
    flow.writes(owner, &format!("{keys}-before-"), 300).await?;
    // Nobody has them in flight once the lock is there.
    let lock = "BEGIN; LOCK TABLE outbox.message IN ACCESS EXCLUSIVE MODE";
    owner.batch_execute(lock).await?;
    let unsent = "SELECT message_id FROM outbox.message WHERE sent_at IS NULL";
    let unsent: Vec<Uuid> = owner
        .query(unsent, &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    flow.traffic.ledger.withdraw(unsent.iter().copied());
    owner
        .batch_execute("TRUNCATE outbox.message RESTART IDENTITY")
        .await?;
    let new = flow.writes(owner, &format!("{keys}-after-"), 150).await?;
    owner.batch_execute("COMMIT").await?;
    *generation += 1;
    Ok((unsent.len(), new))
}

/// Who sleeps holds this lock.
pub const ASLEEP: &str = "pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND classid = 28533";

async fn refilled(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    let mut unsent = 0;
    for round in 0..10 {
        let (gone, new) = refill(&scene.flow, &scene.owner, &format!("at-work-{round}")).await?;
        unsent += gone;
        let missing = scene.flow.deliveries.missing(new).await;
        expect(missing == 0, || {
            format!("{missing} of the 150 of round {round} did not arrive")
        })?;
    }
    scene.endured(SOON_SENT, WINDOW).await?;
    scene.flow.note(format!(
        "at work, {unsent} went with the table before they were sent"
    ));

    scene.flow.traffic.pause(true);
    scene.passed().await;
    scene.until("the relay to sleep", ASLEEP, 1).await;
    refill(&scene.flow, &scene.owner, "asleep").await?;
    scene.endured(SOON_SENT, 0).await?;

    scene.passed().await;
    scene.stop().await?;
    refill(&scene.flow, &scene.owner, "stopped").await?;
    scene.flow.traffic.pause(false);
    scene.relay = scene.arena.relay()?;
    scene.endured(SOON_SENT, 0).await?;
    under_records(&mut scene).await?;
    scene.end().await
}

/// Where no trigger runs, the records of old messages stay, dead and waiting, at the positions of new messages with the same
/// keys.
async fn under_records(scene: &mut Scene<'_>) -> Result<()> {
    let mut generation = scene.flow.traffic.standstill().await;
    scene.drained().await;
    scene
        .sql(
            "TRUNCATE outbox.message RESTART IDENTITY; \
             INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers, available_at) \
             SELECT 'row', 'again-' || i, 'old', '{}', CASE WHEN i % 2 = 0 THEN '[]'::json END, \
                    CASE WHEN i % 2 = 1 THEN now() + interval '300 days' END FROM generate_series(1, 100) i",
        )
        .await?;
    scene.until("half to die", "outbox.dead", 50).await;
    scene.until("half to wait", "outbox.waiting", 50).await;
    let said = scene.said(BEGIN_AGAIN);
    // As a tool does that restores a backup.
    let restores = &scene.admin;
    scene
        .superuser(
            "UPDATE outbox.waiting SET cause = 'retry' WHERE id % 3 = 0; \
             SET session_replication_role = replica; BEGIN; TRUNCATE outbox.message RESTART IDENTITY",
        )
        .await?;
    scene.flow.writes(restores, "again-", 150).await?;
    scene
        .superuser("COMMIT; SET session_replication_role = origin")
        .await?;
    *generation += 1;
    drop(generation);
    scene.logs_again(BEGIN_AGAIN, said).await?;
    scene.endured(AUDITED, 0).await?;
    scene
        .until(
            "old records to go",
            "outbox.waiting WHERE due_at > now() + interval '1 day'",
            0,
        )
        .await;
    let hidden = "outbox.dead d JOIN outbox.message m USING (lane, id, message_id)";
    scene.until("no new message to be dead", hidden, 0).await;
    scene.sql("DELETE FROM outbox.dead").await
}

/// A key whose head waits without an end, with some behind it; and some dead ones.
async fn exceptions(scene: &Scene<'_>, name: &str) -> Result<()> {
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, {columns}) \
             SELECT 'row', {values} FROM generate_series(1, 9) i"
        )
    };
    let waiting = insert(
        "exchange",
        &format!("'{name}', 'x', '{{}}', CASE WHEN i = 1 THEN 'unbound-{name}' END"),
    );
    scene.flow.commits(&scene.owner, &waiting).await?;
    let dead = insert(
        "headers",
        &format!("'{name}-dead-' || i, 'x', '{{}}', '[]'"),
    );
    scene.flow.commits(&scene.owner, &dead).await?;
    scene
        .until("the nine of a key to wait", "outbox.waiting", 9)
        .await;
    scene.until("nine dead ones", "outbox.dead", 9).await;
    Ok(())
}

async fn emptied(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__BACKOFF_INITIAL", "20m");
    arena.set("OUTBOXD__RELAY__BACKOFF_MAX", "20m");
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000");
    let channel = amqp::channel(&arena.broker_url()).await?;
    let mut scene = Scene::of(arena).await?;
    for (n, emptied) in [
        "DELETE FROM outbox.waiting WHERE cause = 'behind' AND id = (SELECT max(id) FROM outbox.waiting); \
         DELETE FROM outbox.dead WHERE id = (SELECT min(id) FROM outbox.dead)",
        "TRUNCATE outbox.waiting; TRUNCATE outbox.dead",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("emptied-{n}");
        scene.flow.traffic.pause(true);
        amqp::exchange(&channel, &format!("unbound-{name}")).await?;
        exceptions(&scene, &name).await?;
        if emptied.starts_with("TRUNCATE") {
            // So that no claim finds them.
            let above = "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.id > l.low_water";
            scene.until("the marks to pass them", above, 0).await;
        }
        let filed = scene.metric(STRANDED).await;
        // The way is there now: what is found is sent, and what is still filed is asked for.
        amqp::bind(&channel, &format!("unbound-{name}"), QUEUE).await?;
        scene
            .sql("UPDATE outbox.message SET headers = NULL WHERE headers IS NOT NULL")
            .await?;
        scene.sql(emptied).await?;
        let all = emptied.starts_with("TRUNCATE");
        if all {
            // Nobody but the audit looks there.
            scene.shows(STRANDED, |n| n == filed + 18.0).await?;
            scene
                .logs("unsent messages lay where no relay looks")
                .await?;
        } else {
            // The head of its key still waits: who stood behind it stands there again.
            let behind = "outbox.waiting WHERE cause = 'behind'";
            scene
                .until("the eight to stand behind their key again", behind, 8)
                .await;
        }
        let dead = if all { 0 } else { 8 };
        let found = scene.arena.count("outbox.dead").await?;
        expect(found == dead, || format!("{found} are dead, not {dead}"))?;
        scene.flow.traffic.pause(false);
        scene
            .sql("UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'")
            .await?;
        if dead > 0 {
            let redrive = ["dead", "redrive", "--all", "--why", "corrected", "--json"];
            let redriven = scene.command(&redrive).await?;
            expect(redriven.code == 0, || redriven.said())?;
            let said: serde_json::Value = serde_json::from_str(&redriven.stdout)?;
            expect(said["messages"] == dead, || redriven.said())?;
        }
        scene.endured(AUDITED, 0).await?;
    }
    lanes(&mut scene).await?;
    migration(&mut scene).await?;
    scene.end().await
}

async fn lanes(scene: &mut Scene<'_>) -> Result<()> {
    const RESTORED: &str = "outbox_lanes_restored_total";
    const SAID: &str = "rows of outbox.lane were missing; they are put back";
    // What pends in a lane that is not there is counted all the same: some five hundred.
    scene
        .sql("BEGIN; DELETE FROM outbox.lane WHERE lane = 7")
        .await?;
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                  SELECT 'row', 'in-seven-' || i, 'x', '{}' FROM generate_series(1, 32000) i \
                  WHERE hashtextextended('in-seven-' || i, hashtextextended('row', 0)) & 63 = 7";
    let there = scene.owner.execute(insert, &[]).await?;
    let sql = "SELECT pending FROM outbox.status";
    let pending: i64 = scene.owner.query_one(sql, &[]).await?.get(0);
    scene.sql("ROLLBACK").await?;
    expect(there > 0 && pending >= i64::try_from(there)?, || {
        format!("{there} pend in a lane that is not there, and the status says {pending}")
    })?;
    let mut restored = scene.metric(RESTORED).await;
    for (emptied, lanes) in [
        ("DELETE FROM outbox.lane WHERE lane = 7", 1.0),
        ("TRUNCATE outbox.lane", 64.0),
    ] {
        let said = scene.said(SAID);
        scene.sql(emptied).await?;
        scene.flow.steady(100).await?;
        scene
            .until("the lanes to come back", "outbox.lane", 64)
            .await;
        scene.logs_again(SAID, said).await?;
        restored += lanes;
        scene.shows(RESTORED, |n| n == restored).await?;
        scene.endured(SOON_SENT, 0).await?;
    }
    Ok(())
}

/// What says which migrations ran: the relay that is there works on, also on new connections, and says it; a new one is
/// refused with the cure.
async fn migration(scene: &mut Scene<'_>) -> Result<()> {
    const CURE: &str = "outboxd migrate";
    scene.sql("TRUNCATE outbox.migration").await?;
    scene.says(503, CURE).await?;
    scene.shows("outbox_schema_ok", |ok| ok == 0.0).await?;
    scene
        .superuser("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'")
        .await?;
    // None of its sessions of before can send these.
    let new = scene
        .flow
        .writes(&scene.owner, "without-a-record-", 20)
        .await?;
    let missing = scene.flow.deliveries.missing(new).await;
    expect(missing == 0, || {
        format!("{missing} of 20 did not arrive from a relay that had to connect again")
    })?;
    scene.says(503, CURE).await?;
    for command in [&["check", "--connect"][..], BESIDE, &["dead", "list"]] {
        let refused = scene.command(command).await?;
        expect(refused.code == 78 && refused.stderr.contains(CURE), || {
            format!("{command:?}: {} {}", refused.code, refused.said())
        })?;
    }
    let url = scene.arena.owner_url();
    let migrated = scene
        .command(&["migrate", "--set", &format!("database.url={url}")])
        .await?;
    expect(migrated.code == 0, || migrated.said())?;
    scene.ready().await?;
    let checked = scene.command(&["check", "--connect"]).await?;
    expect(checked.code == 0, || checked.said())?;
    scene.endured(SOON_SENT, WINDOW).await
}

/// Gets what is written here by hand, and nothing of the traffic.
const BY_HAND: &str = "by-hand";

/// In each state, five of each kind. While they are pending nobody reads them.
async fn corrected(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__BACKOFF_INITIAL", "20m");
    arena.set("OUTBOXD__RELAY__BACKOFF_MAX", "20m");
    arena.set("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1000");
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "unbound").await?;
    for i in 1..=5 {
        amqp::exchange(&channel, &format!("unbound-{i}")).await?;
    }
    amqp::queue(&channel, BY_HAND).await?;
    amqp::bind_key(&channel, "events", BY_HAND, "row.#").await?;
    let mut scene = Scene::of(arena).await?;
    for (state, exists) in [
        ("pending", None),
        ("waiting", Some("outbox.waiting")),
        ("dead", Some("outbox.dead")),
    ] {
        let generation = scene.flow.traffic.standstill().await;
        scene.drained().await;
        // No claim begins beside it; what is committed meanwhile is pending, and nobody has read it.
        let unread = scene.arena.owner().await?;
        if exists.is_none() {
            unread
                .batch_execute("BEGIN; LOCK TABLE outbox.lane IN SHARE MODE")
                .await?;
        }
        let wrong = match state {
            "dead" => [
                "'key-' || chr(1) || i, '{}', NULL, NULL",
                "'headers-' || i, '{}', '[]', NULL",
                "'body-' || i, to_json(repeat('x', 2000)), NULL, NULL",
                "'deleted-' || chr(1) || i, '{}', NULL, NULL",
            ],
            // One to a destination waits for its back-off; many are held until it works.
            _ => [
                "'key-' || i, '{}', NULL, 'unbound-' || i",
                "'headers-' || i, '{}', NULL, 'unbound'",
                "'body-' || i, '{}', NULL, 'unbound'",
                "'deleted-' || i, '{}', NULL, 'unbound'",
            ],
        };
        for values in wrong {
            let columns = "aggregate_type, aggregate_id, payload, headers, exchange, event_type";
            let sql = format!(
                "INSERT INTO outbox.message ({columns}) SELECT 'row', {values}, '{state}' FROM generate_series(1, 5) i"
            );
            scene.sql(&sql).await?;
        }
        if let Some(table) = exists {
            scene.until("the twenty to be filed", table, 20).await;
        }
        if state == "waiting" {
            // The back-off is drawn anew each time: here it is long.
            let long = "UPDATE outbox.waiting SET due_at = now() + interval '20 minutes' WHERE cause = 'retry'";
            let backing_off = scene.owner.execute(long, &[]).await?;
            expect(backing_off >= 5, || {
                format!("{backing_off} wait for a back-off, and not the five of them")
            })?;
        }
        // By hand; what is committed is what they are from now on.
        for (key, correction) in [
            ("key", "aggregate_id = 'corrected-' || id, exchange = NULL"),
            ("headers", "headers = '{\"a\":1}', exchange = NULL"),
            ("body", "payload = '{\"corrected\":true}', exchange = NULL"),
        ] {
            let sql = format!(
                "UPDATE outbox.message SET {correction} WHERE event_type = '{state}' AND aggregate_id LIKE '{key}-%'"
            );
            scene.flow.commits(&scene.owner, &sql).await?;
        }
        let delete = format!(
            "DELETE FROM outbox.message WHERE event_type = '{state}' AND aggregate_id LIKE 'deleted-%'"
        );
        scene.sql(&delete).await?;
        match state {
            "pending" => unread.batch_execute("COMMIT").await?,
            "dead" => {
                still_dead(&scene).await?;
                redriven(&scene).await?;
            }
            _ => {}
        }
        drop(generation);
        scene.endured(SOON_SENT, 0).await?;
        as_they_are(&scene, state).await?;
        scene.until("nothing to wait", "outbox.waiting", 0).await;
        scene.shows("outbox_dead_messages", |n| n == 0.0).await?;
    }
    rerouted(&mut scene, &channel).await?;
    scene.end().await
}

/// Of one that waits the event type alone is corrected, of another one the routing key alone: where they go now they go at
/// once, and do not wait for the back-off of where they went before.
async fn rerouted(scene: &mut Scene<'_>, channel: &Channel) -> Result<()> {
    amqp::exchange(channel, "choosy").await?;
    for key in ["row.right", "right"] {
        amqp::bind_key(channel, "choosy", QUEUE, key).await?;
    }
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange, routing_key) \
                  VALUES ('row', 'of-a-type', 'wrong', '{}', 'choosy', NULL), ('row', 'of-a-key', 'x', '{}', 'choosy', 'wrong')";
    scene.sql(insert).await?;
    let wait = "outbox.waiting WHERE reason = 'unroutable'";
    scene.until("both to wait", wait, 2).await;
    scene
        .sql("UPDATE outbox.waiting SET due_at = now() + interval '20 minutes'")
        .await?;
    for (key, correction) in [
        ("of-a-type", "event_type = 'right'"),
        ("of-a-key", "routing_key = 'right'"),
    ] {
        let sql = format!("UPDATE outbox.message SET {correction} WHERE aggregate_id = '{key}'");
        let corrected = scene.flow.commits(&scene.owner, &sql).await?;
        let missing = scene.flow.deliveries.missing(corrected).await;
        expect(missing == 0, || {
            format!("{correction} alone, and it still waits")
        })?;
    }
    scene.endured(SOON_SENT, 0).await
}

/// Fifteen came, each as it was corrected, and none of those that were deleted.
async fn as_they_are(scene: &Scene<'_>, state: &str) -> Result<()> {
    let came = amqp::take(&scene.arena.broker_url(), BY_HAND, 15, SOON).await?;
    let mut kinds = [0; 3];
    for delivery in &came {
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let key = match headers.inner().get("outbox-key") {
            Some(AMQPValue::LongString(key)) => key.to_string(),
            _ => String::new(),
        };
        let position = match headers.inner().get("outbox-position") {
            Some(AMQPValue::LongLongInt(position)) => *position,
            _ => 0,
        };
        let marked = headers.inner().get("a") == Some(&AMQPValue::LongLongInt(1));
        let kind = match &*delivery.data {
            b"{\"corrected\":true}" if key.starts_with("row:body-") && !marked => 2,
            b"{}" if key.starts_with("row:headers-") && marked => 1,
            b"{}" if key == format!("row:corrected-{position}") && !marked => 0,
            body => {
                let body = String::from_utf8_lossy(body);
                return Err(format!("{state}: {body} came with {headers:?}").into());
            }
        };
        let route = (delivery.exchange.as_str(), delivery.routing_key.as_str());
        let right = ("events", format!("row.{state}"));
        expect(route == (right.0, &right.1), || {
            format!("{state}: it came by {route:?}")
        })?;
        expect(!headers.contains_key("outbox-replay"), || {
            format!("{state}: it is said to be a replay")
        })?;
        kinds[kind] += 1;
    }
    expect(kinds == [5; 3], || {
        format!("{state}: of keys, headers and bodies came {kinds:?}")
    })
}

/// What is dead stays so until it is redriven, wherever its key is now.
async fn still_dead(scene: &Scene<'_>) -> Result<()> {
    scene.shows("outbox_dead_messages", |n| n == 20.0).await?;
    scene.audited().await?;
    let dead =
        "outbox.dead d JOIN outbox.message m USING (lane, id, message_id) WHERE m.sent_at IS NULL";
    let dead = scene.arena.count(dead).await?;
    let all = scene.arena.count("outbox.dead").await?;
    expect((dead, all) == (15, 20), || {
        format!("{dead} messages are dead, and {all} said to be: not 15 and 20")
    })
}

/// Fifteen are there and five are not: neither is said to be what it is not.
async fn redriven(scene: &Scene<'_>) -> Result<()> {
    let json = async |args: &[&str]| -> Result<serde_json::Value> {
        let ran = scene.command(args).await?;
        expect(ran.code == 0, || ran.said())?;
        Ok(serde_json::from_str(&ran.stdout)?)
    };
    let said = json(&["dead", "redrive", "--all", "--why", "corrected", "--json"]).await?;
    expect(
        said["messages"] == 15 && said["without_message"] == 5,
        || said.to_string(),
    )?;
    let none = ["dead", "redrive", "--all", "--why", "again", "--json"];
    let none = scene.command(&none).await?;
    expect(
        none.code == 1 && none.stderr.contains("outboxd dead discard"),
        || none.said(),
    )?;
    let said = json(&["dead", "discard", "--all", "--why", "deleted", "--json"]).await?;
    expect(said["messages"] == 5, || said.to_string())?;
    scene.until("no dead one", "outbox.dead", 0).await;
    Ok(())
}
