//! The table of messages, emptied and filled again. Row 58.

use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    arena::{Setup, WINDOW},
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    58, "TRUNCATE ... RESTART IDENTITY and a refill in one transaction, at work, asleep, stopped, ten times in a row" => refilled(setup);
};

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
const ASLEEP: &str = "pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND classid = 28533";

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
    scene.end().await
}
