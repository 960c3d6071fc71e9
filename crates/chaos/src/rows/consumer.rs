//! The consumer's side. Rows 51 to 53, 55 to 57.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use test_support::{Daemon, Mode, Proxy, amqp, eventually, over};
use tokio_postgres::Client;

use crate::{
    arena::{Arena, DATABASE, SOON, Setup, WINDOW},
    consumer::TABLES,
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    51, "consumer killed after commit, before ack" => killed_before_ack(setup);
    52, "two consumers, same message at once" => raced(setup);
    53, "inbox pruning versus a late redelivery" => pruned(setup);
    55, "handler fails half-way" => half_way(setup);
    56, "same key, different payload" => conflict(setup);
    57, "consumer crashes between an external effect and its record" => in_doubt(setup);
};

pub(super) const WORK: &str = "work";
pub(super) const DEAD: &str = "work.dead";

/// A relay, traffic, and a second queue for the consumers under test beside the ledger's.
pub(super) struct Stage<'a> {
    pub arena: Arena<'a>,
    pub flow: Flow,
    _relay: Daemon,
    client: Client,
    pub channel: lapin::Channel,
}

impl<'a> Stage<'a> {
    pub async fn set(setup: &'a Setup) -> Result<Self> {
        let arena = Arena::start(setup).await?;
        let client = arena.client().await?;
        client.batch_execute(TABLES).await?;
        let channel = amqp::channel(&arena.broker_url()).await?;
        for queue in [WORK, DEAD] {
            amqp::queue(&channel, queue).await?;
        }
        amqp::bind(&channel, "events", WORK).await?;
        let relay = arena.relay()?;
        let flow = arena.flow().await?;
        Ok(Self {
            arena,
            flow,
            _relay: relay,
            client,
            channel,
        })
    }

    /// A consumer's process, its way to the broker over `port`.
    pub fn consumer(&self, port: u16) -> Result<Daemon> {
        let database = self
            .arena
            .postgres
            .url_for("consumer", "consumer", DATABASE);
        let broker = over(&self.arena.broker_url(), port);
        let program = std::env::current_exe()?;
        let args = ["consume", &database, &broker, WORK];
        let logs = &self.arena.setup.logs;
        logs.start("consumer", &program, &args, &[])
    }

    pub fn direct(&self) -> u16 {
        self.arena.rabbitmq.port()
    }

    pub async fn count(&self, of: &str) -> Result<i64> {
        self.arena.count(of).await
    }

    /// Publishes straight into the consumers' queue: what no relay would send.
    pub async fn publish(&self, id: &str, type_: &str, body: &str) -> Result<()> {
        amqp::publish(&self.channel, WORK, id, type_, body).await
    }

    /// Everything is applied that was committed, and each once.
    pub async fn applied_once(mut self) -> Result<Outcome> {
        let over = Instant::now();
        self.flow.recovers(over, Duration::from_secs(30)).await?;
        self.flow.traffic.pause(true);
        let messages = "outbox.message";
        let committed = self.count(messages).await?;
        eventually("all of it to be applied", SOON, async || {
            let applied = self.count("(SELECT DISTINCT message_id FROM public.applied WHERE length(message_id) = 36) a").await.ok()?;
            (applied >= committed).then_some(())
        })
        .await;
        let twice = "(SELECT FROM public.applied GROUP BY message_id HAVING count(*) > 1) t";
        let twice = self.count(twice).await?;
        expect(twice == 0, || {
            format!("{twice} messages were applied twice")
        })?;
        self.flow
            .note(format!("{committed} messages, each applied once"));
        self.flow.finish(WINDOW).await
    }
}

async fn killed_before_ack(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let network = Proxy::start(([127, 0, 0, 1], stage.direct()).into()).await?;
    let mut unacknowledged = 0;
    for _ in 0..5 {
        let before = stage.count("public.applied").await?;
        let mut consumer = stage.consumer(network.port())?;
        stage
            .arena
            .until_count("it to work", "public.applied", |n| n > before)
            .await;
        // Messages still come, and are applied; no acknowledgement leaves. Counted while it stands still, so that every
        // commit from here on is such a one.
        consumer.signal(Signal::SIGSTOP)?;
        let acknowledged = stage.count("public.applied").await?;
        network.set(Mode::StallRequests);
        consumer.signal(Signal::SIGCONT)?;
        stage
            .arena
            .until_count("more commits", "public.applied", |n| n > acknowledged)
            .await;
        consumer.kill().await?;
        unacknowledged += stage.count("public.applied").await? - acknowledged;
        // What was held back must not arrive after all.
        network.set(Mode::Cut);
        eventually("the connections to end", SOON, async || {
            (network.connections() == 0).then_some(())
        })
        .await;
        network.set(Mode::Forward);
    }
    let _consumer = stage.consumer(stage.direct())?;
    let mut outcome = stage.applied_once().await?;
    outcome.notes.push(format!(
        "5 kills, {unacknowledged} commits whose acknowledgement never left"
    ));
    Ok(outcome)
}

async fn raced(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let _consumers = [
        stage.consumer(stage.direct())?,
        stage.consumer(stage.direct())?,
    ];
    // Each message four more times, as somebody's replay would.
    for n in 0..200 {
        for _ in 0..5 {
            stage.publish(&format!("same-{n}"), "x", "{}").await?;
        }
    }
    let same = "public.applied WHERE message_id LIKE 'same-%'";
    stage
        .arena
        .until_count("each of them to be applied", same, |n| n >= 200)
        .await;
    until_empty(&stage).await;
    let applied = stage.count(same).await?;
    expect(applied == 200, || {
        format!("200 messages, five times each, were applied {applied} times")
    })?;
    stage.applied_once().await
}

/// Nothing is left in the consumers' queue, acknowledged or not. Its statistics are some seconds old.
async fn until_empty(stage: &Stage<'_>) {
    stage.flow.traffic.pause(true);
    eventually("the queue to be empty", SOON, async || {
        let listed = stage
            .arena
            .rabbitmq
            .ctl(&["list_queues", "-q", "name", "messages"])
            .await
            .ok()?;
        let line = listed
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{WORK}\t")).map(str::to_owned))?;
        (line.trim() == "0").then_some(())
    })
    .await;
    stage.flow.traffic.pause(false);
}

async fn pruned(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let _consumer = stage.consumer(stage.direct())?;
    stage.publish("late", "x", "{}").await?;
    stage.publish("older", "x", "{}").await?;
    stage
        .arena
        .until_count(
            "both to be applied",
            "public.applied WHERE message_id IN ('late', 'older')",
            |n| n == 2,
        )
        .await;
    // 13 days old is inside of the retention of 14, 15 days is not.
    let age = "UPDATE inbox.message m SET claimed_at = claimed_at - by_days, recorded_at = recorded_at - by_days \
               FROM (VALUES ('late', interval '13 days'), ('older', interval '15 days')) a (idempotency_key, by_days) \
               WHERE m.idempotency_key = a.idempotency_key";
    stage.client.batch_execute(age).await?;
    let prune = "SELECT inbox.prune('chaos', interval '14 days', 1000)";
    let forgotten: i32 = stage.client.query_one(prune, &[]).await?.get(0);
    stage.publish("late", "x", "{}").await?;
    stage.publish("older", "x", "{}").await?;
    let older = "public.applied WHERE message_id = 'older'";
    stage
        .arena
        .until_count("what was forgotten to be applied again", older, |n| n == 2)
        .await;
    until_empty(&stage).await;
    let late = stage
        .count("public.applied WHERE message_id = 'late'")
        .await?;
    expect(late == 1, || {
        format!("inside the retention, and applied {late} times")
    })?;
    expect(forgotten == 1, || {
        format!("{forgotten} operations were forgotten")
    })?;
    stage
        .client
        .batch_execute("DELETE FROM public.applied WHERE message_id = 'older'")
        .await?;
    stage.applied_once().await
}

async fn half_way(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let _consumer = stage.consumer(stage.direct())?;
    for n in 0..10 {
        stage.publish(&format!("half-{n}"), "fails", "{}").await?;
    }
    let dead = dead_letters(&stage, 10).await?;
    let left = stage
        .count("public.applied WHERE message_id LIKE 'half-%'")
        .await?;
    expect(left == 0, || {
        format!("{left} rows of failed handlers were left behind")
    })?;
    for letter in &dead {
        expect(
            letter.reason == "attempts_exhausted" && letter.attempts == Some(4),
            || format!("a dead letter says {letter:?}"),
        )?;
    }
    stage.applied_once().await
}

/// So many messages from the dead-letter queue, with what their headers say.
pub(super) async fn dead_letters(stage: &Stage<'_>, n: usize) -> Result<Vec<amqp::DeadLetter>> {
    amqp::dead_letters(&stage.arena.broker_url(), DEAD, n, SOON).await
}

async fn conflict(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let _consumer = stage.consumer(stage.direct())?;
    stage.publish("one", "x", "{}").await?;
    stage
        .arena
        .until_count(
            "it to be applied",
            "public.applied WHERE message_id = 'one'",
            |n| n == 1,
        )
        .await;
    stage.publish("one", "x", "{\"other\":1}").await?;
    let dead = dead_letters(&stage, 1).await?;
    expect(dead[0].reason == "conflict", || {
        format!("the dead letter says {:?}", dead[0])
    })?;
    stage.applied_once().await
}

async fn in_doubt(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let mut consumer = stage.consumer(stage.direct())?;
    stage.publish("charge-1", "charge", "{}").await?;
    let ended = consumer.ended(SOON).await?;
    expect(!ended.success(), || "it should have died".into())?;
    let _next = stage.consumer(stage.direct())?;
    let dead = dead_letters(&stage, 1).await?;
    expect(dead[0].reason == "in_doubt", || {
        format!("the dead letter says {:?}", dead[0])
    })?;
    let asked = stage.count("public.provider").await?;
    expect(asked == 1, || {
        format!("the provider was asked {asked} times")
    })?;
    let doubts = stage
        .count("inbox.in_doubt WHERE idempotency_key = 'charge-1'")
        .await?;
    expect(doubts == 1, || "inbox.in_doubt does not list it".into())?;
    stage.applied_once().await
}
