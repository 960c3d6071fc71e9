//! One handler's worth of keys: their messages one after the other, with one database connection. A key whose head
//! waits for a retry keeps its later messages behind it; other keys go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation,
    message::Delivery,
    options::{BasicAckOptions, BasicPublishOptions},
    types::{AMQPValue, ShortString},
};
use rand::RngExt;
use tokio::{sync::mpsc, time::Instant};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ConsumerError, Handler, Message,
    process::{Verdict, process},
    run::Shared,
};

/// Messages of a key that wait; the head was tried before.
struct Parked {
    due: Instant,
    attempts: u32,
    queue: VecDeque<Delivery>,
}

pub(super) struct Worker<H> {
    pub shared: Arc<Shared<H>>,
    pub channel: Channel,
    pub deliveries: mpsc::Receiver<Delivery>,
    pub stop: CancellationToken,
}

impl<H: Handler> Worker<H> {
    /// Until `stop`, the end of the deliveries, or a broken channel. What it holds then was not acknowledged, and
    /// comes again.
    pub async fn run(mut self) -> Result<(), ConsumerError> {
        let mut client: Option<Client> = None;
        let mut parked: HashMap<String, Parked> = HashMap::new();
        loop {
            let due = parked.values().map(|p| p.due).min();
            tokio::select! {
                biased;
                // 1. Nothing new is begun once a stop was asked for.
                () = self.stop.cancelled() => return Ok(()),
                // 2. A key whose time has come, before what is behind it.
                () = until(due) => {
                    let key = parked.iter().find(|(_, p)| Some(p.due) == due).map(|(key, _)| key.clone());
                    let Some(mut waiting) = key.as_ref().and_then(|key| parked.remove(key)) else { continue };
                    if let (Some(key), Some(next)) = (key, self.work_off(&mut client, &mut waiting).await?) {
                        waiting.due = next;
                        parked.insert(key, waiting);
                    }
                }
                // 3. What is new.
                delivery = self.deliveries.recv() => {
                    let Some(delivery) = delivery else { return Ok(()) };
                    let key = key_of(&delivery);
                    if let Some(waiting) = parked.get_mut(&key) {
                        waiting.queue.push_back(delivery);
                        continue;
                    }
                    let mut one = Parked { due: Instant::now(), attempts: 0, queue: VecDeque::from([delivery]) };
                    if let Some(next) = self.work_off(&mut client, &mut one).await? {
                        one.due = next;
                        parked.insert(key, one);
                    }
                }
            }
        }
    }

    /// Works through a key's messages until one must wait; then says until when.
    async fn work_off(
        &self,
        client: &mut Option<Client>,
        waiting: &mut Parked,
    ) -> Result<Option<Instant>, ConsumerError> {
        let options = &self.shared.options;
        while let Some(delivery) = waiting.queue.front() {
            if self.stop.is_cancelled() {
                return Ok(Some(Instant::now()));
            }
            let message = Message::new(delivery);
            let verdict = match self.connected(client).await {
                Ok(connection) => {
                    let span = tracing::info_span!(
                        "consume",
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        traceparent = message.traceparent(),
                    );
                    let shared = &self.shared;
                    process(
                        &shared.handler,
                        &shared.inbox,
                        options,
                        connection,
                        &message,
                        waiting.attempts,
                    )
                    .instrument(span)
                    .await
                }
                Err(error) => Verdict::Unknown(error),
            };
            match verdict {
                Verdict::Ack => {}
                Verdict::Later { attempts } => {
                    waiting.attempts = attempts;
                    return Ok(Some(Instant::now() + self.backoff(attempts)));
                }
                Verdict::DeadLetter {
                    reason,
                    attempts,
                    error,
                } => {
                    tracing::error!(
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        reason,
                        attempts,
                        error = %error.escape_debug(),
                        "given up; it goes to the dead-letter queue"
                    );
                    self.dead_letter(&message, reason, attempts, &error).await?;
                }
                Verdict::Unknown(error) => {
                    *client = None;
                    tracing::warn!(
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        error = %error.escape_debug(),
                        "the database was not reached, or did not answer; trying again"
                    );
                    return Ok(Some(Instant::now() + self.backoff(1)));
                }
            }
            delivery
                .ack(BasicAckOptions::default())
                .await
                .map_err(ConsumerError::Broker)?;
            waiting.queue.pop_front();
            waiting.attempts = 0;
        }
        Ok(None)
    }

    async fn connected<'c>(
        &self,
        client: &'c mut Option<Client>,
    ) -> Result<&'c mut Client, String> {
        let usable = client.take().filter(|client| !client.is_closed());
        let connection = match usable {
            Some(connection) => connection,
            None => (self.shared.connect)().await.map_err(|e| e.to_string())?,
        };
        Ok(client.insert(connection))
    }

    /// Full jitter: what failed together does not come back together.
    fn backoff(&self, attempts: u32) -> Duration {
        let options = &self.shared.options;
        let doubled = options
            .backoff_initial
            .checked_mul(1 << attempts.saturating_sub(1).min(31));
        let ceiling = doubled
            .unwrap_or(options.backoff_max)
            .min(options.backoff_max);
        ceiling.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    /// Confirmed before the original is acknowledged: a crash between the two makes two copies, and loses none.
    async fn dead_letter(
        &self,
        message: &Message,
        reason: &'static str,
        attempts: u32,
        error: &str,
    ) -> Result<(), ConsumerError> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let queue = &self.shared.options.dead_letter_queue;
        let name = ShortString::try_new(queue.as_str()).unwrap_or_default();
        let properties = marked(message.properties(), reason, attempts, error);
        let publish = async {
            let confirm = self.channel.basic_publish(
                ShortString::default(),
                name,
                options,
                &message.body,
                properties,
            );
            confirm.await?.await
        };
        let confirmation = tokio::time::timeout(Duration::from_secs(30), publish)
            .await
            .map_err(|_| ConsumerError::DeadLetter {
                queue: queue.clone(),
                why: "no confirm within 30 s",
            })?
            .map_err(ConsumerError::Broker)?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(ConsumerError::DeadLetter {
                queue: queue.clone(),
                why: "there is no such queue",
            }),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(ConsumerError::DeadLetter {
                queue: queue.clone(),
                why: "the broker did not take it",
            }),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What must not overtake each other. Without a key each message is on its own.
pub(super) fn key_of(delivery: &Delivery) -> String {
    let message = Message::new(delivery);
    match message.key() {
        Some(key) => format!("k{key}"),
        None => format!("m{}", message.message_id().unwrap_or_default()),
    }
}

fn marked(
    properties: &BasicProperties,
    reason: &str,
    attempts: u32,
    error: &str,
) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    let error: String = error.chars().take(1000).collect();
    headers.insert(
        "outbox-dead-reason".into(),
        AMQPValue::LongString(reason.into()),
    );
    headers.insert(
        "outbox-dead-attempts".into(),
        AMQPValue::LongLongInt(i64::from(attempts)),
    );
    headers.insert(
        "outbox-dead-error".into(),
        AMQPValue::LongString(error.into()),
    );
    properties
        .clone()
        .with_delivery_mode(2)
        .with_headers(headers)
}
