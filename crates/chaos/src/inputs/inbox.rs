//! Messages at a consumer's inbox: what cannot be told apart is dead-lettered, and never guessed. Bad inputs 31, 33, 34.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel,
    options::{BasicGetOptions, BasicNackOptions},
};
use test_support::{
    Daemon,
    amqp::{self, short},
    eventually,
};
use tokio_postgres::{Client, error::SqlState};

use crate::{
    arena::{DATABASE, SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
    stage::Stage,
};

pub const CASES: &[Row] = rows! { setup;
    31, "missing or malformed message id is dead-lettered, not guessed" => no_message_id(setup);
    33, "overlong id is dead-lettered" => overlong_id(setup);
    34, "the redelivered flag is a hint only" => redelivered(setup);
};

/// A queue of its own and its dead letters, and the consumer's process on it.
struct Bench<'a> {
    setup: &'a Setup,
    stage: &'a Stage,
    client: Client,
    channel: Channel,
    queue: &'static str,
    consumer: Option<Daemon>,
}

fn dead(queue: &str) -> String {
    format!("{queue}.dead")
}

impl<'a> Bench<'a> {
    async fn set(setup: &'a Setup, queue: &'static str) -> Result<Self> {
        let stage = setup.stage.get(setup).await?;
        let channel = amqp::channel(&stage.rabbitmq.url("/")).await?;
        for queue in [queue, &dead(queue)] {
            amqp::queue(&channel, queue).await?;
        }
        Ok(Self {
            setup,
            stage,
            client: stage.postgres.connect(DATABASE).await?,
            channel,
            queue,
            consumer: None,
        })
    }

    fn start(&mut self) -> Result<()> {
        let database = self
            .stage
            .postgres
            .url_for("consumer", "consumer", DATABASE);
        let broker = self.stage.rabbitmq.url("/");
        let args = ["consume", &database, &broker, self.queue];
        let (logs, program) = (&self.setup.logs, std::env::current_exe()?);
        self.consumer = Some(logs.start("consumer", &program, &args, &[])?);
        Ok(())
    }

    async fn publish(&self, id: &str, type_: &str, body: &str) -> Result<()> {
        amqp::publish(&self.channel, self.queue, id, type_, body).await
    }

    async fn dead_letters(&self, n: usize) -> Result<Vec<String>> {
        let (url, queue) = (self.stage.rabbitmq.url("/"), dead(self.queue));
        amqp::dead_letters(&url, &queue, n, SOON).await
    }

    async fn applied(&self, id: &str) -> Result<i64> {
        let sql = "SELECT count(*) FROM public.applied WHERE message_id = $1";
        Ok(self.client.query_one(sql, &[&id]).await?.get(0))
    }

    /// Everything before it in the queue has been taken by then; the consumer lives.
    async fn marker_is_applied(&mut self) -> Result<()> {
        let marker = format!("{}-marker", self.queue);
        self.publish(&marker, "x", "{}").await?;
        eventually("a healthy message to be applied", SOON, async || {
            (self.applied(&marker).await.ok()? == 1).then_some(())
        })
        .await;
        let consumer = self.consumer.as_mut().ok_or("no consumer was started")?;
        let ended = consumer.ended(Duration::from_millis(1)).await;
        expect(ended.is_err(), || "the consumer ended".into())
    }
}

fn all_say(letters: &[String], reason: &str) -> Result<()> {
    let other = letters.iter().find(|letter| *letter != reason);
    expect(other.is_none(), || {
        format!("a dead letter says {other:?}, not {reason}")
    })
}

fn note(text: impl Into<String>) -> Outcome {
    Outcome {
        notes: vec![text.into()],
        ..Outcome::default()
    }
}

async fn no_message_id(setup: &Setup) -> Result<Outcome> {
    let mut bench = Bench::set(setup, "b31").await?;
    bench.start()?;
    let none = BasicProperties::default().with_type(short("x"));
    amqp::publish_with(&bench.channel, bench.queue, none.clone(), "{\"n\":1}").await?;
    // The same body again: a guess by the body would take it for a repetition.
    amqp::publish_with(&bench.channel, bench.queue, none, "{\"n\":1}").await?;
    let malformed = ["", "a\r\nb", "\0", "a\u{7f}", "\u{85}"];
    for id in malformed {
        bench.publish(id, "x", "{}").await?;
    }
    let letters = bench.dead_letters(2 + malformed.len()).await?;
    all_say(&letters, "message_id_invalid")?;
    let guessed = "SELECT count(*) FROM public.applied WHERE message_id !~ '^[ -~]+$'";
    let guessed: i64 = bench.client.query_one(guessed, &[]).await?.get(0);
    expect(guessed == 0, || format!("{guessed} of them were applied"))?;
    bench.marker_is_applied().await?;
    Ok(note(format!(
        "2 without an id, {} malformed: dead letters (message_id_invalid), none applied",
        malformed.len()
    )))
}

async fn overlong_id(setup: &Setup) -> Result<Outcome> {
    let mut bench = Bench::set(setup, "b33").await?;
    bench.start()?;
    // AMQP's own limit for a message id; a business key has none of its own.
    let longest = "i".repeat(255);
    bench.publish(&longest, "x", "{}").await?;
    let overlong = ["k".repeat(256), "é".repeat(128), "k".repeat(100_000)];
    for key in &overlong {
        bench.publish("b33", "keyed", key).await?;
    }
    all_say(
        &bench.dead_letters(overlong.len()).await?,
        "message_id_invalid",
    )?;
    bench.marker_is_applied().await?;
    eventually("255 bytes to be applied", SOON, async || {
        (bench.applied(&longest).await.ok()? == 1).then_some(())
    })
    .await;
    let applied = bench.applied("b33").await?;
    expect(applied == 0, || format!("{applied} of them were applied"))?;
    // Whoever calls the functions without the crate is refused by the schema.
    let sql = "SELECT inbox.claim('b33', $1, sha256('x'))";
    let claimed = bench.client.query_one(sql, &[&"k".repeat(256)]).await;
    let code = claimed.err().and_then(|error| error.code().cloned());
    expect(code == Some(SqlState::CHECK_VIOLATION), || {
        format!("inbox.claim with 256 bytes answered {code:?}")
    })?;
    Ok(note(
        "255 bytes applied; 3 keys above: dead letters (message_id_invalid), and refused by the schema",
    ))
}

async fn redelivered(setup: &Setup) -> Result<Outcome> {
    let mut bench = Bench::set(setup, "b34").await?;
    // Redelivered, and nobody ever applied it: somebody looked and gave it back.
    bench.publish("b34-never-seen", "x", "{}").await?;
    let mut flagged = false;
    for _ in 0..3 {
        let how = BasicGetOptions { no_ack: false };
        let got = bench.channel.basic_get(short(bench.queue), how).await?;
        let got = got.ok_or("nothing is in the queue")?;
        flagged = got.delivery.redelivered;
        let back = BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        got.delivery.nack(back).await?;
    }
    expect(flagged, || "the broker did not set the flag".into())?;
    bench.start()?;
    eventually("what nobody applied to be applied", SOON, async || {
        (bench.applied("b34-never-seen").await.ok()? == 1).then_some(())
    })
    .await;
    // Not redelivered, and applied before: published once more, as a producer's retry is.
    for _ in 0..20 {
        bench.publish("b34-never-seen", "x", "{}").await?;
    }
    bench.marker_is_applied().await?;
    let applied = bench.applied("b34-never-seen").await?;
    expect(applied == 1, || format!("it was applied {applied} times"))?;
    Ok(note(
        "flagged and never applied: applied; not flagged and applied before, 20 times: not again",
    ))
}
