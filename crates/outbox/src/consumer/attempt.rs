//! How an attempt to apply a message ended.

use std::time::Duration;

use tokio_postgres::{
    Transaction,
    error::{Severity, SqlState},
};

use crate::inbox::{InboxError, described};

/// What an attempt is counted with before it is made. Left standing, it says that the attempt did not end.
pub(super) const UNENDED: &str = "delivered again: an attempt before did not end";

/// How a message that is to be acknowledged was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    First,
    Duplicate,
    Stale,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
        }
    }
}

/// What is to be done at the end of its transaction.
pub(super) struct Applied {
    pub outcome: Outcome,
    /// For duplicates.
    pub result: Option<Vec<u8>>,
}

impl Applied {
    pub fn nothing(outcome: Outcome) -> Self {
        Self {
            outcome,
            result: None,
        }
    }
}

/// For a transaction that was ended with a statement: its drop would do it once more, and the server log a warning.
pub(super) fn ended(transaction: Transaction<'_>) {
    std::mem::forget(transaction);
}

/// How an attempt did not succeed.
pub(super) enum Attempt {
    Failed(String),
    Refused { code: &'static str, error: String },
    Hung,
    Database(String),
}

impl Attempt {
    pub fn no_answer(limit: Duration) -> Self {
        Self::Database(format!("no answer within {limit:?}"))
    }
}

impl From<InboxError> for Attempt {
    fn from(error: InboxError) -> Self {
        match error {
            // A trigger keeps the inbox's rows as they are: that is not the message's fault.
            InboxError::Database(error) if is_kept_row(&error) => Self::Database(described(&error)),
            InboxError::Database(error) => Self::from(error),
            InboxError::NotWritten(_) => Self::Database(error.to_string()),
            other => Self::Refused {
                code: "result_invalid",
                error: other.to_string(),
            },
        }
    }
}

impl From<tokio_postgres::Error> for Attempt {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if *code == SqlState::IN_FAILED_SQL_TRANSACTION => Self::Failed(
                "a statement of the handler failed, and the handler went on: nothing was committed"
                    .to_owned(),
            ),
            // The connection is good, and the transaction was rolled back: an attempt like any other.
            Some(_) if !ends_the_session(&error) => Self::Failed(
                error
                    .as_db_error()
                    .map_or_else(|| error.to_string(), |db| db.message().to_owned()),
            ),
            _ => Self::Database(described(&error)),
        }
    }
}

/// See `migrations/inbox/0001_inbox.sql`.
fn is_kept_row(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        *db.code() == SqlState::TRIGGERED_ACTION_EXCEPTION && db.schema() == Some("inbox")
    })
}

fn ends_the_session(error: &tokio_postgres::Error) -> bool {
    let severity = error.as_db_error().and_then(|db| db.parsed_severity());
    error.is_closed() || matches!(severity, Some(Severity::Fatal | Severity::Panic))
}
