//! Counts failed attempts, and deletes old operations.

use std::time::Duration;

use tokio_postgres::{
    Client, Transaction,
    types::{ToSql, Type},
};

use super::{Inbox, InboxError, consumer::call};

impl Inbox {
    /// Counts a failed attempt, and returns the new count. It takes the client and not the handler's transaction, because a
    /// rollback of that transaction would undo the count.
    pub async fn fail(&self, client: &Client, key: &str, error: &str) -> Result<u32, InboxError> {
        // PostgreSQL's text cannot contain NUL.
        let error = error.replace('\0', "");
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&key, Type::TEXT),
            (&error, Type::TEXT),
        ];
        let row = call(client, "SELECT inbox.fail($1, $2, $3)", &parameters).await?;
        let attempts: i32 = row.try_get(0)?;
        Ok(u32::try_from(attempts).unwrap_or(0))
    }

    /// Deletes at most `max_rows` operations that were claimed longer than `older_than` ago, and returns their number. The age must
    /// be longer than any redelivery or replay can take, because a repetition after the deletion is applied again. Effects in
    /// doubt are never deleted.
    pub async fn prune(
        &self,
        client: &Client,
        older_than: Duration,
        max_rows: u32,
    ) -> Result<u32, InboxError> {
        let sql = "SELECT inbox.prune($1, $2 OPERATOR(pg_catalog.*) interval '1 second', $3)";
        let rows = i32::try_from(max_rows).unwrap_or(i32::MAX);
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&older_than.as_secs_f64(), Type::FLOAT8),
            (&rows, Type::INT4),
        ];
        let row = call(client, sql, &parameters).await?;
        let deleted: i32 = row.try_get(0)?;
        Ok(u32::try_from(deleted).unwrap_or(0))
    }

    /// Deletes the failed attempts of an operation, in the transaction that applies it.
    pub async fn forgive(
        &self,
        transaction: &Transaction<'_>,
        key: &str,
    ) -> Result<(), InboxError> {
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.consumer(), Type::TEXT), (&key, Type::TEXT)];
        call(transaction, "SELECT inbox.forgive($1, $2)", &parameters).await?;
        Ok(())
    }

    /// Deletes the failed attempts of an operation that was applied before.
    #[cfg(feature = "consumer")]
    pub(crate) async fn forgive_in(&self, client: &Client, key: &str) -> Result<(), InboxError> {
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.consumer(), Type::TEXT), (&key, Type::TEXT)];
        call(client, "SELECT inbox.forgive($1, $2)", &parameters).await?;
        Ok(())
    }

    /// The number of counted attempts, if the last attempt ended with `error`; 0 otherwise.
    #[cfg(feature = "consumer")]
    pub(crate) async fn attempts_ending_with(
        &self,
        client: &Client,
        key: &str,
        error: &str,
    ) -> Result<u32, InboxError> {
        let sql = "SELECT coalesce(max(attempts), 0) FROM inbox.attempt \
                   WHERE consumer = $1 AND idempotency_key = $2 AND last_error = $3";
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&key, Type::TEXT),
            (&error, Type::TEXT),
        ];
        let attempts: i32 = call(client, sql, &parameters).await?.try_get(0)?;
        Ok(u32::try_from(attempts).unwrap_or(0))
    }

    /// Whether any operation's last attempt ended with `error`.
    #[cfg(feature = "consumer")]
    pub(crate) async fn any_ending_with(
        &self,
        client: &Client,
        error: &str,
    ) -> Result<bool, InboxError> {
        let sql =
            "SELECT EXISTS (SELECT FROM inbox.attempt WHERE consumer = $1 AND last_error = $2)";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.consumer(), Type::TEXT), (&error, Type::TEXT)];
        Ok(call(client, sql, &parameters).await?.try_get(0)?)
    }

    /// Replaces the error of the last attempt without counting another; returns the count.
    #[cfg(feature = "consumer")]
    pub(crate) async fn ended_with(
        &self,
        client: &Client,
        key: &str,
        error: &str,
    ) -> Result<u32, InboxError> {
        let error = error.replace('\0', "");
        let sql = "UPDATE inbox.attempt SET last_error = left($3, 1000), last_at = clock_timestamp() \
                   WHERE consumer = $1 AND idempotency_key = $2 \
                   RETURNING attempts, last_error = left($3, 1000)";
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.consumer(), Type::TEXT),
            (&key, Type::TEXT),
            (&error, Type::TEXT),
        ];
        let row = call(client, sql, &parameters).await?;
        if !row.try_get::<_, bool>(1)? {
            return Err(InboxError::NotWritten("inbox.attempt"));
        }
        let attempts: i32 = row.try_get(0)?;
        Ok(u32::try_from(attempts).unwrap_or(0))
    }
}
