//! An idle system: one event at a time, and what a relay uses that has nothing to do.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::{BasicProperties, options::BasicConsumeOptions, types::FieldTable};
use test_support::Result;

use crate::{
    outbox::{Batch, Outbox, frequent},
    raw::MANDATORY,
    relay::DEFAULTS,
    report::{Measure, Target, Unit},
    stage::{QUEUE, Queue, SOON},
    statistics::{median_of, percentile},
    workload::Bench,
};

/// Pause before each event, in which the relay falls asleep.
const PAUSE: Duration = Duration::from_millis(150);
/// The first few find cold caches.
const COLD: usize = 10;

pub async fn latency(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "idle_latency").await?;
    stage.queue(Queue::Quorum).await?;
    let channel = stage.channel().await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut deliveries = channel
        .basic_consume(QUEUE.into(), "".into(), options, FieldTable::default())
        .await?;
    let mut next = async || -> Result<()> {
        let delivery = tokio::time::timeout(SOON, deliveries.next())
            .await
            .map_err(|_| "no message came within a minute: does the relay run?")?;
        delivery.ok_or("the consumer ended")??;
        Ok(())
    };
    let publisher = stage.channel().await?;
    let relay = stage.relay(&outbox, DEFAULTS).await?;
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for run in 1..=bench.sizes.runs {
        bench.say(&format!("idle-latency: run {run} of {}", bench.sizes.runs));
        let cold = if run == 1 { COLD } else { 0 };
        let (mut direct_ms, mut relayed_ms) = (Vec::new(), Vec::new());
        for _ in 0..bench.sizes.events + cold {
            tokio::time::sleep(PAUSE).await;
            let began = Instant::now();
            let properties = BasicProperties::default().with_delivery_mode(2);
            let publish = publisher.basic_publish(
                "events".into(),
                "direct".into(),
                MANDATORY,
                b"{}",
                properties,
            );
            let confirm = publish.await?;
            next().await?;
            direct_ms.push(began.elapsed().as_secs_f64() * 1e3);
            confirm.await?;

            tokio::time::sleep(PAUSE).await;
            let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                          VALUES ('order', '1', 'created', '{}')";
            outbox.client.batch_execute(insert).await?;
            let committed = Instant::now();
            next().await?;
            relayed_ms.push(committed.elapsed().as_secs_f64() * 1e3);
        }
        direct.push(direct_ms.split_off(cold));
        relayed.push(relayed_ms.split_off(cold));
    }
    relay.stop().await?;
    outbox.none_failed().await?;
    let measure = |what, direct, relayed, more| {
        let target = Target::MoreAtMost(more);
        Measure::new(what, Unit::Milliseconds, Some(direct), relayed, target)
    };
    let p50 = |runs: &[Vec<f64>]| median_of(runs, |run| percentile(run, 0.5));
    let p99 = |runs: &[Vec<f64>]| percentile(&runs.concat(), 0.99);
    Ok(vec![
        measure("idle-latency, p50", p50(&direct), p50(&relayed), 5.0)
            .note("commit to consumer, beside publish to consumer; one at a time, in turns"),
        measure("idle-latency, p99", p99(&direct), p99(&relayed), 25.0).note(format!(
            "of all {} events of each kind",
            direct.concat().len()
        )),
    ])
}

pub async fn relay(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "idle_relay").await?;
    outbox.count_statements().await?;
    stage.queue(Queue::Quorum).await?;
    // It has worked before: marks stand where a burst leaves them.
    outbox
        .fill(&Batch::new(bench.sizes.small, bench.sizes.keys))
        .await?;
    let relay = stage.relay(&outbox, DEFAULTS).await?;
    outbox.until_sent(SOON * 5).await?;
    stage.queued(bench.sizes.small).await?;
    bench.say("idle-relay: waiting for it to tidy up");
    tokio::time::sleep(bench.sizes.idle.max(Duration::from_secs(5))).await;
    let (mut looks, mut shown) = (Vec::new(), String::new());
    for run in 1..=bench.sizes.runs {
        bench.say(&format!("idle-relay: run {run} of {}", bench.sizes.runs));
        outbox.forget_statements().await?;
        let (began, before) = (Instant::now(), relay.cpu_seconds()?);
        let server_before = stage.server_cpu_seconds()?;
        tokio::time::sleep(bench.sizes.idle).await;
        let seconds = began.elapsed().as_secs_f64();
        let statements = outbox.statements().await?;
        looks.push((
            (relay.cpu_seconds()? - before) / seconds * 100.0,
            statements.iter().map(|(_, calls)| calls).sum::<f64>() / seconds,
            (stage.server_cpu_seconds()? - server_before) / seconds * 100.0,
        ));
        shown = frequent(&statements, seconds);
    }
    relay.stop().await?;
    outbox.none_failed().await?;
    let measure =
        |what, unit, used, most| Measure::new(what, unit, None, used, Target::AtMost(most));
    let (cpu, queries) = (
        median_of(&looks, |look| look.0),
        median_of(&looks, |look| look.1),
    );
    Ok(vec![
        measure("idle-relay, part of a core", Unit::Percent, cpu, 1.0).note(format!(
            "PostgreSQL meanwhile, all of it: {:.2} % of a core",
            median_of(&looks, |look| look.2)
        )),
        measure("idle-relay, queries a second", Unit::Number, queries, 10.0).note(shown),
    ])
}
