//! The record of changes that people made with a command.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    session::{Query, Session},
};

/// The person, the action and the reason; the database adds the role and the time.
#[derive(Debug, Clone)]
pub struct Operation {
    pub action: &'static str,
    pub by: String,
    pub why: String,
    /// The filters, as the person gave them.
    pub selection: String,
}

const RECORD: Query = Query {
    action: "record the operation",
    sql: "INSERT INTO outbox.operation (action, by_whom, why, selection, affected, message_ids) \
          VALUES ($1, $2, $3, $4, $5, $6)",
    types: &[
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::INT8,
        Type::UUID_ARRAY,
    ],
};

/// Writes the record, in the transaction of the change.
pub async fn record(
    session: &Session,
    operation: &Operation,
    affected: i64,
    message_ids: &[Uuid],
) -> Result<(), OutboxError> {
    let Operation {
        action,
        by,
        why,
        selection,
    } = operation;
    session
        .execute(
            &RECORD,
            &[action, by, why, selection, &affected, &message_ids],
        )
        .await
        .map(drop)
}
