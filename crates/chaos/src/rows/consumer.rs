//! The consumer's side. Rows 53 and 57.

use std::time::{Duration, Instant};

use test_support::{Daemon, amqp, eventually};
use tokio_postgres::Client;

use crate::{
    arena::{Arena, DATABASE, SOON, Setup, WINDOW},
    consumer::TABLES,
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    53, "inbox pruning versus a late redelivery" => pruned(setup);
    57, "consumer crashes between an external effect and its record" => in_doubt(setup);
};

const WORK: &str = "work";
const DEAD: &str = "work.dead";

/// A relay, traffic, and a second queue for the consumers under test beside the ledger's.
struct Stage<'a> {
    arena: Arena<'a>,
    flow: Flow,
    _relay: Daemon,
    client: Client,
    channel: lapin::Channel,
}

impl<'a> Stage<'a> {
    async fn set(setup: &'a Setup) -> Result<Self> {
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

    /// A consumer's process.
    fn consumer(&self) -> Result<Daemon> {
        let database = self
            .arena
            .postgres
            .url_for("consumer", "consumer", DATABASE);
        let broker = self.arena.broker_url();
        let program = std::env::current_exe()?;
        let args = ["consume", &database, &broker, WORK];
        let logs = &self.arena.setup.logs;
        logs.start("consumer", &program, &args, &[])
    }

    async fn count(&self, of: &str) -> Result<i64> {
        self.arena.count(of).await
    }

    /// Publishes straight into the consumers' queue: what no relay would send.
    async fn publish(&self, id: &str, type_: &str, body: &str) -> Result<()> {
        amqp::publish(&self.channel, WORK, id, type_, body).await
    }

    /// Everything is applied that was committed, and each once.
    async fn applied_once(mut self) -> Result<Outcome> {
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
    let _consumer = stage.consumer()?;
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

async fn in_doubt(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let mut consumer = stage.consumer()?;
    stage.publish("charge-1", "charge", "{}").await?;
    let ended = consumer.ended(SOON).await?;
    expect(!ended.success(), || "it should have died".into())?;
    let _next = stage.consumer()?;
    let url = stage.arena.broker_url();
    let dead = amqp::dead_letters(&url, DEAD, 1, SOON).await?;
    expect(dead == ["in_doubt"], || {
        format!("the dead letter says {dead:?}")
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
