//! The tables, emptied and mended by hand. Rows 58, 62, 63.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    arena::{Arena, QUEUE, SOON, Setup, WINDOW},
    deliveries,
    flow::Flow,
    row::{Outcome, Result, Row, expect},
    rows::scene::{AUDITED, Scene},
};

pub const ROWS: &[Row] = &[
    Row {
        number: 58,
        fault: "TRUNCATE ... RESTART IDENTITY and a refill in one transaction, at work, asleep, stopped, ten times in a row",
        long: false,
        run: |setup| Box::pin(refilled(setup)),
    },
    Row {
        number: 62,
        fault: "outbox.lane, waiting, dead, migration emptied, one row or all",
        long: false,
        run: |setup| Box::pin(emptied(setup)),
    },
    Row {
        number: 63,
        fault: "key, route, headers or body mended, rows deleted by hand, while pending, waiting, dead",
        long: false,
        run: |setup| Box::pin(mended(setup)),
    },
];

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
    flow.traffic.withdraw(unsent.iter().copied());
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
    scene.fault();
    let mut unsent = 0;
    for round in 0..10 {
        let (gone, new) = refill(&scene.flow, &scene.owner, &format!("at-work-{round}")).await?;
        unsent += gone;
        let missing = scene.flow.deliveries.missing(new, SOON).await;
        expect(missing == 0, || {
            format!("{missing} of the 150 of round {round} did not arrive")
        })?;
    }
    scene.endured(SOON_SENT, WINDOW).await?;
    scene.flow.note(format!(
        "at work, {unsent} went with the table before they were sent"
    ));

    scene.fault();
    scene.flow.traffic.pause(true);
    scene.passed().await;
    scene.until("the relay to sleep", ASLEEP, 1).await;
    refill(&scene.flow, &scene.owner, "asleep").await?;
    scene.endured(SOON_SENT, 0).await?;

    scene.fault();
    scene.passed().await;
    scene.stop().await?;
    refill(&scene.flow, &scene.owner, "stopped").await?;
    scene.flow.traffic.pause(false);
    scene.relay = scene.arena.relay()?;
    scene.endured(SOON_SENT, 0).await?;
    scene.end().await
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
    let channel = deliveries::channel(&arena.broker_url()).await?;
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
        deliveries::exchange(&channel, &format!("unbound-{name}")).await?;
        exceptions(&scene, &name).await?;
        if emptied.starts_with("TRUNCATE") {
            let above = "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.id > l.low_water";
            scene.until("the marks to pass them", above, 0).await;
        }
        scene.fault();
        // The way is there now: what is found is sent, and what is still filed is asked for.
        deliveries::bind(&channel, &format!("unbound-{name}"), QUEUE).await?;
        scene.sql("UPDATE outbox.message SET headers = NULL WHERE headers IS NOT NULL").await?;
        scene.sql(emptied).await?;
        scene.flow.traffic.pause(false);
        scene.sql("UPDATE outbox.waiting SET due_at = clock_timestamp() WHERE cause = 'retry'").await?;
        if scene.arena.count("outbox.dead").await? > 0 {
            let redriven = scene.command(&["dead", "redrive", "--all", "--why", "mended"]).await?;
            expect(redriven.code == 0, || redriven.said())?;
        }
        scene.endured(AUDITED, WINDOW).await?;
    }
    for emptied in [
        "DELETE FROM outbox.lane WHERE lane = 7",
        "TRUNCATE outbox.lane",
    ] {
        scene.fault();
        scene.sql(emptied).await?;
        scene.flow.steady(100).await?;
        scene
            .until("the lanes to come back", "outbox.lane", 64)
            .await;
        scene.endured(SOON_SENT, WINDOW).await?;
    }
    // What says which migrations ran: the relay that is there works on, and says it; a new one is refused with the cure.
    scene.fault();
    scene.sql("TRUNCATE outbox.migration").await?;
    scene.says(503, "outboxd migrate").await?;
    scene.flow.steady(100).await?;
    let refused = scene.command(&["check", "--connect"]).await?;
    expect(
        refused.code == 78 && refused.stderr.contains("outboxd migrate"),
        || refused.said(),
    )?;
    let url = scene.arena.postgres.url(crate::arena::DATABASE);
    let migrated = scene
        .command(&["migrate", "--set", &format!("database.url={url}")])
        .await?;
    expect(migrated.code == 0, || migrated.said())?;
    scene.endured(SOON_SENT, 0).await?;
    scene.end().await
}

/// Unsent, and nobody has read it: the relay stands still.
async fn mended(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__BACKOFF_INITIAL", "20m");
    arena.set("OUTBOXD__RELAY__BACKOFF_MAX", "20m");
    arena.set("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1000");
    let channel = deliveries::channel(&arena.broker_url()).await?;
    deliveries::exchange(&channel, "unbound").await?;
    let mut scene = Scene::of(arena).await?;
    for (state, exists) in [
        ("pending", None),
        ("waiting", Some("outbox.waiting")),
        ("dead", Some("outbox.dead")),
    ] {
        scene.fault();
        let generation = scene.flow.traffic.standstill().await;
        scene.drained().await;
        if exists.is_none() {
            scene.relay.signal(Signal::SIGSTOP)?;
        }
        let wrong = match state {
            "dead" => [
                "'key-' || chr(1) || i, '{}', NULL, NULL",
                "'headers-' || i, '{}', '[]', NULL",
                "'body-' || i, to_json(repeat('x', 2000)), NULL, NULL",
                "'deleted-' || chr(1) || i, '{}', NULL, NULL",
            ],
            _ => [
                "'key-' || i, '{}', NULL, 'unbound'",
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
        // By hand; what is committed is what they are from now on.
        for (key, mend) in [
            ("key", "aggregate_id = 'mended-' || id, exchange = NULL"),
            ("headers", "headers = '{\"a\":1}', exchange = NULL"),
            ("body", "payload = '{\"mended\":true}', exchange = NULL"),
        ] {
            let sql = format!(
                "UPDATE outbox.message SET {mend} WHERE event_type = '{state}' AND aggregate_id LIKE '{key}-%'"
            );
            scene.flow.commits(&scene.owner, &sql).await?;
        }
        let delete = format!(
            "DELETE FROM outbox.message WHERE event_type = '{state}' AND aggregate_id LIKE 'deleted-%'"
        );
        scene.sql(&delete).await?;
        match state {
            "pending" => scene.relay.signal(Signal::SIGCONT)?,
            "dead" => redriven(&scene).await?,
            _ => {}
        }
        drop(generation);
        scene.endured(SOON_SENT, 0).await?;
        scene.until("nothing to wait", "outbox.waiting", 0).await;
    }
    scene.end().await
}

/// Fifteen are there and five are not: neither is said to be what it is not.
async fn redriven(scene: &Scene<'_>) -> Result<()> {
    let json = async |args: &[&str]| -> Result<serde_json::Value> {
        let ran = scene.command(args).await?;
        expect(ran.code == 0, || ran.said())?;
        Ok(serde_json::from_str(&ran.stdout)?)
    };
    let said = json(&["dead", "redrive", "--all", "--why", "mended", "--json"]).await?;
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
