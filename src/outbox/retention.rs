//! Retention: sent messages are deleted when they have been kept long enough, in small steps that never hold what a
//! claim needs. Only rows at or below a lane's low-water mark are looked at, so no claim reads them any more.

use std::time::Duration;

use outbox_core::{message::Lane, scheduling::all_lanes};
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    operation::{Operation, Record},
    row::get,
    session::{Params, Query, Session},
};

const PRUNE_LANE: Query = Query {
    action: "prune sent messages",
    sql: include_str!("sql/prune_lane.sql"),
    types: &[Type::INT2, Type::INT8, Type::INT8, Type::FLOAT8, Type::BOOL],
};

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub deleted: u64,
    /// First position of the lane's next step.
    pub cursor: i64,
    /// More may be old enough.
    pub more: bool,
    /// It passed over unsent rows that are filed nowhere.
    pub stranded: bool,
}

/// Where the first step of a lane begins: people can insert rows of any position.
pub const FIRST: i64 = i64::MIN;

/// Which rows end a step before its last row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The first row that is too young, if no row soon after it is old enough: the rows behind it get old with it.
    Young,
    /// None: the lane is read to its mark.
    All,
}

/// Looks at up to `rows` rows of a lane, from `cursor` on. The cursor is the caller's, so that deleted rows that the
/// vacuum could not remove yet are not walked over again.
pub async fn prune_step(
    session: &Session,
    lane: Lane,
    cursor: i64,
    rows: u32,
    kept_for: Duration,
    reach: Reach,
) -> Result<Step, OutboxError> {
    let delete = async |reach| deleted(session, lane, cursor, rows, kept_for, reach).await;
    let (mut step, kept) = delete(reach).await?;
    if !kept.is_empty() {
        let (again, still) = delete(Reach::All).await?;
        step.deleted += again.deleted;
        proven(&kept, &still)?;
    }
    Ok(step)
}

/// What the statement did, and the rows that it chose and did not delete.
async fn deleted(
    session: &Session,
    lane: Lane,
    cursor: i64,
    rows: u32,
    kept_for: Duration,
    reach: Reach,
) -> Result<(Step, Vec<i64>), OutboxError> {
    let all = reach == Reach::All;
    let kept_for = kept_for.as_secs_f64();
    let params: Params<'_> = &[&lane, &cursor, &i64::from(rows), &kept_for, &all];
    let found = session.query(&PRUNE_LANE, params).await?;
    let Some(row) = found.first() else {
        let nothing = Step {
            deleted: 0,
            cursor,
            more: false,
            stranded: false,
        };
        return Ok((nothing, Vec::new()));
    };
    let deleted: i64 = get(row, "deleted")?;
    let passed: Option<i64> = get(row, "passed")?;
    let next = passed.map_or(cursor, |id| id.saturating_add(1));
    let full: bool = get(row, "full")?;
    let step = Step {
        deleted: u64::try_from(deleted).unwrap_or(0),
        cursor: next,
        more: full && next > cursor,
        stranded: get(row, "stranded")?,
    };
    Ok((step, get(row, "kept")?))
}

/// A trigger can keep a row without an error, as it was or rewritten (a soft delete). Somebody who wrote to a row between the
/// choice and the delete keeps it as well, once: the second choice finds the row where it is now.
fn proven(kept: &[i64], still: &[i64]) -> Result<(), OutboxError> {
    let mut both = kept.iter().filter(|id| still.contains(id));
    let Some(first) = both.next() else {
        return Ok(());
    };
    Err(OutboxError::NotWritten {
        action: PRUNE_LANE.action,
        table: "message",
        verb: "DELETEs",
        messages: 1 + both.count(),
        position: *first,
    })
}

/// What a run of `outboxd prune` has done so far.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pruned {
    pub deleted: u64,
    pub stranded: bool,
}

/// Deletes all sent messages that are old enough. The transaction of each step records it, so that a run that is cut off has
/// recorded what it deleted. `done` holds the committed steps, also after an error.
pub async fn prune(
    session: &Session,
    rows: u32,
    kept_for: Duration,
    operation: &Operation,
    done: &mut Pruned,
) -> Result<(), OutboxError> {
    let mut record = Record::new(operation);
    for lane in all_lanes() {
        let mut cursor = FIRST;
        loop {
            let step = recorded_step(session, lane, cursor, rows, kept_for, &mut record);
            let step = session.commits(step).await?;
            done.deleted += step.deleted;
            done.stranded |= step.stranded;
            cursor = step.cursor;
            if !step.more {
                break;
            }
        }
    }
    record.finish(session).await
}

async fn recorded_step(
    session: &Session,
    lane: Lane,
    cursor: i64,
    rows: u32,
    kept_for: Duration,
    record: &mut Record<'_>,
) -> Result<Step, OutboxError> {
    let step = prune_step(session, lane, cursor, rows, kept_for, Reach::All).await?;
    if step.deleted > 0 {
        let affected = i64::try_from(step.deleted).unwrap_or(i64::MAX);
        record.add(session, affected, &[]).await?;
    }
    Ok(step)
}
