//! The record of changes that people made with a command. A command has one record. Its first step writes the record, each
//! further step adds to it in the step's own transaction, and the end of the command ends it. So the record of a command that
//! was cut off has what its steps did, and no end.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    row::get,
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

const BEGIN: Query = Query {
    action: "record the operation",
    sql: "INSERT INTO outbox.operation (action, by_whom, why, selection, affected, message_ids) \
          VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
    types: &[
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::INT8,
        Type::UUID_ARRAY,
    ],
};

const ADD: Query = Query {
    action: "add to the operation's record",
    sql: "SELECT outbox.recorded($1, $2, $3, $4) AS written",
    types: &[Type::INT8, Type::INT8, Type::UUID_ARRAY, Type::BOOL],
};

/// Most message ids in one record.
pub const LISTED: usize = 1000;

/// The record of a command that runs.
#[derive(Debug)]
pub struct Record<'a> {
    operation: &'a Operation,
    /// `None`: no step has changed anything.
    id: Option<i64>,
}

impl<'a> Record<'a> {
    pub fn new(operation: &'a Operation) -> Self {
        Self {
            operation,
            id: None,
        }
    }

    /// Records a step, in the transaction of its change. If that transaction is not committed, the command must end.
    pub async fn add(
        &mut self,
        session: &Session,
        affected: i64,
        message_ids: &[Uuid],
    ) -> Result<(), OutboxError> {
        let listed = &message_ids[..message_ids.len().min(LISTED)];
        if let Some(id) = self.id {
            return added(session, id, affected, listed, false).await;
        }
        let Operation {
            action,
            by,
            why,
            selection,
        } = self.operation;
        let rows = session
            .query(&BEGIN, &[action, by, why, selection, &affected, &listed])
            .await?;
        let Some(row) = rows.first() else {
            return Err(unwritten(BEGIN.action, "INSERTs", 0));
        };
        self.id = Some(get(row, "id")?);
        Ok(())
    }

    /// The command has done all of it.
    pub async fn finish(&self, session: &Session) -> Result<(), OutboxError> {
        match self.id {
            Some(id) => added(session, id, 0, &[], true).await,
            None => Ok(()),
        }
    }
}

async fn added(
    session: &Session,
    id: i64,
    affected: i64,
    message_ids: &[Uuid],
    finished: bool,
) -> Result<(), OutboxError> {
    let rows = session
        .query(&ADD, &[&id, &affected, &message_ids, &finished])
        .await?;
    let written = rows
        .first()
        .map(|row| get::<Option<bool>, _>(row, "written"));
    match written.transpose()?.flatten() {
        Some(true) => Ok(()),
        _ => Err(unwritten(ADD.action, "UPDATEs", id)),
    }
}

fn unwritten(action: &'static str, verb: &'static str, id: i64) -> OutboxError {
    OutboxError::NotWritten {
        action,
        table: "operation",
        verb,
        messages: 1,
        position: id,
    }
}
