//! A worker's connection to PostgreSQL, and what is prepared on it.

use futures_util::future::try_join;
use tokio_postgres::{Client, Statement, Transaction, error::SqlState};

use super::attempt::Attempt;
use crate::inbox::{Claimed, Inbox, InboxError, Operation};

const JSON: &str = "application/json";

pub(super) struct Session {
    pub client: Client,
    pub statements: Statements,
}

/// What a session says for each message.
pub(super) struct Statements {
    /// What the server parses and plans once a session instead of once a message.
    prepared: Option<Prepared>,
    /// Its commits wait until they are on disk.
    durable: bool,
}

struct Prepared {
    claim: Statement,
    complete: Statement,
}

impl Session {
    /// Without `prepared` each statement stands for itself, as a pooler wants it that gives each transaction another
    /// session.
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
        // Like this for the role, the database or the server: a crash of the server would take commits with it whose
        // messages were acknowledged.
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
    /// The first of the two statements fails where one failed before.
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

/// A claim that the database refuses says nothing about the message, whose handler did not run: it waited too long for
/// the one who holds the key, met another claim under `serializable`, or a right, a policy, the schema is missing.
/// Unless it is what the message says that was refused.
fn of_a_claim(error: InboxError, other: impl FnOnce(InboxError) -> Attempt) -> Attempt {
    let of_the_message = |code: &SqlState| {
        // Data exceptions, and violated constraints. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
        ["22", "23"]
            .iter()
            .any(|class| code.code().starts_with(class))
    };
    match error {
        InboxError::Database(error) if !error.code().is_some_and(of_the_message) => {
            let said = error.as_db_error().map(|db| db.message().to_owned());
            Attempt::Database(said.unwrap_or_else(|| error.to_string()))
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
