//! The inbox of one consumer, and how it calls a function of the schema.

use tokio_postgres::{
    GenericClient, Row,
    types::{ToSql, Type},
};

use super::InboxError;

/// The inbox of one consumer: two consumers of one message are two operations.
#[derive(Debug, Clone)]
pub struct Inbox {
    consumer: String,
}

impl Inbox {
    /// `consumer` names who applies: stable over restarts and versions.
    pub fn new(consumer: impl Into<String>) -> Result<Self, InboxError> {
        let consumer = consumer.into();
        if consumer.is_empty() || consumer.len() > 255 {
            return Err(InboxError::Consumer);
        }
        Ok(Self { consumer })
    }

    pub fn consumer(&self) -> &str {
        &self.consumer
    }
}

/// Calls a function of the schema, in one round trip: with the types given nothing is prepared before. It also works
/// through a pooler that gives each transaction another session.
pub(super) async fn call(
    client: &impl GenericClient,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Row, InboxError> {
    let rows = client.query_typed(sql, parameters).await?;
    rows.into_iter().next().ok_or(InboxError::NoAnswer)
}
