//! What is in the outbox, and around the relay's process. Rows 44, 45, 50, 54.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use test_support::{amqp, commits::RECORDED, eventually, probe};

use crate::{
    arena::{Arena, QUEUE, SOON, Setup, WINDOW, since},
    pace,
    row::{Outcome, Result, Row, expect, rows, within},
};

pub const ROWS: &[Row] = rows! { setup;
    44, "a poison message at the head of a key" => poison_head(setup);
    45, "a backlog that is 100 % poison" => all_poison(setup);
    50, "rolling upgrade from schema version N-1 to N" => upgraded(setup);
    54, "stdout (the log sink) blocked" => log_blocked(setup);
};

async fn upgraded(_: &Setup) -> Result<Outcome> {
    let why = "there is one schema version so far: nothing to upgrade from";
    Ok(Outcome::skipped(why))
}

async fn poison_head(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000");
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "unbound").await?;
    let _relay = arena.relay()?;
    let mut flow = arena.flow().await?;
    let client = arena.owner().await?;
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange) \
               SELECT 'row', 'poisoned', 'x', '{}', CASE WHEN i = 1 THEN 'unbound' END \
               FROM generate_series(1, 50) i";
    let poisoned = flow.commits(&client, sql).await?;
    let behind = "outbox.waiting WHERE cause = 'behind'";
    arena
        .until_count("the others of the key to wait", behind, |n| n == 49)
        .await;
    // All other keys flow, and none of this one.
    flow.steady(500).await?;
    let early = flow.deliveries.seen();
    let overtook = poisoned
        .iter()
        .filter(|id| early.iter().any(|seen| seen.message_id == **id))
        .count();
    amqp::bind(&channel, "unbound", QUEUE).await?;
    let over = Instant::now();
    expect(overtook == 0, || {
        format!("{overtook} messages overtook the poison at the head of their key")
    })?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.finish(0).await
}

async fn all_poison(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    // A fifteenth of the poison is due each second, whenever the row looks.
    arena.set("OUTBOXD__RELAY__BACKOFF_INITIAL", "30s");
    arena.set("OUTBOXD__RELAY__BACKOFF_MAX", "30s");
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "unbound").await?;
    let client = arena.owner().await?;
    // A destination each: no circuit holds them, and each is retried for itself.
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange, routing_key) \
               SELECT 'row', 'p' || i, 'x', '{}', 'unbound', 'p' || i FROM generate_series(1, 10000) i";
    client.execute(sql, &[]).await?;
    let relay = arena.relay()?;
    arena
        .until_refused("all of the poison to wait", |n| n >= 9_900)
        .await;
    // The relay does not spin: alone with the poison, it only tries what is due.
    let (began, cpu) = (Instant::now(), probe::cpu_seconds(relay.pid())?);
    arena
        .until_count(
            "poison to be tried again",
            "outbox.waiting WHERE attempts > 1",
            |n| n >= 2_000,
        )
        .await;
    let share = (probe::cpu_seconds(relay.pid())? - cpu) / since(began);
    // Healthy messages flow through it.
    let mut flow = arena.flow().await?;
    let poison = format!("SELECT {RECORDED} FROM outbox.message WHERE exchange = 'unbound'");
    flow.records(&client, &poison).await?;
    flow.steady(1000).await?;
    flow.note(format!(
        "{:.0} % of a core while 10,000 poisoned messages wait",
        share * 100.0
    ));
    amqp::bind(&channel, "unbound", QUEUE).await?;
    // A share of each second: on a machine that is twice as slow the same work is twice the share.
    let bound = Duration::from_millis(600);
    let took = Duration::from_secs_f64(share);
    within(took, bound, pace::slowness(began), || {
        "of a core, each second".to_owned()
    })?;
    // What waits longest comes after thirty seconds.
    flow.finish(WINDOW).await
}

/// The log's queue holds 4,096 lines.
const DYING: usize = 6000;

async fn log_blocked(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let port = test_support::free_port()?;
    arena.set("OUTBOXD__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    arena.set("OUTBOXD__LOG__LEVEL", "trace");
    // A line for each message that dies.
    arena.set("OUTBOXD__RELAY__BATCH_SIZE", "1");
    // A pipe that nobody reads; it is full after 64 KiB.
    let mut relay = tokio::process::Command::new(&setup.outboxd)
        .arg("run")
        .env_clear()
        .envs(arena.env().iter().cloned())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut flow = arena.flow().await?;
    // More lines than the pipe and the queue before it hold.
    let dying = format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
         SELECT 'row', 'dying-' || i, 'x', '{{}}', '[]' FROM generate_series(1, {DYING}) i"
    );
    flow.commits(&arena.owner().await?, &dying).await?;
    flow.lets_die(DYING);
    eventually("lines that nobody can write", SOON, async || {
        let dropped = probe::metric(port, "outbox_log_lines_dropped_total").await?;
        (dropped > 0.0).then_some(())
    })
    .await;
    // Nobody waits for the log.
    flow.steady(200).await?;
    let outcome = flow.finish(0).await;
    relay.kill().await?;
    tokio::time::timeout(SOON, relay.wait()).await??;
    outcome
}
