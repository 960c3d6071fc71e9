//! A worker's connection to PostgreSQL, and what is prepared on it.

use futures_util::future::try_join;
use tokio_postgres::{Client, Statement, Transaction, error::SqlState};

use super::process::Attempt;
use crate::inbox::{Claimed, Inbox, InboxError, Operation};

const JSON: &str = "application/json";

pub(super) struct Session {
    pub client: Client,
    pub statements: Statements,
}

/// What the server parses and plans once a session instead of once a message.
pub(super) struct Statements(Option<Prepared>);

struct Prepared {
    claim: Statement,
    complete: Statement,
}

impl Session {
    /// Without `prepared` each statement stands for itself, as a pooler wants it that gives each transaction another
    /// session.
    pub async fn new(client: Client, inbox: &Inbox, prepared: bool) -> Result<Self, InboxError> {
        let statements = if prepared {
            let (claim, complete) = try_join(
                inbox.prepare_claim(&client),
                inbox.prepare_complete(&client),
            )
            .await?;
            Some(Prepared { claim, complete })
        } else {
            None
        };
        Ok(Self {
            client,
            statements: Statements(statements),
        })
    }
}

impl Statements {
    pub async fn claim(
        &self,
        inbox: &Inbox,
        transaction: &Transaction<'_>,
        operation: &Operation,
    ) -> Result<Claimed, Attempt> {
        let Some(prepared) = &self.0 else {
            let claimed = inbox.claim(transaction, operation);
            return claimed
                .await
                .map_err(|error| of_a_claim(error, Attempt::from));
        };
        let claimed = inbox.claim_prepared(transaction, &prepared.claim, operation);
        claimed
            .await
            .map_err(|error| of_a_claim(error, of_a_prepared_statement))
    }

    /// Stores a result as JSON.
    pub async fn complete(
        &self,
        inbox: &Inbox,
        transaction: &Transaction<'_>,
        operation: &Operation,
        result: &[u8],
    ) -> Result<(), Attempt> {
        let Some(prepared) = &self.0 else {
            let completed = inbox.complete_with(transaction, operation, result, JSON);
            return Ok(completed.await?);
        };
        let completed =
            inbox.complete_prepared(transaction, &prepared.complete, operation, result, JSON);
        completed.await.map_err(of_a_prepared_statement)
    }
}

/// A claim waits for whoever holds the key; that it waited for longer than the role's `statement_timeout` or
/// `lock_timeout` says nothing about the message, whose handler did not run.
fn of_a_claim(error: InboxError, other: impl FnOnce(InboxError) -> Attempt) -> Attempt {
    match error {
        InboxError::Database(error)
            if [
                Some(&SqlState::QUERY_CANCELED),
                Some(&SqlState::LOCK_NOT_AVAILABLE),
            ]
            .contains(&error.code()) =>
        {
            Attempt::Database(error.to_string())
        }
        error => other(error),
    }
}

/// Where a migration changed the function, or a pooler the session, that is not the message's fault, and is mended by
/// another session.
fn of_a_prepared_statement(error: InboxError) -> Attempt {
    match error {
        InboxError::Database(error)
            if [
                Some(&SqlState::FEATURE_NOT_SUPPORTED),
                Some(&SqlState::INVALID_SQL_STATEMENT_NAME),
            ]
            .contains(&error.code()) =>
        {
            Attempt::Database(error.to_string())
        }
        other => other.into(),
    }
}
