//! Producers that commit at a steady rate, through every fault, and write down what was committed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use checker::{Committed, sha256};
use test_support::{Commits, SOON};
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
        let ended = async { while self.producers.join_next().await.is_some() {} };
        // The database is there: whatever was asked of it comes to an end.
        timeout(SOON, ended)
            .await
            .map_err(|_| format!("a producer's COMMIT is open after {SOON:?}"))?;
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

/// A connection, and the process of the server behind it.
struct Session {
    client: Client,
    backend: Backend,
}

/// Its process id may be given again, but not at the same time.
#[derive(Debug, Clone)]
struct Backend {
    pid: i32,
    since: String,
}

impl Producer {
    async fn run(self) {
        let mut ticks = interval(Duration::from_secs(1) / self.rate.per_second.max(1));
        // What a fault held up is not made up for: the rate stays what it is.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session: Option<Session> = None;
        // Was asked to commit, and has not answered.
        let mut in_doubt: Option<Backend> = None;
        let mut n = 0_usize;
        while in_doubt.is_some() || !self.closing.load(Ordering::Relaxed) {
            ticks.tick().await;
            if in_doubt.is_none() && self.paused.load(Ordering::Relaxed) {
                continue;
            }
            let Some(connected) = &session else {
                session = connect(&self.url).await;
                if session.is_none() {
                    sleep(Duration::from_millis(100)).await;
                }
                continue;
            };
            if let Some(old) = &in_doubt {
                // It may still commit: later events of its key would have been committed before.
                match gone(&connected.client, old).await {
                    Some(true) => in_doubt = None,
                    Some(false) => {}
                    None => session = None,
                }
                continue;
            }
            n += 1;
            let generation = self.generation.read().await;
            let asked = AtomicBool::new(false);
            let transaction = self.transaction(&connected.client, *generation, n, &asked);
            if timeout(ANSWER, transaction)
                .await
                .is_ok_and(|ended| ended.is_ok())
            {
                continue;
            }
            in_doubt = asked.into_inner().then(|| connected.backend.clone());
            session = None;
        }
    }

    /// One transaction of some events, all of one key; `asked` says whether its COMMIT was.
    async fn transaction(
        &self,
        client: &Client,
        generation: Generation,
        n: usize,
        asked: &AtomicBool,
    ) -> Result<()> {
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
        asked.store(true, Ordering::Relaxed);
        client.batch_execute("COMMIT").await?;
        self.ledger.answered(events);
        Ok(())
    }
}

async fn connect(url: &str) -> Option<Session> {
    let connected = timeout(ANSWER, tokio_postgres::connect(url, NoTls)).await;
    let (client, connection) = connected.ok()?.ok()?;
    tokio::spawn(connection);
    let sql = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = timeout(ANSWER, client.query_one(sql, &[])).await;
    let row = row.ok()?.ok()?;
    let backend = Backend {
        pid: row.get(0),
        since: row.get(1),
    };
    Some(Session { client, backend })
}

/// Whether it has ended, and so whatever it was asked has, too; `None` when the server does not answer. On a server that
/// took over from its own, it never was.
async fn gone(client: &Client, old: &Backend) -> Option<bool> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
    let row = timeout(ANSWER, client.query_one(sql, &[&old.pid, &old.since])).await;
    let left: i64 = row.ok()?.ok()?.get(0);
    Some(left == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_support::{Plan, Postgres, eventually};

    /// The first COMMIT takes longer than its producer waits.
    const SLOW: &str = "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql \
                        AS 'BEGIN PERFORM pg_sleep(8); RETURN NULL; END'; \
                        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON outbox.message DEFERRABLE INITIALLY DEFERRED \
                        FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION public.slow()";

    #[tokio::test]
    async fn nothing_is_committed_while_an_unanswered_commit_may_still_come() {
        let plan = Plan {
            repository: concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into(),
            owner: "postgres",
            logins: "",
        };
        let postgres = Postgres::start().await.unwrap();
        plan.prepare(&postgres, "app").await.unwrap();
        postgres.execute("app", SLOW).await.unwrap();
        let rate = Rate {
            producers: 1,
            keys: 1,
            ..Rate::default()
        };
        let mut traffic = Traffic::start(&postgres.url("app"), rate);
        let client = postgres.connect("app").await.unwrap();
        let first: i64 = eventually("the first event to be committed", SOON, async || {
            let sql = "SELECT min(id) FROM outbox.message";
            client
                .query_one(sql, &[])
                .await
                .ok()?
                .get::<_, Option<i64>>(0)
        })
        .await;
        traffic.finish(&client).await.unwrap();
        assert_eq!(first, 1, "a later one was committed before it");
        let committed = traffic.ledger.committed();
        assert!(committed.iter().any(|event| event.position == 1));
    }
}
