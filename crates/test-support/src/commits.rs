//! The ledger: what the producers of a test committed, to be compared with what arrived.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use checker::{Committed, Ledger, Report, sha256};
use tokio_postgres::{Client, GenericClient, types::ToSql};
use uuid::Uuid;

use crate::{Record, Recorder, Result, SOON, nearer};

/// The columns of `outbox.message` that the ledger keeps.
pub const RECORDED: &str =
    "message_id, aggregate_id, id, coalesce(binary_payload, convert_to(payload::text, 'UTF8'))";

/// Messages that are neither sent nor dead. Those that wait count twice, which does not matter for a comparison with zero.
const PENDING: &str = "SELECT (SELECT count(*) FROM outbox.message m WHERE sent_at IS NULL \
                               AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id)) \
                              + (SELECT count(*) FROM outbox.waiting)";

#[derive(Default)]
pub struct Commits(Mutex<Written>);

#[derive(Default)]
struct Written {
    committed: Vec<Committed>,
    /// The commit was not answered; the database knows.
    unanswered: Vec<Committed>,
    /// Committed, and deleted by a person before they were sent.
    withdrawn: HashSet<Uuid>,
}

impl Commits {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, committed: impl IntoIterator<Item = Committed>) {
        self.lock().committed.extend(committed);
    }

    /// Runs an INSERT into `outbox.message`, and records what it wrote. Returns the ids.
    pub async fn insert(
        &self,
        client: &impl GenericClient,
        insert: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Uuid>> {
        let sql = format!("{insert} RETURNING {RECORDED}");
        self.record(client, &sql, parameters).await
    }

    /// Records messages that somebody has committed: the statement returns [`RECORDED`] of each.
    pub async fn record(
        &self,
        client: &impl GenericClient,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Uuid>> {
        let rows = client.query(sql, parameters).await;
        let rows = rows.map_err(|error| format!("{sql}: {error:?}"))?;
        self.add(rows.iter().map(|row| Committed {
            message_id: row.get(0),
            key: row.get(1),
            position: row.get(2),
            body_sha256: sha256(row.get(3)),
        }));
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Records events whose COMMIT is about to be asked for: without an answer, nothing that stands may be forgotten.
    pub fn asked(&self, events: &[Committed]) {
        self.lock().unanswered.extend_from_slice(events);
    }

    /// The COMMIT of these events was answered.
    pub fn answered(&self, events: Vec<Committed>) {
        let ids = ids(&events);
        let mut written = self.lock();
        let unknown = |event: &Committed| !ids.contains(&event.message_id);
        written.unanswered.retain(unknown);
        written.committed.extend(events);
    }

    /// Keeps of the unanswered commits those that the database has.
    pub async fn resolve(&self, client: &Client) -> Result<()> {
        let unanswered = std::mem::take(&mut self.lock().unanswered);
        let asked: Vec<Uuid> = unanswered.iter().map(|event| event.message_id).collect();
        let sql = "SELECT message_id FROM outbox.message WHERE message_id = ANY ($1)";
        let rows = client.query(sql, &[&asked]).await?;
        let there: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        self.add(
            unanswered
                .into_iter()
                .filter(|event| there.contains(&event.message_id)),
        );
        Ok(())
    }

    /// A person deletes these messages before they are sent: they must not be delivered.
    pub fn withdraw(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.lock().withdrawn.extend(ids);
    }

    /// A person corrects what was committed.
    pub fn correct(&self, change: impl FnMut(&mut Committed)) {
        self.lock().committed.iter_mut().for_each(change);
    }

    /// What is known to be committed, in the order of the commits.
    pub fn committed(&self) -> Vec<Committed> {
        let written = self.lock();
        let stands = |event: &&Committed| !written.withdrawn.contains(&event.message_id);
        written.committed.iter().filter(stands).cloned().collect()
    }

    /// What may be committed: nobody answered.
    pub fn unanswered(&self) -> Vec<Committed> {
        self.lock().unanswered.clone()
    }

    pub fn ids(&self) -> Vec<Uuid> {
        let committed = self.committed();
        committed.iter().map(|event| event.message_id).collect()
    }

    pub fn len(&self) -> usize {
        self.committed().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until everything in the recorder's queue has arrived; returns the deliveries that were not a message's first.
    pub async fn duplicates<T: Record>(&self, recorder: &Recorder<T>) -> Result<usize> {
        let mark = recorder.mark_end().await?;
        self.add([Committed {
            message_id: mark,
            key: None,
            position: 0,
            body_sha256: sha256(b""),
        }]);
        if recorder.missing([mark]).await > 0 {
            return Err(format!("the queue does not end within {SOON:?}").into());
        }
        let seen = recorder.seen();
        let distinct: HashSet<Uuid> = seen.iter().map(Record::message_id).collect();
        Ok(seen.len() - distinct.len())
    }

    /// Compares what was committed with what arrived. The last message may still be on its way among duplicates, so this waits for
    /// messages that are not dead before it calls them lost.
    pub async fn judge<T: Record>(
        &self,
        client: &Client,
        recorder: &Recorder<T>,
    ) -> Result<Report> {
        let dead = query_ids(client, "SELECT message_id FROM outbox.dead").await?;
        let committed = self.committed();
        let alive = committed.iter().map(|event| event.message_id);
        recorder
            .missing(alive.filter(|id| !dead.contains(id)))
            .await;
        let sent = "SELECT message_id FROM outbox.message WHERE sent_at IS NOT NULL";
        Ok(Ledger {
            committed,
            delivered: recorder.seen().iter().map(Record::delivered).collect(),
            dead,
            marked_sent: query_ids(client, sent).await?,
        }
        .check())
    }
}

pub fn ids(events: &[Committed]) -> HashSet<Uuid> {
    events.iter().map(|event| event.message_id).collect()
}

pub async fn query_ids(client: &Client, sql: &str) -> Result<HashSet<Uuid>> {
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The number of messages that are neither sent nor dead.
pub async fn pending(client: &Client) -> Result<i64> {
    Ok(client.query_one(PENDING, &[]).await?.get(0))
}

/// Waits until nothing is pending (every message is sent or dead), as long as pending messages become fewer.
#[track_caller]
pub fn drained(client: &Client) -> impl Future<Output = ()> {
    nearer("an empty outbox", async || pending(client).await.ok())
}
