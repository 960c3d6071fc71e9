//! One handler's worth of keys: their messages one after the other, with one database connection. A key whose head
//! waits for a retry keeps its later messages behind it; other keys go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use lapin::{Acker, options::BasicAckOptions};
use tokio::{sync::mpsc, time::Instant};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ConsumerError, Handler, Message,
    dead_letter::DeadLetters,
    process::{Process, Verdict},
    run::{ANSWER, Shared},
    trace,
};

/// A delivery that is not acknowledged yet.
pub(super) struct Held {
    pub message: Message,
    pub acker: Acker,
}

/// Messages of a key that wait; the head was tried before.
struct Parked {
    due: Instant,
    attempts: u32,
    queue: VecDeque<Held>,
}

pub(super) struct Worker<H> {
    pub shared: Arc<Shared<H>>,
    pub dead_letters: Arc<DeadLetters>,
    pub deliveries: mpsc::Receiver<Held>,
    pub stop: CancellationToken,
}

impl<H: Handler> Worker<H> {
    /// Until `stop`, the end of the deliveries, or a broken channel. What it holds then was not acknowledged, and
    /// comes again.
    pub async fn run(mut self) -> Result<(), ConsumerError> {
        let mut client: Option<Client> = None;
        // Bounded by the prefetch.
        let mut parked: HashMap<String, Parked> = HashMap::new();
        loop {
            let due = parked.values().map(|p| p.due).min();
            let (key, mut waiting) = tokio::select! {
                biased;
                // 1. Nothing new is begun once a stop was asked for.
                () = self.stop.cancelled() => return Ok(()),
                // 2. A key whose time has come, before what is behind it.
                () = until(due) => {
                    let key = parked.iter().find(|(_, p)| Some(p.due) == due).map(|(key, _)| key.clone());
                    let Some(waiting) = key.and_then(|key| parked.remove_entry(&key)) else { continue };
                    waiting
                }
                // 3. What is new.
                held = self.deliveries.recv() => {
                    let Some(held) = held else { return Ok(()) };
                    let key = key_of(&held.message);
                    if let Some(waiting) = parked.get_mut(&key) {
                        waiting.queue.push_back(held);
                        continue;
                    }
                    (key, Parked { due: Instant::now(), attempts: 0, queue: VecDeque::from([held]) })
                }
            };
            if let Some(next) = self.work_off(&mut client, &mut waiting).await? {
                waiting.due = next;
                parked.insert(key, waiting);
            }
        }
    }

    /// Works through a key's messages until one must wait; then says until when.
    async fn work_off(
        &self,
        client: &mut Option<Client>,
        waiting: &mut Parked,
    ) -> Result<Option<Instant>, ConsumerError> {
        while let Some(Held { message, acker }) = waiting.queue.front() {
            if self.stop.is_cancelled() {
                return Ok(Some(Instant::now()));
            }
            let verdict = self
                .process(client, message, waiting.attempts)
                .instrument(trace::span(self.shared.inbox.consumer(), message))
                .await;
            match verdict {
                Verdict::Ack => {}
                Verdict::Later { attempts } => {
                    waiting.attempts = attempts;
                    return Ok(Some(Instant::now() + self.shared.options.backoff(attempts)));
                }
                Verdict::DeadLetter(reason) => {
                    tracing::error!(
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        reason = reason.code,
                        attempts = reason.attempts,
                        error = %reason.error.escape_debug(),
                        "given up; it goes to the dead-letter queue"
                    );
                    self.dead_letters.publish(message, &reason).await?;
                }
                Verdict::Unknown(error) | Verdict::Hung { error, .. } => {
                    *client = None;
                    tracing::warn!(
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        error = %error.escape_debug(),
                        "the database was not reached, or did not answer; trying again"
                    );
                    return Ok(Some(Instant::now() + self.shared.options.backoff(1)));
                }
            }
            match tokio::time::timeout(ANSWER, acker.ack(BasicAckOptions::default())).await {
                Ok(acknowledged) => acknowledged.map_err(ConsumerError::Broker)?,
                Err(_) => return Err(ConsumerError::Timeout("acknowledge")),
            };
            waiting.queue.pop_front();
            waiting.attempts = 0;
        }
        Ok(None)
    }

    async fn process(
        &self,
        client: &mut Option<Client>,
        message: &Message,
        attempts: u32,
    ) -> Verdict {
        let process = Process {
            handler: &self.shared.handler,
            inbox: &self.shared.inbox,
            options: &self.shared.options,
        };
        let verdict = match self.connected(client).await {
            Ok(connection) => process.message(connection, message, attempts).await,
            Err(error) => process.unknown(error),
        };
        let Verdict::Hung { key, error } = verdict else {
            return verdict;
        };
        *client = None;
        match self.connected(client).await {
            Ok(connection) => process.failed(connection, &key, error, "timed_out").await,
            Err(error) => process.unknown(error),
        }
    }

    async fn connected<'c>(
        &self,
        client: &'c mut Option<Client>,
    ) -> Result<&'c mut Client, String> {
        let usable = client.take().filter(|client| !client.is_closed());
        let connection = match usable {
            Some(connection) => connection,
            None => self.shared.connect().await?,
        };
        Ok(client.insert(connection))
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What must not overtake each other. Without a key each message is on its own.
pub(super) fn key_of(message: &Message) -> String {
    match message.key() {
        Some(key) => format!("k{key}"),
        None => format!("m{}", message.message_id().unwrap_or_default()),
    }
}
