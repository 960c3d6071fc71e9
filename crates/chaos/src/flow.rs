//! Traffic through a relay while something breaks, and the judgement at the end.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use checker::Ledger;
use test_support::eventually;
use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::{
    arena::{SOON, since},
    deliveries::Deliveries,
    row::{Outcome, Result, expect, in_time},
    timeline::Timeline,
    traffic::Traffic,
};

/// Within which the database must say how much is pending.
const ANSWER: Duration = Duration::from_secs(5);

pub struct Flow {
    pub traffic: Traffic,
    pub deliveries: Arc<Deliveries>,
    /// As the owner.
    pub database_url: String,
    pub timeline: Arc<Timeline>,
    sampler: AbortHandle,
    recovery: Option<f64>,
    notes: Vec<String>,
}

impl Flow {
    pub fn new(
        traffic: Traffic,
        deliveries: Deliveries,
        database_url: String,
        timeline: Arc<Timeline>,
    ) -> Self {
        let deliveries = Arc::new(deliveries);
        let sampler = tokio::spawn(sample(
            Arc::clone(&deliveries),
            database_url.clone(),
            Arc::clone(&timeline),
        ));
        Self {
            traffic,
            deliveries,
            database_url,
            timeline,
            sampler: sampler.abort_handle(),
            recovery: None,
            notes: Vec::new(),
        }
    }

    /// Waits until it flows: so many more deliveries.
    pub async fn steady(&self, deliveries: usize) -> Result<()> {
        let goal = self.deliveries.len() + deliveries;
        let there = self.deliveries.reach(goal, SOON).await;
        expect(there, || {
            format!("{deliveries} more deliveries within {SOON:?}; it does not flow")
        })
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Waits until everything committed so far has arrived or is dead; the row recovers within `bound`, counted from
    /// `over`, the end of the fault.
    pub async fn recovers(&mut self, over: Instant, bound: Duration) -> Result<()> {
        let due: Vec<Uuid> = self
            .traffic
            .committed()
            .iter()
            .map(|event| event.message_id)
            .collect();
        let missing = self.deliveries.missing(due, SOON).await;
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
        in_time(took <= bound.as_secs_f64(), || {
            format!("recovered after {took:.1} s; {bound:?} are allowed")
        })
    }

    /// Ends the producers, waits until the outbox is at rest, and judges: nothing lost, altered, reordered or marked
    /// without an arrival, and at most so many duplicates.
    pub async fn finish(mut self, duplicates: usize) -> Result<Outcome> {
        let client = connect(&self.database_url).await?;
        self.traffic.finish(&client).await?;
        drained(&client).await;
        let outcome = self.judge(&client).await?;
        let report = &outcome.report;
        expect(report.is_clean(), || report.to_string())?;
        expect(report.duplicates <= duplicates, || {
            format!("{} duplicates; {duplicates} are allowed", report.duplicates)
        })?;
        Ok(outcome)
    }

    /// What the ledger says, whatever it is. The producers must have ended.
    pub async fn judge(&mut self, client: &Client) -> Result<Outcome> {
        let ids = async |sql: &str| -> Result<HashSet<Uuid>> {
            let rows = client.query(sql, &[]).await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        let dead = ids("SELECT message_id FROM outbox.dead").await?;
        let committed = self.traffic.committed();
        let alive = committed
            .iter()
            .map(|event| event.message_id)
            .filter(|id| !dead.contains(id));
        self.deliveries.missing(alive, SOON).await;
        let sent = "SELECT message_id FROM outbox.message WHERE sent_at IS NOT NULL";
        let report = Ledger {
            committed,
            delivered: self.deliveries.all(),
            dead,
            marked_sent: ids(sent).await?,
        }
        .check();
        Ok(Outcome {
            report,
            recovery_seconds: self.recovery,
            notes: std::mem::take(&mut self.notes),
            skipped: None,
        })
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.sampler.abort();
    }
}

/// Nothing is pending: every message is sent or dead.
pub async fn drained(client: &Client) {
    eventually("an empty outbox", SOON, async || {
        (pending(client).await.ok()? == 0).then_some(())
    })
    .await;
}

async fn pending(client: &Client) -> Result<i64> {
    let sql = "SELECT (SELECT count(*) FROM outbox.message m WHERE sent_at IS NULL \
                       AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id)) \
                      + (SELECT count(*) FROM outbox.waiting)";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Deliveries and lag, for the plot. A database that is away leaves a gap.
async fn sample(deliveries: Arc<Deliveries>, url: String, timeline: Arc<Timeline>) {
    let mut client = None;
    loop {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = connect(&url).await.ok();
        }
        let lag = match &client {
            Some(client) => {
                let sql = "SELECT oldest_due_age_seconds FROM outbox.status";
                let row = tokio::time::timeout(Duration::from_secs(1), client.query_one(sql, &[]));
                row.await
                    .ok()
                    .and_then(|row| row.ok()?.try_get::<_, f64>(0).ok())
            }
            None => None,
        };
        timeline.sample(deliveries.len(), lag);
        sleep(Duration::from_millis(250)).await;
    }
}
