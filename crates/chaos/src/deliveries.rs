//! A consumer that takes everything, through every fault, and writes it down in the order of arrival.

use std::{collections::HashSet, sync::Arc, time::Duration};

use checker::{Delivered, sha256};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::row::Result;

pub struct Deliveries {
    url: String,
    queue: String,
    seen: Arc<watch::Sender<Vec<Delivered>>>,
    paused: watch::Sender<bool>,
    task: AbortHandle,
}

impl Deliveries {
    pub fn start(url: &str, queue: &str) -> Self {
        let seen: Arc<watch::Sender<Vec<Delivered>>> = Arc::default();
        let (paused, mut pauses) = watch::channel(false);
        let (into, url, queue) = (Arc::clone(&seen), url.to_owned(), queue.to_owned());
        let (from, name) = (url.clone(), queue.clone());
        let task = tokio::spawn(async move {
            while pauses.wait_for(|paused| !*paused).await.is_ok() {
                // A broker that is away is tried again.
                let _ = consume(&from, &name, &into, pauses.clone()).await;
                sleep(Duration::from_millis(200)).await;
            }
        })
        .abort_handle();
        Self {
            url,
            queue,
            seen,
            paused,
            task,
        }
    }

    /// Puts a message behind all that is in the queue; what was there has arrived once it does. Its body is empty.
    pub async fn mark_end(&self) -> Result<Uuid> {
        let id = Uuid::from_u128(rand::random());
        let channel = channel(&self.url).await?;
        publish(&channel, &self.queue, &id.to_string(), "mark", "").await?;
        Ok(id)
    }

    /// Takes nothing while it is paused.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    pub fn len(&self) -> usize {
        self.seen.borrow().len()
    }

    pub fn all(&self) -> Vec<Delivered> {
        self.seen.borrow().clone()
    }

    /// Waits until every id was seen; returns how many are missing at the deadline.
    pub async fn missing(&self, ids: impl IntoIterator<Item = Uuid>, within: Duration) -> usize {
        let mut missing: HashSet<Uuid> = ids.into_iter().collect();
        let (mut changes, mut looked_at) = (self.seen.subscribe(), 0);
        let arrived = changes.wait_for(|seen| {
            for delivery in &seen[looked_at..] {
                missing.remove(&delivery.message_id);
            }
            looked_at = seen.len();
            missing.is_empty()
        });
        let _ = timeout(within, arrived).await.map(drop);
        missing.len()
    }

    /// Waits until so many came; whether they did.
    pub async fn reach(&self, n: usize, within: Duration) -> bool {
        let mut changes = self.seen.subscribe();
        let reached = changes.wait_for(|seen| seen.len() >= n);
        timeout(within, reached).await.is_ok()
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// The exchange `events`, and a durable quorum queue that is bound to all of it.
pub async fn declare(url: &str, queue: &str) -> Result<()> {
    let channel = channel(url).await?;
    exchange(&channel, "events").await?;
    self::queue(&channel, queue).await?;
    bind(&channel, "events", queue).await
}

/// On a connection of its own, which lives as long as it; with confirms.
pub async fn channel(url: &str) -> Result<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let confirms = ConfirmSelectOptions::default();
    channel.confirm_select(confirms).await?;
    Ok(channel)
}

pub async fn exchange(channel: &Channel, name: &str) -> Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let none = FieldTable::default();
    channel
        .exchange_declare(short(name), ExchangeKind::Topic, durable, none)
        .await?;
    Ok(())
}

pub async fn queue(channel: &Channel, name: &str) -> Result<()> {
    let mut quorum = FieldTable::default();
    let kind = AMQPValue::LongString("quorum".into());
    quorum.insert(short("x-queue-type"), kind);
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(short(name), durable, quorum).await?;
    Ok(())
}

/// To everything that is published to the exchange, which is declared too.
pub async fn bind(channel: &Channel, exchange: &str, queue: &str) -> Result<()> {
    self::exchange(channel, exchange).await?;
    bind_key(channel, exchange, queue, "#").await
}

/// To what is published to the exchange with such a routing key.
pub async fn bind_key(channel: &Channel, exchange: &str, queue: &str, key: &str) -> Result<()> {
    let (how, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(short(queue), short(exchange), short(key), how, none)
        .await?;
    Ok(())
}

pub async fn delete(channel: &Channel, queue: &str) -> Result<()> {
    let how = QueueDeleteOptions::default();
    channel.queue_delete(short(queue), how).await?;
    Ok(())
}

/// A broker that accepts and stays silent is left after so long.
const ANSWER: Duration = Duration::from_secs(10);

async fn consume(
    url: &str,
    queue: &str,
    into: &watch::Sender<Vec<Delivered>>,
    mut pauses: watch::Receiver<bool>,
) -> Result<()> {
    let open = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(1000, BasicQosOptions::default()).await?;
        let how = BasicConsumeOptions::default();
        let deliveries = channel
            .basic_consume(short(queue), short(""), how, FieldTable::default())
            .await?;
        Ok::<_, lapin::Error>((connection, deliveries))
    };
    let (connection, mut deliveries) = timeout(ANSWER, open).await??;
    let mut looks = tokio::time::interval(ANSWER);
    loop {
        tokio::select! {
            _ = async { pauses.wait_for(|paused| *paused).await.is_ok() } => {
                // What was prefetched goes back to the queue with the connection.
                connection.close(200, short("paused")).await?;
                return Ok(());
            }
            delivery = deliveries.next() => {
                let delivery = delivery.ok_or("the connection is gone")??;
                into.send_modify(|seen| seen.push(look_at(&delivery)));
                // With the connection's end an acknowledgement may be forgotten, and never answer.
                timeout(ANSWER, delivery.ack(BasicAckOptions::default())).await??;
            }
            _ = looks.tick() => if !connection.status().connected() {
                return Err("the connection is gone".into());
            }
        }
    }
}

fn look_at(delivery: &Delivery) -> Delivered {
    let properties = &delivery.properties;
    let id = properties.message_id().as_ref().map(ToString::to_string);
    let headers = properties.headers().as_ref();
    Delivered {
        message_id: id.and_then(|id| id.parse().ok()).unwrap_or(Uuid::nil()),
        body_sha256: sha256(&delivery.data),
        replay: headers.is_some_and(|headers| headers.inner().contains_key("outbox-replay")),
    }
}

/// Publishes to a queue by its name, confirmed.
pub async fn publish(
    channel: &Channel,
    queue: &str,
    id: &str,
    type_: &str,
    body: &str,
) -> Result<()> {
    let properties = BasicProperties::default()
        .with_message_id(short(id))
        .with_type(short(type_));
    publish_with(channel, queue, properties, body).await
}

pub async fn publish_with(
    channel: &Channel,
    queue: &str,
    properties: BasicProperties,
    body: &str,
) -> Result<()> {
    let properties = properties.with_delivery_mode(2);
    let id = properties.message_id().clone();
    let how = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let publish = channel.basic_publish(short(""), short(queue), how, body.as_bytes(), properties);
    match publish.await?.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("the broker did not take {id:?}: {other:?}").into()),
    }
}

/// What a consumer wrote beside a message that it gave up.
#[derive(Debug)]
pub struct DeadLetter {
    pub reason: String,
    pub attempts: Option<i64>,
    pub error: String,
    /// What of its headers did not fit.
    pub left_out: Option<String>,
    pub body: Vec<u8>,
}

/// Takes so many from a queue; there are no more in it.
pub async fn take(url: &str, queue: &str, n: usize, within: Duration) -> Result<Vec<Delivery>> {
    let channel = channel(url).await?;
    let (how, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel
        .basic_consume(short(queue), short(""), how, none)
        .await?;
    let mark = Uuid::from_u128(rand::random()).to_string();
    let mut found = Vec::new();
    let mut marked = false;
    loop {
        let next = timeout(within, deliveries.next()).await;
        let next = next.map_err(|_| format!("{} of {n} messages came to {queue}", found.len()))?;
        let delivery = next.ok_or("the queue is gone")??;
        timeout(within, delivery.ack(BasicAckOptions::default())).await??;
        let id = delivery.properties.message_id().as_ref();
        if id.is_some_and(|id| id.as_str() == mark) {
            break;
        }
        found.push(delivery);
        if found.len() == n && !marked {
            // What stands before this in the queue is more than so many.
            publish(&channel, queue, &mark, "mark", "").await?;
            marked = true;
        }
    }
    if found.len() > n {
        return Err(format!("{} messages came to {queue}, not {n}", found.len()).into());
    }
    Ok(found)
}

/// Takes so many from a dead-letter queue; there are no more in it.
pub async fn dead_letters(
    url: &str,
    queue: &str,
    n: usize,
    within: Duration,
) -> Result<Vec<DeadLetter>> {
    let letters = take(url, queue, n, within).await?;
    let text = |value: Option<&AMQPValue>| match value {
        Some(AMQPValue::LongString(text)) => Some(text.to_string()),
        _ => None,
    };
    let read = |delivery: &Delivery| {
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        DeadLetter {
            reason: match headers.inner().get("outbox-dead-reason") {
                Some(AMQPValue::LongString(text)) => text.to_string(),
                other => format!("{other:?}"),
            },
            attempts: match headers.inner().get("outbox-dead-attempts") {
                Some(AMQPValue::LongInt(attempts)) => Some(i64::from(*attempts)),
                Some(AMQPValue::LongLongInt(attempts)) => Some(*attempts),
                _ => None,
            },
            error: text(headers.inner().get("outbox-dead-error")).unwrap_or_default(),
            left_out: text(headers.inner().get("outbox-dead-removed")),
            body: delivery.data.clone(),
        }
    };
    Ok(letters.iter().map(read).collect())
}
