//! The transaction of a command, which its handler gets.

use std::{ops::Deref, sync::Arc};

use http::StatusCode;
use tokio_postgres::{Client, error::SqlState};

use crate::{EnqueueError, EventError};

/// A connection of any pool, as a client.
pub(super) type Connection = Box<dyn Deref<Target = Client> + Send + Sync>;

/// The open transaction of one command, among the request's extensions. It is a client: query, execute, enqueue. The
/// layer commits or rolls back after the handler has answered; a handler does neither, and keeps no clone.
#[derive(Clone)]
pub struct Command(Arc<Connection>);

impl Command {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Arc::new(connection))
    }

    /// Whether the handler still holds a clone.
    pub(super) fn is_kept(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Deref for Command {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.0.as_ref()
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// A handler's failed statement or event, for `?`. The answer is 503 if a retry is the remedy (an unavailable server, a
/// serialization failure, a deadlock) and 500 otherwise; both free the key. The details go to the log, not to the caller.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("the command's transaction: {}", crate::inbox::described(.0))]
    Database(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    #[error(transparent)]
    Event(#[from] EventError),
}

impl CommandError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Database(error) | Self::Enqueue(EnqueueError::Database(error))
                if is_transient(error) =>
            {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Database(_) | Self::Enqueue(_) | Self::Event(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for CommandError {
    fn into_response(self) -> axum_core::response::Response {
        tracing::error!(error = %self, "a command failed");
        self.status().into_response()
    }
}

/// Whether the same request may succeed if it is sent again. Source: PostgreSQL, appendix A (error codes).
pub(super) fn is_transient(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => true,
        Some(code) => {
            matches!(
                *code,
                SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED
            ) || ["08", "53", "57"].contains(&&code.code()[..2])
        }
    }
}
