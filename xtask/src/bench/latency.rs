//! One event at a time on an idle system.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, BasicPublishOptions},
    types::FieldTable,
};

use super::{
    percentile, save,
    stage::{QUEUE, SOON, Stage},
};
use crate::Result;

#[derive(clap::Args)]
pub struct Args {
    /// Events of either kind
    #[arg(long, default_value_t = 300)]
    events: usize,
    /// Pause before each, in which the relay falls asleep
    #[arg(long, default_value_t = 150, value_name = "MS")]
    pause_ms: u64,
}

pub async fn run(args: &Args) -> Result<()> {
    let stage = Stage::start().await?;
    stage.queue("quorum").await?;
    let channel = stage.channel().await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut deliveries = channel
        .basic_consume(QUEUE.into(), "".into(), options, FieldTable::default())
        .await?;
    let mut next = async || -> Result<()> {
        let delivery = tokio::time::timeout(SOON, deliveries.next()).await?;
        delivery.ok_or("the consumer ended")??;
        Ok(())
    };
    let publisher = stage.channel().await?;
    let (relay, _) = stage.relay().await?;
    let pause = Duration::from_millis(args.pause_ms);
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for i in 0..args.events + 10 {
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let publish =
            publisher.basic_publish("events".into(), "direct".into(), options, b"{}", properties);
        let confirm = publish.await?;
        next().await?;
        let direct_ms = began.elapsed().as_secs_f64() * 1e3;
        confirm.await?;

        tokio::time::sleep(pause).await;
        let began = Instant::now();
        stage
            .client
            .batch_execute(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 VALUES ('order', '1', 'created', '{}')",
            )
            .await?;
        let committed = began.elapsed();
        next().await?;
        let relayed_ms = (began.elapsed() - committed).as_secs_f64() * 1e3;
        // The first few find cold caches.
        if i >= 10 {
            direct.push(direct_ms);
            relayed.push(relayed_ms);
        }
    }
    drop(relay);
    println!("| one at a time, idle, quorum queue | p50 | p99 |\n|---|---|---|");
    let mut report = serde_json::Map::new();
    for (what, values) in [
        ("publish to consumer", &mut direct),
        ("commit to consumer", &mut relayed),
    ] {
        let (p50, p99) = (percentile(values, 0.5), percentile(values, 0.99));
        println!("| {what} | {p50:.1} ms | {p99:.1} ms |");
        report.insert(
            what.replace(' ', "_"),
            serde_json::json!({ "p50_ms": p50, "p99_ms": p99 }),
        );
    }
    save("latency", &report.into())
}
