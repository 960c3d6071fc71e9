//! Is there a pooler in transaction mode between us and the server?
//!
//! It hands out another server connection for each transaction, so a prepared statement, a setting of the session or a
//! LISTEN ends up with somebody else. Nothing in the protocol says that it is there; but only behind one can the process
//! on the other side of an open connection change.

use std::time::Duration;

use super::{OutboxError, session::Session};
use crate::config::Database;

/// A pool of one connection, which the other session holds, gives no answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// `false` also where it cannot be told. Neither session is set up: what they set would stay in the pool.
pub async fn is_between(database: &Database) -> Result<bool, OutboxError> {
    let (one, _) = Session::bare(database, "outboxd/start", None, "").await?;
    let before = one.backend(PATIENCE).await?;
    // Holds the server connection that was just given back. Without a second connection it cannot be told.
    let Ok((other, _)) = Session::bare(database, "outboxd/start", None, "").await else {
        return Ok(false);
    };
    if other.begin().await.is_err() || other.backend(PATIENCE).await.is_err() {
        return Ok(false);
    }
    Ok(match one.backend(PATIENCE).await {
        Ok(after) => after != before,
        Err(OutboxError::Timeout { .. }) => true,
        Err(_) => false,
    })
}
