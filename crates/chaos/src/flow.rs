//! Traffic through a relay while something breaks, and the judgement at the end.

use std::time::{Duration, Instant};

use checker::Delivered;
use test_support::{Recorder, SOON, commits::pending, drained};
use tokio::time::timeout;
use tokio_postgres::{Client, GenericClient, NoTls};
use uuid::Uuid;

use crate::{
    outcome::{Outcome, Result, expect, since, within},
    pace,
    traffic::Traffic,
};

/// Within which the database must say how much is pending.
const ANSWER: Duration = Duration::from_secs(5);

pub struct Flow {
    pub traffic: Traffic,
    pub deliveries: Recorder<Delivered>,
    /// As the owner.
    pub database_url: String,
    recovery: Option<f64>,
    /// Duplicates that the incidents so far were allowed, and those that they brought.
    allowed: usize,
    repeated: usize,
    incidents: usize,
    /// Messages that the row lets die.
    dead: usize,
    notes: Vec<String>,
}

impl Flow {
    pub fn new(traffic: Traffic, deliveries: Recorder<Delivered>, database_url: String) -> Self {
        Self {
            traffic,
            deliveries,
            database_url,
            recovery: None,
            allowed: 0,
            repeated: 0,
            incidents: 0,
            dead: 0,
            notes: Vec::new(),
        }
    }

    /// Commits what an INSERT of a person's writes, and records it.
    pub async fn commits(&self, client: &impl GenericClient, insert: &str) -> Result<Vec<Uuid>> {
        self.traffic.ledger.insert(client, insert, &[]).await
    }

    /// Records what somebody has committed: the statement returns `RECORDED` of each.
    pub async fn records(&self, client: &Client, sql: &str) -> Result<Vec<Uuid>> {
        self.traffic.ledger.record(client, sql, &[]).await
    }

    /// [`Self::commits`] so many events, each of a key of its own, whose names begin like this.
    pub async fn writes(&self, client: &Client, keys: &str, n: usize) -> Result<Vec<Uuid>> {
        let insert = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'row', '{keys}' || i, 'written', json_build_object('i', i) FROM generate_series(1, {n}) i"
        );
        self.commits(client, &insert).await
    }

    /// An incident ends: everything committed so far arrives within `bound` of its end, and it has brought no more than
    /// so many duplicates.
    pub async fn endured(
        &mut self,
        over: Instant,
        bound: Duration,
        duplicates: usize,
    ) -> Result<()> {
        let before = self.recovery;
        self.recovers(over, bound).await?;
        self.recovery = [before, self.recovery]
            .into_iter()
            .flatten()
            .reduce(f64::max);
        let all = self.duplicates().await?;
        let more = all.saturating_sub(self.repeated);
        (self.repeated, self.allowed) = (all, self.allowed + duplicates);
        self.incidents += 1;
        expect(more <= duplicates, || {
            let n = self.incidents;
            format!("incident {n} brought {more} duplicates; {duplicates} are allowed")
        })
    }

    /// Deliveries that were not a message's first, once all that is in the queue has arrived.
    pub async fn duplicates(&self) -> Result<usize> {
        self.traffic.ledger.duplicates(&self.deliveries).await
    }

    /// [`Self::finish`], with the duplicates that the incidents were allowed.
    pub async fn end(self) -> Result<Outcome> {
        let allowed = self.allowed;
        self.finish(allowed).await
    }

    /// Waits until it flows: so many more deliveries.
    pub async fn steady(&self, deliveries: usize) -> Result<()> {
        let goal = self.deliveries.len() + deliveries;
        let there = self.deliveries.reach(goal).await;
        expect(there, || {
            format!("{deliveries} more deliveries within {SOON:?}; it does not flow")
        })
    }

    /// Something was delivered, now or before.
    pub async fn begun(&self) -> Result<()> {
        let there = self.deliveries.reach(1).await;
        expect(there, || format!("no delivery within {SOON:?}"))
    }

    /// So many messages are meant to be dead at the end; else there must be none.
    pub fn lets_die(&mut self, messages: usize) {
        self.dead = messages;
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Waits until everything committed so far has arrived or is dead; the row recovers within `bound`, counted from
    /// `over`, the end of the fault.
    pub async fn recovers(&mut self, over: Instant, bound: Duration) -> Result<()> {
        let missing = self.deliveries.missing(self.traffic.ledger.ids()).await;
        let took = since(over);
        self.recovery = Some(took);
        if missing > 0 {
            let ask = async { pending(&connect(&self.database_url).await?).await };
            let pending = match timeout(ANSWER, ask).await {
                Ok(Ok(n)) => format!("{n} are pending in the outbox"),
                Ok(Err(error)) => format!("how many are pending: {error}"),
                Err(_) => "the database does not answer".to_owned(),
            };
            return Err(format!(
                "{missing} messages have not arrived {took:.1} s after the fault; {pending}"
            )
            .into());
        }
        let slowness = pace::slowness(over);
        let took = Duration::from_secs_f64(took);
        within(took, bound, slowness, || "recovered late".to_owned())
    }

    /// The fault ends now: [`Self::recovers`], then [`Self::finish`].
    pub async fn heals(mut self, bound: Duration, duplicates: usize) -> Result<Outcome> {
        let over = Instant::now();
        self.recovers(over, bound).await?;
        self.finish(duplicates).await
    }

    /// Ends the producers, waits until the outbox is at rest, and judges: nothing lost, altered, reordered or marked
    /// without an arrival, dead without a reason, and at most so many duplicates.
    pub async fn finish(mut self, duplicates: usize) -> Result<Outcome> {
        let client = connect(&self.database_url).await?;
        self.traffic.finish(&client).await?;
        drained(&client).await;
        let outcome = self.judge(&client).await?;
        let report = &outcome.report;
        expect(report.is_clean(), || report.to_string())?;
        expect(report.dead == self.dead, || {
            format!("{} are dead; {} are meant to be", report.dead, self.dead)
        })?;
        expect(report.duplicates <= duplicates, || {
            format!("{} duplicates; {duplicates} are allowed", report.duplicates)
        })?;
        Ok(outcome)
    }

    /// What the ledger says, whatever it is. The producers must have ended.
    pub async fn judge(&mut self, client: &Client) -> Result<Outcome> {
        let report = self.traffic.ledger.judge(client, &self.deliveries).await?;
        Ok(Outcome {
            report,
            recovery_seconds: self.recovery,
            notes: std::mem::take(&mut self.notes),
            skipped: None,
        })
    }
}

pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
