//! Replay: messages that were sent are published again, under the same message id and with an `outbox-replay`
//! header. They wait in `outbox.waiting` like any other message that is not due yet; a rate spaces their due times,
//! and a replay never holds back, nor waits for, what is new.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    claim::get,
    operation::{self, Operation},
    session::{Query, Session},
};
use crate::message::Lane;

/// Which sent messages. At least one condition is asked for by the command.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Times as PostgreSQL reads them, RFC 3339 for one.
    pub since: Option<String>,
    pub until: Option<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub message_ids: Vec<Uuid>,
}

const STEP: Query = Query {
    action: "replay sent messages",
    sql: include_str!("sql/replay_step.sql"),
    types: &[
        Type::INT2,
        Type::INT8,
        Type::INT8,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::UUID_ARRAY,
        Type::FLOAT8,
        Type::FLOAT8,
        Type::BOOL,
    ],
};

/// Rows looked at in one transaction.
const ROWS: i64 = 5000;
const LANES: Lane = 64;

/// Files the messages, or counts them with `dry_run`. `per_second`: at most so many of them fall due in a second.
pub async fn replay(
    session: &Session,
    filter: &Filter,
    per_second: f64,
    dry_run: bool,
    operation: &Operation,
) -> Result<i64, OutboxError> {
    let between = 1.0 / per_second;
    let mut total: i64 = 0;
    for lane in 0..LANES {
        let mut cursor: i64 = 0;
        loop {
            session.begin().await?;
            let done = step(
                session,
                filter,
                lane,
                cursor,
                total as f64 * between,
                between,
                dry_run,
                operation,
            )
            .await;
            let found = match done {
                Ok(found) => found,
                Err(error) => {
                    // The first error is the one to report; a lost connection rolls back by itself.
                    let _ = session.rollback().await;
                    return Err(error);
                }
            };
            session.commit().await?;
            total += found.chosen;
            match found.cursor {
                Some(next) if found.looked >= ROWS => cursor = next,
                _ => break,
            }
        }
    }
    Ok(total)
}

struct Found {
    cursor: Option<i64>,
    looked: i64,
    chosen: i64,
}

#[allow(clippy::too_many_arguments, reason = "the parameters of one statement")]
async fn step(
    session: &Session,
    filter: &Filter,
    lane: Lane,
    cursor: i64,
    first_due_s: f64,
    between_s: f64,
    dry_run: bool,
    operation: &Operation,
) -> Result<Found, OutboxError> {
    let rows = session
        .query(
            &STEP,
            &[
                &lane,
                &cursor,
                &ROWS,
                &filter.since,
                &filter.until,
                &filter.aggregate_type,
                &filter.aggregate_id,
                &filter.event_type,
                &filter.message_ids,
                &first_due_s,
                &between_s,
                &dry_run,
            ],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Found {
            cursor: None,
            looked: 0,
            chosen: 0,
        });
    };
    let chosen: i64 = get(row, "chosen")?;
    let message_ids: Vec<Uuid> = get(row, "message_ids")?;
    if chosen > 0 && !dry_run {
        operation::record(session, operation, chosen, &message_ids).await?;
    }
    Ok(Found {
        cursor: get(row, "cursor")?,
        looked: get(row, "looked")?,
        chosen,
    })
}
