//! The ceiling: the same lapin, the same messages, mandatory and confirmed, and nothing else.

use std::{collections::VecDeque, time::Instant};

use futures_util::future::join_all;
use lapin::{
    BasicProperties, Channel, PublisherConfirm,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::task::JoinSet;

use super::stage::Stage;
use crate::Result;

/// How a raw publisher is tuned.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// One connection each, like the relay's workers.
    pub channels: usize,
    /// Publishes of a channel that are not confirmed yet.
    pub window: usize,
}

pub const SWEEP: [Tuning; 6] = [
    Tuning {
        channels: 1,
        window: 500,
    },
    Tuning {
        channels: 1,
        window: 2000,
    },
    Tuning {
        channels: 2,
        window: 500,
    },
    Tuning {
        channels: 2,
        window: 2000,
    },
    Tuning {
        channels: 4,
        window: 500,
    },
    Tuning {
        channels: 4,
        window: 2000,
    },
];

/// Messages a second.
pub async fn publish(stage: &Stage, n: usize, tuning: Tuning) -> Result<f64> {
    let mut channels = Vec::new();
    for _ in 0..tuning.channels {
        channels.push(stage.channel().await?);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (i, channel) in channels.into_iter().enumerate() {
        let share = n / tuning.channels + usize::from(i < n % tuning.channels);
        tasks.spawn(publish_share(channel, share, tuning.window));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(n as f64 / began.elapsed().as_secs_f64())
}

async fn publish_share(channel: Channel, n: usize, window: usize) -> Result<()> {
    /// Publishes polled together: awaited one by one, each costs a switch of threads.
    const TOGETHER: usize = 100;
    let body = format!("{{\"id\":{:>12},\"pad\":\"{}\"}}", 1, "x".repeat(484)).into_bytes();
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut open: VecDeque<PublisherConfirm> = VecDeque::new();
    let mut sent = 0;
    while sent < n {
        let together = TOGETHER.min(n - sent);
        let publishes = (0..together).map(|i| {
            let routing_key: ShortString = "order.created".into();
            channel.basic_publish(
                "events".into(),
                routing_key,
                options,
                &body,
                properties(sent + i),
            )
        });
        for confirm in join_all(publishes).await {
            open.push_back(confirm?);
        }
        sent += together;
        while open.len() > window {
            confirmed(open.pop_front()).await?;
        }
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
fn properties(n: usize) -> BasicProperties {
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
