//! Lists the records of operations, the newest first.

use std::time::SystemTime;

use serde::Serialize;
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

#[derive(Debug, Serialize)]
pub struct Past {
    pub id: i64,
    pub at: String,
    pub by_whom: String,
    pub by_role: String,
    pub action: String,
    pub selection: String,
    pub affected: i64,
    pub why: String,
    /// `None`: the command runs, or it ended early.
    pub finished_at: Option<String>,
    /// At most 1,000 are recorded.
    pub message_ids: Vec<uuid::Uuid>,
}

const LIST: Query = Query {
    action: "list operations",
    sql: include_str!("sql/history.sql"),
    types: &[Type::INT8, Type::TIMESTAMPTZ, Type::INT8],
};

/// Records in memory at once: each may have 1,000 ids.
const PAGE: i64 = 100;

/// Page by page; `since`: the time of the oldest.
pub struct Pages<'a> {
    session: &'a Session,
    since: Option<SystemTime>,
    before: i64,
}

impl<'a> Pages<'a> {
    pub fn new(session: &'a Session, since: Option<SystemTime>) -> Self {
        Self {
            session,
            since,
            before: i64::MAX,
        }
    }

    /// The next page; empty at the end.
    pub async fn next(&mut self) -> Result<Vec<Past>, OutboxError> {
        let rows = self
            .session
            .query(&LIST, &[&self.before, &self.since, &PAGE])
            .await?;
        let page: Vec<Past> = rows
            .iter()
            .map(|row| {
                Ok(Past {
                    id: get(row, "id")?,
                    at: get(row, "at")?,
                    by_whom: get(row, "by_whom")?,
                    by_role: get(row, "by_role")?,
                    action: get(row, "action")?,
                    selection: get(row, "selection")?,
                    affected: get(row, "affected")?,
                    why: get(row, "why")?,
                    finished_at: get(row, "finished_at")?,
                    message_ids: get(row, "message_ids")?,
                })
            })
            .collect::<Result<_, OutboxError>>()?;
        if let Some(last) = page.last() {
            self.before = last.id;
        }
        Ok(page)
    }
}
