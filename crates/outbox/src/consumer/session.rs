//! A worker's connection to PostgreSQL, and what is prepared on it.

use tokio_postgres::{Client, Statement, Transaction, error::SqlState};

use super::process::Attempt;
use crate::inbox::{Claimed, Inbox, InboxError, Operation};

pub(super) struct Session {
    pub client: Client,
    pub claim: Claim,
}

/// The claim, which the server parses and plans once a session instead of once a message.
#[derive(Clone)]
pub(super) struct Claim(Option<Statement>);

impl Session {
    /// Without `prepared` each statement stands for itself, as a pooler wants it that gives each transaction another
    /// session.
    pub async fn new(client: Client, inbox: &Inbox, prepared: bool) -> Result<Self, InboxError> {
        let claim = if prepared {
            Some(inbox.prepare_claim(&client).await?)
        } else {
            None
        };
        Ok(Self {
            client,
            claim: Claim(claim),
        })
    }
}

impl Claim {
    pub async fn run(
        &self,
        inbox: &Inbox,
        transaction: &Transaction<'_>,
        operation: &Operation,
    ) -> Result<Claimed, Attempt> {
        let Some(statement) = &self.0 else {
            return Ok(inbox.claim(transaction, operation).await?);
        };
        let claimed = inbox.claim_prepared(transaction, statement, operation);
        claimed.await.map_err(|error| match error {
            // A migration changed the function, or a pooler the session: not the message's fault, and mended by another
            // session.
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
        })
    }
}
