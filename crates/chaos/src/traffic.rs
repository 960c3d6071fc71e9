//! Producers that commit at a steady rate, through every fault, and write down what was committed.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use checker::{Committed, sha256};
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::row::Result;

#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub producers: usize,
    /// Transactions of each producer a second.
    pub per_second: u32,
    /// Events of each transaction.
    pub events: usize,
    /// Keys of each producer. No two producers share one: who writes a key concurrently has no order to keep.
    pub keys: usize,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            producers: 2,
            per_second: 25,
            events: 4,
            keys: 10,
        }
    }
}

/// Within which a statement of a producer must be answered.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Written {
    committed: Vec<Committed>,
    /// The commit was not answered; the database knows.
    unknown: Vec<Committed>,
    /// Committed, and deleted by a person before it was sent.
    withdrawn: HashSet<Uuid>,
}

/// Which names the keys have. A person who lets positions begin anew begins a new one: of a key's events, an earlier one
/// has the lower position.
pub type Generation = usize;

pub struct Traffic {
    written: Arc<Mutex<Written>>,
    closing: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    generation: Arc<RwLock<Generation>>,
    producers: JoinSet<()>,
}

impl Traffic {
    pub fn start(url: &str, rate: Rate) -> Self {
        let mut traffic = Self {
            written: Arc::default(),
            closing: Arc::default(),
            paused: Arc::default(),
            generation: Arc::default(),
            producers: JoinSet::new(),
        };
        for n in 0..rate.producers {
            let producer = Producer {
                url: url.to_owned(),
                rate,
                n,
                written: Arc::clone(&traffic.written),
                closing: Arc::clone(&traffic.closing),
                paused: Arc::clone(&traffic.paused),
                generation: Arc::clone(&traffic.generation),
            };
            traffic.producers.spawn(producer.run());
        }
        traffic
    }

    /// What is known to be committed.
    pub fn committed(&self) -> Vec<Committed> {
        let written = self.lock();
        let stands = |event: &&Committed| !written.withdrawn.contains(&event.message_id);
        written.committed.iter().filter(stands).cloned().collect()
    }

    /// What may be committed: nobody answered. Of those, `finish` keeps what the database has.
    pub fn unanswered(&self) -> Vec<Committed> {
        self.lock().unknown.clone()
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Between two transactions of every producer, until the guard is dropped.
    pub async fn standstill(&self) -> OwnedRwLockWriteGuard<Generation> {
        Arc::clone(&self.generation).write_owned().await
    }

    /// A person deletes them before they were sent: they must not be delivered.
    pub fn withdraw(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.lock().withdrawn.extend(ids);
    }

    /// Adds what a row wrote by itself.
    pub fn add(&self, committed: impl IntoIterator<Item = Committed>) {
        self.lock().committed.extend(committed);
    }

    /// Ends the producers, and asks the database about the commits that nobody answered.
    pub async fn finish(&mut self, client: &Client) -> Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        while self.producers.join_next().await.is_some() {}
        let unknown = std::mem::take(&mut self.lock().unknown);
        let ids: Vec<Uuid> = unknown.iter().map(|event| event.message_id).collect();
        let sql = "SELECT message_id FROM outbox.message WHERE message_id = ANY ($1)";
        let rows = client.query(sql, &[&ids]).await?;
        let there: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        let stand = unknown
            .into_iter()
            .filter(|event| there.contains(&event.message_id));
        self.lock().committed.extend(stand);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Producer {
    url: String,
    rate: Rate,
    n: usize,
    written: Arc<Mutex<Written>>,
    closing: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    generation: Arc<RwLock<Generation>>,
}

impl Producer {
    async fn run(self) {
        let mut ticks = interval(Duration::from_secs(1) / self.rate.per_second.max(1));
        // What a fault held up is not made up for: the rate stays what it is.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client: Option<Client> = None;
        let mut n = 0_usize;
        while !self.closing.load(Ordering::Relaxed) {
            ticks.tick().await;
            if self.paused.load(Ordering::Relaxed) {
                continue;
            }
            let Some(connected) = &client else {
                client = connect(&self.url).await;
                if client.is_none() {
                    sleep(Duration::from_millis(100)).await;
                }
                continue;
            };
            n += 1;
            let generation = self.generation.read().await;
            if timeout(ANSWER, self.transaction(connected, *generation, n))
                .await
                .is_ok_and(|ended| ended.is_ok())
            {
                continue;
            }
            client = None;
        }
    }

    /// One transaction of some events, all of one key.
    async fn transaction(&self, client: &Client, generation: Generation, n: usize) -> Result<()> {
        let key = format!("{}-{}-{generation}", self.n, n % self.rate.keys);
        client.batch_execute("BEGIN").await?;
        let mut events = Vec::with_capacity(self.rate.events);
        for i in 0..self.rate.events {
            let body = format!(r#"{{"producer":{},"n":{n},"i":{i}}}"#, self.n);
            let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                       VALUES ('order', $1, 'changed', $2::text::json) RETURNING message_id, id";
            let row = client.query_one(sql, &[&key, &body]).await?;
            events.push(Committed {
                message_id: row.get(0),
                key: Some(key.clone()),
                position: row.get(1),
                body_sha256: sha256(body.as_bytes()),
            });
        }
        // Written down before it is asked for: whatever becomes of the answer, nothing that stands is forgotten.
        let asked = events.clone();
        self.lock().unknown.extend(asked);
        client.batch_execute("COMMIT").await?;
        let mut written = self.lock();
        let first = events.first().map(|event| event.message_id);
        if let Some(at) = written
            .unknown
            .iter()
            .position(|event| Some(event.message_id) == first)
        {
            let end = at + events.len();
            written.unknown.drain(at..end);
        }
        written.committed.extend(events);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect(url: &str) -> Option<Client> {
    let connected = timeout(ANSWER, tokio_postgres::connect(url, NoTls)).await;
    let (client, connection) = connected.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}
