//! Detects a pooler in transaction mode between the relay and the server.
//!
//! Such a pooler hands out another server connection for each transaction. So a prepared statement, a setting of the session
//! or a LISTEN ends up in another client's session. Nothing in the protocol announces the pooler. But the server process of
//! an open connection can change only behind a pooler.

use std::time::Duration;

use super::{OutboxError, session::Session};
use crate::config::Database;

/// A pool with a single connection gives no answer while the other session holds that connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// `false` also if the answer is unknown. The relay sets up neither session, because their settings would stay in the pool.
pub async fn is_between(database: &Database) -> Result<bool, OutboxError> {
    let (one, _) = Session::bare(database, "outboxd/start", None, "").await?;
    let before = one.backend(PATIENCE).await?;
    // This session takes the server connection that the pool just got back. Without a second session there is no answer.
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
