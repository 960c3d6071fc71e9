//! A worker's connection to PostgreSQL, and its prepared statements.

use futures_util::future::try_join;
use tokio_postgres::{Client, Statement, Transaction, error::SqlState};

use super::attempt::Attempt;
use crate::inbox::{Claimed, Inbox, InboxError, Operation, described};

const JSON: &str = "application/json";

pub(super) struct Session {
    pub client: Client,
    pub statements: Statements,
}

/// The statements that a session sends for each message.
pub(super) struct Statements {
    /// Statements that the server parses and plans once for each session instead of once for each message.
    prepared: Option<Prepared>,
    /// Whether commits of the session wait until they are on disk.
    durable: bool,
}

struct Prepared {
    claim: Statement,
    complete: Statement,
}

impl Session {
    /// Without `prepared` each statement is independent, for a pooler that gives each transaction another session.
    pub async fn new(client: Client, inbox: &Inbox, prepared: bool) -> Result<Self, InboxError> {
        let prepared = if prepared {
            let (claim, complete) = try_join(
                inbox.prepare_claim(&client),
                inbox.prepare_complete(&client),
            )
            .await?;
            Some(Prepared { claim, complete })
        } else {
            None
        };
        // If it is off for the role, the database or the server, a crash of the server could lose commits whose messages were
        // acknowledged.
        let setting = "SELECT pg_catalog.current_setting('synchronous_commit')";
        let setting = client.query_typed(setting, &[]).await?;
        let durable = setting.iter().all(|row| {
            let set: Result<&str, _> = row.try_get(0);
            set.is_ok_and(|set| set != "off")
        });
        Ok(Self {
            client,
            statements: Statements { prepared, durable },
        })
    }
}

impl Statements {
    /// The first of the two statements fails if an earlier statement failed.
    pub fn commit(&self) -> &'static str {
        if self.durable {
            "SELECT; COMMIT"
        } else {
            "SET LOCAL synchronous_commit = on; COMMIT"
        }
    }

    pub async fn claim(
        &self,
        inbox: &Inbox,
        transaction: &Transaction<'_>,
        operation: &Operation,
    ) -> Result<Claimed, Attempt> {
        let Some(prepared) = &self.prepared else {
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
        let Some(prepared) = &self.prepared else {
            let completed = inbox.complete_with(transaction, operation, result, JSON);
            return Ok(completed.await?);
        };
        let completed =
            inbox.complete_prepared(transaction, &prepared.complete, operation, result, JSON);
        completed.await.map_err(of_a_prepared_statement)
    }
}

/// A claim that the database refuses usually says nothing about the message, because its handler did not run: the claim waited
/// too long for the holder of the key, met another claim under `serializable`, or a right, a policy or the schema is wrong. It
/// is the message's fault only if the database refused its values.
fn of_a_claim(error: InboxError, other: impl FnOnce(InboxError) -> Attempt) -> Attempt {
    let of_the_message = |code: &SqlState| {
        // Data exceptions, and violated constraints. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
        ["22", "23"]
            .iter()
            .any(|class| code.code().starts_with(class))
    };
    match error {
        InboxError::Database(error) if !error.code().is_some_and(of_the_message) => {
            Attempt::Database(described(&error))
        }
        error => other(error),
    }
}

/// If a migration changed the function, or a pooler changed the session, that is not the message's fault, and another session
/// works.
fn of_a_prepared_statement(error: InboxError) -> Attempt {
    match error {
        InboxError::Database(error)
            if [
                Some(&SqlState::FEATURE_NOT_SUPPORTED),
                Some(&SqlState::INVALID_SQL_STATEMENT_NAME),
            ]
            .contains(&error.code()) =>
        {
            Attempt::Database(described(&error))
        }
        other => other.into(),
    }
}
