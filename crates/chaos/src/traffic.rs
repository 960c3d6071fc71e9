//! Producers that commit at a steady rate, through every fault, and write down what was committed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use checker::{Committed, sha256};
use test_support::Commits;
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::{Client, NoTls};

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

/// Which names the keys have. A person who lets positions begin anew begins a new one: of a key's events, an earlier one
/// has the lower position.
pub type Generation = usize;

pub struct Traffic {
    pub ledger: Arc<Commits>,
    closing: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    generation: Arc<RwLock<Generation>>,
    producers: JoinSet<()>,
}

impl Traffic {
    pub fn start(url: &str, rate: Rate) -> Self {
        let mut traffic = Self {
            ledger: Arc::default(),
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
                ledger: Arc::clone(&traffic.ledger),
                closing: Arc::clone(&traffic.closing),
                paused: Arc::clone(&traffic.paused),
                generation: Arc::clone(&traffic.generation),
            };
            traffic.producers.spawn(producer.run());
        }
        traffic
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Between two transactions of every producer, until the guard is dropped.
    pub async fn standstill(&self) -> OwnedRwLockWriteGuard<Generation> {
        Arc::clone(&self.generation).write_owned().await
    }

    /// Ends the producers, and asks the database about the commits that nobody answered.
    pub async fn finish(&mut self, client: &Client) -> Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        while self.producers.join_next().await.is_some() {}
        self.ledger.resolve(client).await
    }
}

struct Producer {
    url: String,
    rate: Rate,
    n: usize,
    ledger: Arc<Commits>,
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
        self.ledger.asked(&events);
        client.batch_execute("COMMIT").await?;
        self.ledger.answered(events);
        Ok(())
    }
}

async fn connect(url: &str) -> Option<Client> {
    let connected = timeout(ANSWER, tokio_postgres::connect(url, NoTls)).await;
    let (client, connection) = connected.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}
