//! One handler's worth of keys: their messages one after the other, with one database connection. A key whose head
//! waits for a retry keeps its later messages behind it; other keys go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures_util::future::select_all;
use tokio::{sync::mpsc, time::Instant};
use tracing::Instrument;

use super::{
    ConsumerError, Handler, Message,
    burst::Fresh,
    held::{Held, key_of},
    process::{Process, Verdict},
    session::Session,
    trace,
    turns::Suspect,
    worker::Worker,
};

/// Messages of a key that wait: the head was tried before, or is to be tried alone.
struct Parked {
    wait: Wait,
    /// Counted for the head; above 0 once anything was counted for this delivery of it.
    attempts: u32,
    queue: VecDeque<Held>,
}

enum Wait {
    Until(Instant),
    Alone(Suspect),
}

impl Parked {
    fn new(held: Held) -> Self {
        Self {
            wait: Wait::Until(Instant::now()),
            attempts: 0,
            queue: VecDeque::from([held]),
        }
    }

    fn push(&mut self, mut held: Held) {
        held.ordinary = None;
        self.queue.push_back(held);
    }

    /// None of them is tried meanwhile.
    fn waiting(mut self, wait: Wait) -> Self {
        self.wait = wait;
        for held in &mut self.queue {
            held.ordinary = None;
        }
        self
    }

    fn due(&self) -> Option<Instant> {
        match self.wait {
            Wait::Until(due) => Some(due),
            Wait::Alone(_) => None,
        }
    }
}

impl<H: Handler> Worker<H> {
    /// Until `stop`, the end of the deliveries, or a broken channel. What it holds then was not acknowledged, and
    /// comes again.
    pub async fn run(mut self) -> Result<(), ConsumerError> {
        let mut session: Option<Session> = None;
        // Bounded by the prefetch.
        let mut parked: HashMap<String, Parked> = HashMap::new();
        // Delivered before what is still to be received.
        let mut ahead: Option<Held> = None;
        loop {
            let due = parked.values().filter_map(Parked::due).min();
            let held = tokio::select! {
                biased;
                // 1. Nothing new is begun once a stop was asked for.
                () = self.stop.cancelled() => return Ok(()),
                // 2. A key whose time has come, before what is behind it.
                () = until(due) => {
                    let key = parked.iter().find(|(_, p)| p.due() == due).map(|(key, _)| key.clone());
                    if let Some((key, waiting)) = key.and_then(|key| parked.remove_entry(&key)) {
                        self.work_off(&mut session, &mut parked, key, waiting).await?;
                    }
                    continue;
                }
                // 3. A suspect, once nothing else is to be tried.
                key = turn(&parked) => {
                    if let Some(waiting) = parked.remove(&key) {
                        self.work_off(&mut session, &mut parked, key, waiting).await?;
                    }
                    continue;
                }
                // 4. What is new.
                held = next(&mut ahead, &mut self.deliveries) => held,
            };
            let Some(held) = held else { return Ok(()) };
            let key = key_of(&held.message);
            if let Some(waiting) = parked.get_mut(&key) {
                waiting.push(held);
                continue;
            }
            // No code of the service runs beside a suspect.
            self.turns.shared().await;
            let shared = Arc::clone(&self.shared);
            match Process::of(&shared).fresh(&held.message) {
                Some(operation) => {
                    let fresh = Fresh { held, operation };
                    let may = |held: &Held| !parked.contains_key(&key_of(&held.message));
                    let rest = self.burst(&mut session, fresh, due, may).await?;
                    ahead = rest.untried;
                    if let Some((held, verdict)) = rest.judged {
                        let (key, mut waiting) = (key_of(&held.message), Parked::new(held));
                        if let Some(due) = self.settle(&mut session, verdict, &mut waiting).await? {
                            parked.insert(key, waiting.waiting(Wait::Until(due)));
                        }
                    }
                }
                None => {
                    let waiting = Parked::new(held);
                    self.work_off(&mut session, &mut parked, key, waiting)
                        .await?;
                }
            }
        }
    }

    /// Works through a key's messages until one must wait.
    async fn work_off(
        &self,
        session: &mut Option<Session>,
        parked: &mut HashMap<String, Parked>,
        key: String,
        mut waiting: Parked,
    ) -> Result<(), ConsumerError> {
        let mut alone = match &mut waiting.wait {
            Wait::Alone(suspect) => {
                if !suspect.begin() {
                    parked.insert(key, waiting);
                    return Ok(());
                }
                true
            }
            Wait::Until(_) => false,
        };
        while let Some(held) = waiting.queue.front_mut() {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if !alone {
                // In this order: what is counted before a suspect begins keeps it from beginning.
                held.ordinary.get_or_insert_with(|| self.turns.ordinary());
                self.turns.shared().await;
            }
            let message = &held.message;
            let suspicion = if alone || !message.redelivered || waiting.attempts > 0 {
                Ok(None)
            } else {
                self.suspicion(session, message).await
            };
            let verdict = match suspicion {
                Ok(None) => {
                    self.process(session, message, &mut waiting.attempts)
                        .instrument(trace::span(self.shared.inbox.consumer(), message))
                        .await
                }
                Ok(Some(counted)) => {
                    tracing::warn!(
                        consumer = self.shared.inbox.consumer(),
                        message_id = message.message_id(),
                        counted,
                        "the consumer ended while it handled this message, or others beside it; it is tried alone"
                    );
                    let suspect = self.turns.suspect(counted);
                    parked.insert(key, waiting.waiting(Wait::Alone(suspect)));
                    return Ok(());
                }
                Err(error) => Process::of(&self.shared).unknown(error),
            };
            let due = self.settle(session, verdict, &mut waiting).await?;
            alone = false;
            // Its turn is over.
            waiting.wait = Wait::Until(due.unwrap_or_else(Instant::now));
            if let Some(due) = due {
                parked.insert(key, waiting.waiting(Wait::Until(due)));
                return Ok(());
            }
        }
        Ok(())
    }

    async fn suspicion(
        &self,
        session: &mut Option<Session>,
        message: &Message,
    ) -> Result<Option<u32>, String> {
        let client = &self.connected(session).await?.client;
        Process::of(&self.shared).suspicion(client, message).await
    }

    /// Does with the key's first message what was found, and takes it away; or says until when the key must wait.
    async fn settle(
        &self,
        session: &mut Option<Session>,
        verdict: Verdict,
        waiting: &mut Parked,
    ) -> Result<Option<Instant>, ConsumerError> {
        let Some(held) = waiting.queue.front() else {
            return Ok(None);
        };
        let message = &held.message;
        match self.counted(session, verdict).await {
            Verdict::Ack => {}
            Verdict::Later { attempts } => {
                waiting.attempts = attempts;
                if let Some(waits) = &self.waits {
                    waits.cancel();
                }
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
                if message.redelivered
                    && let Ok(session) = self.connected(session).await
                {
                    let process = Process::of(&self.shared);
                    process.given_up(&session.client, message, &reason).await;
                }
            }
            Verdict::Unknown(error) | Verdict::Uncounted { error, .. } => {
                *session = None;
                tracing::warn!(
                    consumer = self.shared.inbox.consumer(),
                    message_id = message.message_id(),
                    error = %error.escape_debug(),
                    "the database was not reached, did not answer, or refused; trying again"
                );
                return Ok(Some(Instant::now() + self.shared.options.backoff(1)));
            }
        }
        held.acknowledge(&self.settled).await?;
        waiting.queue.pop_front();
        waiting.attempts = 0;
        Ok(None)
    }

    async fn process(
        &self,
        session: &mut Option<Session>,
        message: &Message,
        attempts: &mut u32,
    ) -> Verdict {
        match self.connected(session).await {
            Ok(connection) => {
                Process::of(&self.shared)
                    .message(connection, message, attempts)
                    .await
            }
            Err(error) => Process::of(&self.shared).unknown(error),
        }
    }

    /// Counts an attempt whose connection is stuck or gone, on another one.
    async fn counted(&self, session: &mut Option<Session>, verdict: Verdict) -> Verdict {
        let Verdict::Uncounted { key, error, why } = verdict else {
            return verdict;
        };
        *session = None;
        match self.connected(session).await {
            Ok(connection) => {
                Process::of(&self.shared)
                    .failed(&connection.client, &key, error, why)
                    .await
            }
            Err(error) => Process::of(&self.shared).unknown(error),
        }
    }
}

/// What a burst has taken and not tried, before what is behind it.
async fn next(ahead: &mut Option<Held>, deliveries: &mut mpsc::Receiver<Held>) -> Option<Held> {
    match ahead.take() {
        Some(held) => Some(held),
        None => deliveries.recv().await,
    }
}

/// The key whose head is a suspect and has its turn.
async fn turn(parked: &HashMap<String, Parked>) -> String {
    let suspects = parked
        .iter()
        .filter_map(|(key, waiting)| match &waiting.wait {
            Wait::Alone(suspect) => Some(Box::pin(async move {
                suspect.turn().await;
                key.clone()
            })),
            Wait::Until(_) => None,
        });
    let suspects: Vec<_> = suspects.collect();
    if suspects.is_empty() {
        return std::future::pending().await;
    }
    select_all(suspects).await.0
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
