//! The ceiling: the same lapin, the same messages, mandatory and confirmed, and nothing else.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use futures_util::future::join_all;
use lapin::{
    BasicProperties, Channel, PublisherConfirm,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use test_support::{Result, probe::cpu_seconds};
use tokio::task::JoinSet;

use crate::{
    budget::{Budget, Meter},
    outbox,
    stage::{Queue, Stage},
};

pub const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

/// How a raw publisher is tuned.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// One connection each, like the relay's workers.
    pub channels: usize,
    /// Publishes of a channel that are not confirmed yet.
    pub window: usize,
}

const fn tuned(channels: usize, window: usize) -> Tuning {
    Tuning { channels, window }
}

pub const SWEEP: &[Tuning] = &[
    tuned(1, 500),
    tuned(1, 2000),
    tuned(2, 500),
    tuned(2, 2000),
    tuned(4, 500),
    tuned(4, 2000),
];
/// A body of a megabyte fills a socket alone.
pub const LARGE_SWEEP: &[Tuning] = &[
    tuned(1, 16),
    tuned(2, 16),
    tuned(4, 4),
    tuned(4, 16),
    tuned(4, 64),
    tuned(4, 256),
];
pub const ONE_AT_A_TIME: Tuning = tuned(1, 1);
pub const PIPELINED: &[Tuning] = &[tuned(1, 100), tuned(1, 500), tuned(1, 2000)];

pub struct Published {
    pub per_second: f64,
    /// User and system time of the publisher, for each message.
    pub cpu_us: f64,
    pub budget: Budget,
}

/// The best of a sweep, each with a part of the messages.
pub async fn best_tuning(
    stage: &Stage,
    queue: Queue,
    n: usize,
    body: usize,
    sweep: &[Tuning],
) -> Result<Tuning> {
    let mut best = (ONE_AT_A_TIME, 0.0);
    for tuning in sweep {
        let rate = publish(stage, queue, n / 4, body, *tuning)
            .await?
            .per_second;
        if rate > best.1 {
            best = (*tuning, rate);
        }
    }
    Ok(best.0)
}

/// To an empty queue, which then holds all of them.
pub async fn publish(
    stage: &Stage,
    queue: Queue,
    n: usize,
    body: usize,
    tuning: Tuning,
) -> Result<Published> {
    stage.queue(queue).await?;
    let mut channels = Vec::new();
    for _ in 0..tuning.channels {
        channels.push(stage.channel().await?);
    }
    let body: Arc<[u8]> = outbox::body(body).into();
    let own = std::process::id();
    let cpu_before = cpu_seconds(own)?;
    let meter = Meter::start(stage)?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (i, channel) in channels.into_iter().enumerate() {
        let share = n / tuning.channels + usize::from(i < n % tuning.channels);
        tasks.spawn(publish_share(
            channel,
            share,
            tuning.window,
            Arc::clone(&body),
        ));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let per_second = n as f64 / began.elapsed().as_secs_f64();
    let cpu_us = (cpu_seconds(own)? - cpu_before) * 1e6 / n as f64;
    let budget = meter.stop(stage, n)?;
    stage.queued(n).await?;
    Ok(Published {
        per_second,
        cpu_us,
        budget,
    })
}

async fn publish_share(channel: Channel, n: usize, window: usize, body: Arc<[u8]>) -> Result<()> {
    /// Publishes polled together: awaited one by one, each costs a switch of threads.
    const TOGETHER: usize = 100;
    let mut open: VecDeque<PublisherConfirm> = VecDeque::new();
    let mut sent = 0;
    while sent < n {
        let together = TOGETHER.min(n - sent).min(window);
        while open.len() + together > window {
            confirmed(open.pop_front()).await?;
        }
        let publishes = (0..together).map(|i| {
            let routing_key: ShortString = "order.created".into();
            let properties = properties(sent + i);
            channel.basic_publish("events".into(), routing_key, MANDATORY, &body, properties)
        });
        for confirm in join_all(publishes).await {
            open.push_back(confirm?);
        }
        sent += together;
    }
    while !open.is_empty() {
        confirmed(open.pop_front()).await?;
    }
    Ok(())
}

async fn confirmed(confirm: Option<PublisherConfirm>) -> Result<()> {
    let Some(confirm) = confirm else {
        return Ok(());
    };
    if confirm.await?.is_ack() {
        Ok(())
    } else {
        Err("a raw publish was not acked".into())
    }
}

/// As the relay sets them.
pub fn properties(n: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    headers.insert(
        "traceparent".into(),
        text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    );
    headers.insert("outbox-key".into(), text(&format!("order:{}", n % 10_000)));
    headers.insert(
        "outbox-position".into(),
        AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(0)),
    );
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(uuid::Uuid::new_v4().to_string().into())
        .with_type("created".into())
        .with_content_type("application/json".into())
        .with_timestamp(1_700_000_000)
        .with_app_id("outboxd".into())
        .with_headers(headers)
}
