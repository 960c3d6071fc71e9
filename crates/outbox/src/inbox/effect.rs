//! External effects: a charge, an e-mail, a shipment. The database cannot roll them back, so the intent is committed
//! before and the outcome after, each in a transaction of its own; a crash between the two is seen, and nothing is
//! repeated silently. Pass the key on as the provider's own idempotency key.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_postgres::{
    Client, GenericClient,
    types::{ToSql, Type},
};

use super::{
    Claimed, Inbox, InboxError, Operation, Stored, claim::claimed, consumer::call, stored::encoded,
};

/// What a beginning was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Call the provider now, then record.
    First,
    /// It happened before, with this outcome.
    Duplicate(Stored),
    Conflict,
    /// Begun before and never recorded: ask the provider, then record or abandon.
    InDoubt,
}

/// An effect whose outcome nobody recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    pub key: String,
    pub begun_at: SystemTime,
}

impl Inbox {
    /// Commits the intent. Takes the client, not a transaction: an intent that is rolled back was never there.
    pub async fn begin_effect(
        &self,
        client: &Client,
        operation: &Operation,
    ) -> Result<Begun, InboxError> {
        let sql = "SELECT outcome, result, result_type FROM inbox.begin_effect($1, $2, $3)";
        let fingerprint = &operation.fingerprint()[..];
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&operation.key(), Type::TEXT),
            (&fingerprint, Type::BYTEA),
        ];
        let row = call(client, sql, &parameters).await?;
        Ok(match claimed(&row)? {
            Claimed::First => Begun::First,
            Claimed::Duplicate(stored) => Begun::Duplicate(stored),
            Claimed::Conflict => Begun::Conflict,
            Claimed::InDoubt | Claimed::Stale => Begun::InDoubt,
        })
    }

    /// Records the outcome, also of one that was in doubt; in a transaction, together with what the effect brought.
    pub async fn record_effect(
        &self,
        client: &impl GenericClient,
        key: &str,
        outcome: &impl Serialize,
    ) -> Result<(), InboxError> {
        let bytes = encoded(outcome)?;
        let sql = "SELECT inbox.record_effect($1, $2, $3, 'application/json')";
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&key, Type::TEXT),
            (&bytes, Type::BYTEA),
        ];
        call(client, sql, &parameters).await?;
        Ok(())
    }

    /// Forgets an intent of which the provider says that nothing happened; it may be begun again.
    pub async fn abandon_effect(
        &self,
        client: &impl GenericClient,
        key: &str,
    ) -> Result<(), InboxError> {
        let sql = "SELECT inbox.abandon_effect($1, $2)";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.consumer(), Type::TEXT), (&key, Type::TEXT)];
        call(client, sql, &parameters).await?;
        Ok(())
    }

    /// Effects in doubt that are older than `age`, the oldest first, at most `limit`.
    pub async fn in_doubt(
        &self,
        client: &Client,
        age: Duration,
        limit: i64,
    ) -> Result<Vec<Doubt>, InboxError> {
        let sql = "SELECT idempotency_key, begun_at FROM inbox.in_doubt \
                   WHERE consumer OPERATOR(pg_catalog.=) $1 \
                     AND begun_at OPERATOR(pg_catalog.<=) (pg_catalog.clock_timestamp() \
                         OPERATOR(pg_catalog.-) ($2 OPERATOR(pg_catalog.*) interval '1 second')) \
                   ORDER BY begun_at LIMIT $3";
        let rows = client
            .query(sql, &[&self.consumer(), &age.as_secs_f64(), &limit])
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Doubt {
                    key: row.try_get(0)?,
                    begun_at: row.try_get(1)?,
                })
            })
            .collect()
    }
}
