//! External effects: a charge, an e-mail, a shipment. The database cannot roll them back. So the intent is committed before the
//! effect and the outcome after it, each in a transaction of its own. A crash between the two is visible, and nothing is
//! repeated silently. Pass the key to the provider as its idempotency key.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_postgres::{
    Client, GenericClient,
    types::{ToSql, Type},
};

use super::{
    Claimed, Inbox, InboxError, Operation, Stored, claim::claimed, consumer::call, stored::encoded,
};

/// The answer to `begin_effect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Call the provider now, then record.
    First,
    /// The effect happened before, with this outcome.
    Duplicate(Stored),
    Conflict,
    /// The effect was begun before and never recorded: ask the provider, then record or abandon it.
    InDoubt,
}

/// An effect whose outcome nobody recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    pub key: String,
    pub begun_at: SystemTime,
}

impl Inbox {
    /// Commits the intent. It takes the client and not a transaction, because a rollback would remove the intent.
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

    /// Records the outcome, also of an effect in doubt. It runs in a transaction, together with the writes that follow from the
    /// effect.
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

    /// Removes an intent whose effect did not happen, as the provider says; the effect may be begun again.
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
