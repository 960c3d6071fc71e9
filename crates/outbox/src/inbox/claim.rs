//! Claims and completes operations, in the handler's transaction.

use serde::Serialize;
#[cfg(feature = "consumer")]
use tokio_postgres::{Client, Statement};
use tokio_postgres::{
    GenericClient, Row, Transaction,
    types::{ToSql, Type},
};

use super::{Inbox, InboxError, Operation, Stored, consumer::call, stored::encoded, within_cap};

const CLAIM: &str = "SELECT outcome, result, result_type FROM inbox.claim($1, $2, $3, $4, $5)";
const CLAIM_TYPES: [Type; 5] = [Type::TEXT, Type::TEXT, Type::BYTEA, Type::TEXT, Type::INT8];
const COMPLETE: &str = "SELECT inbox.complete($1, $2, $3, $4)";
#[cfg(feature = "consumer")]
const COMPLETE_TYPES: [Type; 4] = [Type::TEXT, Type::TEXT, Type::BYTEA, Type::TEXT];

/// What a claim was told. Only `First` goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// Nobody applied it: apply it, complete it, commit.
    First,
    /// It was applied before; this is what it returned.
    Duplicate(Stored),
    /// The same key with another fingerprint. Never acknowledge it silently.
    Conflict,
    /// A later position of its entity was applied before.
    Stale,
    /// An external effect under this key was begun and never recorded.
    InDoubt,
}

impl Inbox {
    /// Claims an operation. It waits until a concurrent claim of the same key ends; `lock_timeout` bounds the wait.
    ///
    /// It takes a transaction: if the claim were committed apart from the handler's write, a crash would lose the message.
    pub async fn claim(
        &self,
        transaction: &Transaction<'_>,
        operation: &Operation,
    ) -> Result<Claimed, InboxError> {
        self.claim_in(transaction, operation).await
    }

    /// `client` must be in a transaction.
    pub(crate) async fn claim_in(
        &self,
        client: &impl GenericClient,
        operation: &Operation,
    ) -> Result<Claimed, InboxError> {
        let (entity, position) = operation.guard();
        let fingerprint = &operation.fingerprint()[..];
        let (consumer, key) = (self.consumer(), operation.key());
        let values: [&(dyn ToSql + Sync); 5] = [&consumer, &key, &fingerprint, &entity, &position];
        let parameters: Vec<_> = values.into_iter().zip(CLAIM_TYPES).collect();
        claimed(&call(client, CLAIM, &parameters).await?)
    }

    /// Prepares the claim for a session that makes many claims: the server parses and plans it once.
    #[cfg(feature = "consumer")]
    pub(crate) async fn prepare_claim(&self, client: &Client) -> Result<Statement, InboxError> {
        Ok(client.prepare_typed(CLAIM, &CLAIM_TYPES).await?)
    }

    #[cfg(feature = "consumer")]
    pub(crate) async fn claim_prepared(
        &self,
        transaction: &Transaction<'_>,
        statement: &Statement,
        operation: &Operation,
    ) -> Result<Claimed, InboxError> {
        let (entity, position) = operation.guard();
        let fingerprint = &operation.fingerprint()[..];
        let (consumer, key) = (self.consumer(), operation.key());
        let values: [&(dyn ToSql + Sync); 5] = [&consumer, &key, &fingerprint, &entity, &position];
        claimed(&transaction.query_one(statement, &values).await?)
    }

    #[cfg(feature = "consumer")]
    pub(crate) async fn prepare_complete(&self, client: &Client) -> Result<Statement, InboxError> {
        Ok(client.prepare_typed(COMPLETE, &COMPLETE_TYPES).await?)
    }

    #[cfg(feature = "consumer")]
    pub(crate) async fn complete_prepared(
        &self,
        transaction: &Transaction<'_>,
        statement: &Statement,
        operation: &Operation,
        result: &[u8],
        content_type: &str,
    ) -> Result<(), InboxError> {
        within_cap(result.len())?;
        let (consumer, key) = (self.consumer(), operation.key());
        let values: [&(dyn ToSql + Sync); 4] = [&consumer, &key, &result, &content_type];
        transaction.execute(statement, &values).await?;
        Ok(())
    }

    /// Claims several operations; the answers are in the order of the slice. It claims in the order of the keys, because two
    /// transactions that claim the same keys in different orders would deadlock.
    pub async fn claim_all(
        &self,
        transaction: &Transaction<'_>,
        operations: &[Operation],
    ) -> Result<Vec<Claimed>, InboxError> {
        let mut order: Vec<usize> = (0..operations.len()).collect();
        order.sort_by(|a, b| operations[*a].key().cmp(operations[*b].key()));
        let mut answers = vec![None; operations.len()];
        for i in order {
            answers[i] = Some(self.claim(transaction, &operations[i]).await?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Stores the operation's result, as JSON.
    pub async fn complete(
        &self,
        transaction: &Transaction<'_>,
        operation: &Operation,
        result: &impl Serialize,
    ) -> Result<(), InboxError> {
        let bytes = encoded(result)?;
        self.complete_with(transaction, operation, &bytes, "application/json")
            .await
    }

    /// Stores the operation's result as it is.
    pub async fn complete_with(
        &self,
        transaction: &impl GenericClient,
        operation: &Operation,
        result: &[u8],
        content_type: &str,
    ) -> Result<(), InboxError> {
        within_cap(result.len())?;
        call(
            transaction,
            COMPLETE,
            &[
                (&self.consumer(), Type::TEXT),
                (&operation.key(), Type::TEXT),
                (&result, Type::BYTEA),
                (&content_type, Type::TEXT),
            ],
        )
        .await?;
        Ok(())
    }
}

pub(super) fn claimed(row: &Row) -> Result<Claimed, InboxError> {
    let outcome: &str = row.try_get("outcome")?;
    Ok(match outcome {
        "first" => Claimed::First,
        "duplicate" => Claimed::Duplicate(Stored {
            bytes: row.try_get("result")?,
            content_type: row.try_get("result_type")?,
        }),
        "conflict" => Claimed::Conflict,
        "stale" => Claimed::Stale,
        // This also covers outcomes of a newer schema: the safe reaction is not to go on.
        _ => Claimed::InDoubt,
    })
}
