//! Settle: every outcome of a claim, written in the claim's own transaction, then COMMIT.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use outbox_core::{
    low_water::Mark,
    message::{Lane, Position},
    settlement::{Cause, DeadLetter, Sent, Settlement, Wait},
};
use tokio_postgres::{Row, types::Type};

use super::{
    OutboxError,
    ctid::{Tid, Xid},
    row::get,
    session::{Params, Query, Session},
};
use crate::failpoint;

/// What becomes of a row once it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Marked, and pruned later.
    Marked,
    /// `retention.sent = "0s"`.
    Deleted,
}

const MARK_SENT: Query = Query {
    action: "mark sent",
    sql: include_str!("sql/mark_sent.sql"),
    types: &[Type::TID_ARRAY, Type::INT8_ARRAY],
};
const MARK_MOVED: Query = Query {
    action: "mark sent rows that moved",
    sql: include_str!("sql/mark_moved.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::XID8_ARRAY],
};
const DELETE_SENT: Query = Query {
    action: "delete sent",
    sql: include_str!("sql/delete_sent.sql"),
    types: &[Type::TID_ARRAY, Type::INT8_ARRAY],
};
const UNMARKED: Query = Query {
    action: "look for rows that were not marked",
    sql: include_str!("sql/unmarked.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::XID8_ARRAY],
};
const DELETE_MOVED: Query = Query {
    action: "delete sent rows that moved",
    sql: include_str!("sql/delete_moved.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::XID8_ARRAY],
};
const DELETE_WAITING: Query = Query {
    action: "settle waiting messages",
    sql: include_str!("sql/delete_waiting.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};
const STILL_WAITING: Query = Query {
    action: "look for records that are not removed",
    sql: include_str!("sql/still_waiting.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};
const UNFILED: Query = Query {
    action: "look for messages that are not filed",
    sql: include_str!("sql/unfiled.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};
const CHANGED: Query = Query {
    action: "look for corrected messages",
    sql: include_str!("sql/changed.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::XID8_ARRAY],
};
const WAIT: Query = Query {
    action: "file messages as waiting",
    sql: include_str!("sql/wait.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::INT4_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::INT4_ARRAY,
    ],
};
const MARK_DEAD: Query = Query {
    action: "file messages as dead",
    sql: include_str!("sql/mark_dead.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::XID8_ARRAY,
        Type::TEXT_ARRAY,
        Type::INT4_ARRAY,
        Type::TEXT_ARRAY,
        Type::BOOL_ARRAY,
    ],
};
const RELEASE: Query = Query {
    action: "release messages behind a settled one",
    sql: include_str!("sql/release.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::INT8],
};
const ADVANCE_LANE: Query = Query {
    action: "advance the low-water mark",
    sql: include_str!("sql/advance_lane.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
    ],
};

/// The writes of a settle, each of them proven.
pub(super) struct Written {
    /// Messages that somebody corrected meanwhile: their outcome is that of another version. They are due now.
    pub corrected: Vec<Position>,
    /// Sent messages that somebody deleted or marked meanwhile: nothing was left to mark.
    pub gone: usize,
}

/// Writes the outcomes and commits. After an error nothing of it is to be trusted: the session rolls back or, when
/// the COMMIT itself timed out, the outcome is unknown and the messages may be published again. Returns the messages that
/// did not get their outcome, because they were corrected meanwhile.
pub async fn settle(
    session: &Session,
    settlement: &Settlement,
    keep: Keep,
    released_at_once: usize,
) -> Result<Vec<Position>, OutboxError> {
    let written = Box::pin(write(session, settlement, keep, released_at_once)).await?;
    if !written.corrected.is_empty() {
        tracing::warn!(
            messages = written.corrected.len(),
            "messages were corrected while a claim held them; they are published again, as they are now"
        );
    }
    if written.gone > 0 {
        tracing::warn!(
            confirmed = settlement.sent.len(),
            gone = written.gone,
            "rows changed under a held lane: were they deleted or marked by hand?"
        );
    }
    failpoint::reach("settle.before_commit").await;
    session.commit().await?;
    failpoint::reach("settle.after_commit").await;
    Ok(written.corrected)
}

/// Writes the outcomes, without a commit. A trigger or a rule can let a statement succeed and keep its rows as they are: the
/// relay would believe that a message is settled, and publish it again and again. So each statement returns what is there now,
/// and a difference is an error, unless somebody else's change explains it.
pub(super) async fn write(
    session: &Session,
    settlement: &Settlement,
    keep: Keep,
    released_at_once: usize,
) -> Result<Written, OutboxError> {
    // First, because it takes along how often a message was redriven, from the record that `delete_waiting` removes.
    let dead = Box::pin(mark_dead(session, &settlement.dead)).await?;
    // Their order matters only between the removals from outbox.waiting and the release; all are one transaction.
    // Boxed: five statements at once are large. Biased: the first one that fails makes the others fail, and is the one to say.
    let (marked, (), waiting, ..) = Box::pin(async {
        tokio::try_join!(
            biased;
            mark_sent(session, &settlement.sent, keep),
            delete_waiting(session, &settlement.delete_waiting),
            wait(session, &settlement.wait),
            release(session, &settlement.release, released_at_once),
            advance(session, &settlement.marks),
        )
    })
    .await?;
    let corrected = [marked.corrected, waiting, dead].concat();
    if !corrected.is_empty() {
        // The lane's mark may pass them, so they are filed; after `delete_waiting`, which may have taken their old record away.
        let again: Vec<Wait> = corrected.iter().copied().map(again).collect();
        Box::pin(file(session, &again)).await?;
    }
    Ok(Written {
        corrected,
        gone: marked.gone,
    })
}

fn split(positions: &[Position]) -> (Vec<Lane>, Vec<i64>) {
    positions.iter().map(|p| (p.lane, p.id)).unzip()
}

#[derive(Default)]
struct Marked {
    corrected: Vec<Position>,
    gone: usize,
}

async fn mark_sent(session: &Session, sent: &[Sent], keep: Keep) -> Result<Marked, OutboxError> {
    if sent.is_empty() {
        return Ok(Marked::default());
    }
    let (query, moved) = match keep {
        Keep::Marked => (&MARK_SENT, &MARK_MOVED),
        Keep::Deleted => (&DELETE_SENT, &DELETE_MOVED),
    };
    let (tids, ids): (Vec<Tid>, Vec<i64>) =
        sent.iter().map(|s| (Tid(s.ctid), s.position.id)).unzip();
    let mut marked = mark(session, query, keep, &[&tids, &ids]).await?;
    if marked == sent.len() as u64 {
        return Ok(Marked::default());
    }
    // Nobody but a person, or a person's tool, writes to a row that is pending.
    let (lanes, writers): (Vec<Lane>, Vec<Xid>) =
        sent.iter().map(|s| (s.position.lane, Xid(s.tx))).unzip();
    marked += mark(session, moved, keep, &[&lanes, &ids, &writers]).await?;
    if marked == sent.len() as u64 {
        return Ok(Marked::default());
    }
    let mut corrected = Vec::new();
    let mut unmarked = Vec::new();
    for row in &session.query(&UNMARKED, &[&lanes, &ids, &writers]).await? {
        let position = position(row)?;
        if get(row, "corrected")? {
            corrected.push(position);
        } else {
            unmarked.push(position);
        }
    }
    // One that is still there, and as it was, would be published again and again.
    let verb = match keep {
        Keep::Marked => "UPDATEs of sent_at",
        Keep::Deleted => "DELETEs",
    };
    proven(query.action, "message", verb, &unmarked)?;
    // The others were deleted or marked by hand: nothing is left to mark.
    let known = usize::try_from(marked).unwrap_or(usize::MAX) + corrected.len();
    Ok(Marked {
        gone: sent.len().saturating_sub(known),
        corrected,
    })
}

/// Returns how many are marked now, or deleted.
async fn mark(
    session: &Session,
    query: &Query,
    keep: Keep,
    params: Params<'_>,
) -> Result<u64, OutboxError> {
    if keep == Keep::Deleted {
        // The server counts a row only if it is deleted.
        return session.execute(query, params).await;
    }
    let mut marked = 0;
    let count = |row: Row| {
        marked += u64::from(get::<bool, _>(&row, 0_usize)?);
        Ok(())
    };
    session.each(query, params, count).await?;
    Ok(marked)
}

fn position(row: &Row) -> Result<Position, OutboxError> {
    Ok(Position {
        lane: get(row, "lane")?,
        id: get(row, "id")?,
    })
}

/// An error if any of these rows is not what the statement wrote.
pub(super) fn proven(
    action: &'static str,
    table: &'static str,
    verb: &'static str,
    unwritten: &[Position],
) -> Result<(), OutboxError> {
    match unwritten.first() {
        None => Ok(()),
        Some(first) => Err(OutboxError::NotWritten {
            action,
            table,
            verb,
            messages: unwritten.len(),
            position: first.id,
        }),
    }
}

/// It has all its attempts ahead of it, as it is now.
fn again(position: Position) -> Wait {
    Wait {
        position,
        tx: 0,
        cause: Cause::Retry,
        delay: Duration::ZERO,
        attempts: 0,
        reason: None,
        error: Some("corrected while a claim held it".to_owned()),
        held_for: None,
    }
}

pub(super) async fn delete_waiting(
    session: &Session,
    positions: &[Position],
) -> Result<(), OutboxError> {
    if positions.is_empty() {
        return Ok(());
    }
    let (lanes, ids) = split(positions);
    let deleted = session.execute(&DELETE_WAITING, &[&lanes, &ids]).await?;
    if deleted == positions.len() as u64 {
        return Ok(());
    }
    // A person may have deleted a record, or it moved with the corrected key of its message.
    let left = session.query(&STILL_WAITING, &[&lanes, &ids]).await?;
    let left: Vec<Position> = left.iter().map(position).collect::<Result<_, _>>()?;
    proven(DELETE_WAITING.action, "waiting", "DELETEs", &left)
}

/// Files the messages. Returns those that somebody corrected meanwhile.
async fn wait(session: &Session, wait: &[Wait]) -> Result<Vec<Position>, OutboxError> {
    if wait.is_empty() {
        return Ok(Vec::new());
    }
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = wait
        .iter()
        .map(|w| (w.position.lane, w.position.id))
        .unzip();
    let writers: Vec<Xid> = wait.iter().map(|w| Xid(w.tx)).collect();
    Box::pin(file(session, wait)).await?;
    let changed = session.query(&CHANGED, &[&lanes, &ids, &writers]).await?;
    changed.iter().map(position).collect()
}

async fn file(session: &Session, wait: &[Wait]) -> Result<(), OutboxError> {
    let positions: Vec<Position> = wait.iter().map(|w| w.position).collect();
    let (lanes, ids) = split(&positions);
    let causes: Vec<&str> = wait.iter().map(|w| w.cause.as_str()).collect();
    let delays: Vec<i64> = wait.iter().map(|w| millis(w.delay)).collect();
    let attempts: Vec<i32> = wait.iter().map(|w| saturated(w.attempts)).collect();
    let reasons: Vec<Option<&str>> = wait.iter().map(|w| w.reason.map(|r| r.as_str())).collect();
    let errors: Vec<Option<&str>> = wait.iter().map(|w| w.error.as_deref()).collect();
    let (destinations, probes): (Vec<Option<i64>>, Vec<Option<i32>>) = wait
        .iter()
        .map(|w| match w.held_for {
            Some((destination, failures)) => (Some(destination.0), Some(saturated(failures))),
            None => (None, None),
        })
        .unzip();
    let mut unfiled: HashMap<Position, &Wait> = wait.iter().map(|w| (w.position, w)).collect();
    let mut unwritten = Vec::new();
    let prove = |row: Row| {
        let position = position(&row)?;
        if let Some(wait) = unfiled.remove(&position)
            && !is_filed(&row, wait)?
        {
            unwritten.push(position);
        }
        Ok(())
    };
    let params: Params<'_> = &[
        &lanes,
        &ids,
        &causes,
        &delays,
        &attempts,
        &reasons,
        &errors,
        &destinations,
        &probes,
    ];
    session.each(&WAIT, params, prove).await?;
    proven(WAIT.action, "waiting", "INSERTs and UPDATEs", &unwritten)?;
    let left = unfiled.into_keys().collect();
    filed(session, &WAIT, "waiting", "waits", left).await
}

/// A record that is due earlier would be published again and again; one that counts fewer attempts would never die.
fn is_filed(row: &Row, wait: &Wait) -> Result<bool, OutboxError> {
    let in_ms: Option<i64> = get(row, "in_ms")?;
    let due = get(row, "is_own")?
        && match wait.cause {
            Cause::Retry => in_ms.is_some_and(|ms| ms >= millis(wait.delay)),
            Cause::Scheduled => in_ms.is_some(),
            Cause::Behind | Cause::Held => in_ms.is_none(),
        };
    Ok(due
        && get::<&str, _>(row, "cause")? == wait.cause.as_str()
        && get::<i32, _>(row, "attempts")? == saturated(wait.attempts))
}

/// Messages for which the statement returned no record. Somebody may have deleted the message meanwhile, or corrected its key,
/// so that it is in another lane. A message that is still there has no record, or its record is as it was.
async fn filed(
    session: &Session,
    query: &Query,
    table: &'static str,
    recorded: &'static str,
    unfiled: Vec<Position>,
) -> Result<(), OutboxError> {
    if unfiled.is_empty() {
        return Ok(());
    }
    let (lanes, ids) = split(&unfiled);
    let rows = session.query(&UNFILED, &[&lanes, &ids]).await?;
    let there: Vec<Position> = rows.iter().map(position).collect::<Result<_, _>>()?;
    let verb = match rows.first().map(|row| get(row, recorded)).transpose()? {
        Some(true) => "UPDATEs",
        Some(false) | None => "INSERTs",
    };
    proven(query.action, table, verb, &there)
}

/// Files the messages. Returns those that somebody corrected meanwhile; they are not filed.
async fn mark_dead(session: &Session, dead: &[DeadLetter]) -> Result<Vec<Position>, OutboxError> {
    if dead.is_empty() {
        return Ok(Vec::new());
    }
    let positions: Vec<Position> = dead.iter().map(|d| d.position).collect();
    let (lanes, ids) = split(&positions);
    let writers: Vec<Xid> = dead.iter().map(|d| Xid(d.tx)).collect();
    let reasons: Vec<&str> = dead.iter().map(|d| d.reason.as_str()).collect();
    let attempts: Vec<i32> = dead.iter().map(|d| saturated(d.attempts)).collect();
    let errors: Vec<&str> = dead.iter().map(|d| d.error.as_str()).collect();
    let replays: Vec<bool> = dead.iter().map(|d| d.replay).collect();
    let params: Params<'_> = &[
        &lanes, &ids, &writers, &reasons, &attempts, &errors, &replays,
    ];
    let rows = session.query(&MARK_DEAD, params).await?;
    let mut unfiled: HashSet<Position> = positions.into_iter().collect();
    let mut unwritten = Vec::new();
    for row in &rows {
        let position = position(row)?;
        unfiled.remove(&position);
        // A record of the message keeps it from being published, whatever else it says. That of an earlier message does not.
        if !get(row, "is_own")? {
            unwritten.push(position);
        }
    }
    proven(MARK_DEAD.action, "dead", "INSERTs and UPDATEs", &unwritten)?;
    if unfiled.is_empty() {
        return Ok(Vec::new());
    }
    let changed = session.query(&CHANGED, &[&lanes, &ids, &writers]).await?;
    let changed: Vec<Position> = changed.iter().map(position).collect::<Result<_, _>>()?;
    let corrected: Vec<Position> = changed
        .into_iter()
        .filter(|position| unfiled.remove(position))
        .collect();
    let left = unfiled.into_iter().collect();
    filed(session, &MARK_DEAD, "dead", "dead", left).await?;
    Ok(corrected)
}

pub(super) async fn release(
    session: &Session,
    keys: &[(Lane, i64)],
    at_once: usize,
) -> Result<(), OutboxError> {
    if keys.is_empty() {
        return Ok(());
    }
    let (lanes, hashes): (Vec<Lane>, Vec<i64>) = keys.iter().copied().unzip();
    let params: Params<'_> = &[&lanes, &hashes, &(at_once as i64)];
    // Somebody may change a record between the choice and its update. The second choice no longer contains that record.
    let mut left = 0;
    for _ in 0..2 {
        let (chosen, written) = released(&session.query(&RELEASE, params).await?)?;
        left = chosen - written;
        if left == 0 {
            return Ok(());
        }
    }
    Err(OutboxError::NotReleased {
        action: RELEASE.action,
        messages: left,
    })
}

/// How many records were to become due, and how many did.
pub(super) fn released(rows: &[Row]) -> Result<(i64, i64), OutboxError> {
    match rows.first() {
        Some(row) => Ok((get(row, "chosen")?, get(row, "written")?)),
        None => Ok((0, 0)),
    }
}

/// Moves the marks of lanes that this session holds.
async fn advance(session: &Session, marks: &[(Lane, Mark)]) -> Result<(), OutboxError> {
    if marks.is_empty() {
        return Ok(());
    }
    let lanes: Vec<Lane> = marks.iter().map(|(lane, _)| *lane).collect();
    let low: Vec<i64> = marks.iter().map(|(_, m)| m.low_water).collect();
    let candidates: Vec<Option<i64>> = marks
        .iter()
        .map(|(_, m)| m.candidate.map(|c| c.position))
        .collect();
    let txs: Vec<Option<i64>> = marks
        .iter()
        .map(|(_, m)| m.candidate.map(|c| c.tx))
        .collect();
    let mut unwritten: Vec<Lane> = lanes.clone();
    let prove = |row: Row| {
        let lane: Lane = get(&row, "lane")?;
        if get(&row, "written")? {
            unwritten.retain(|other| *other != lane);
        }
        Ok(())
    };
    let params: Params<'_> = &[&lanes, &low, &candidates, &txs];
    session.each(&ADVANCE_LANE, params, prove).await?;
    marks_proven(ADVANCE_LANE.action, &unwritten)
}

/// An error if a mark is not what the statement wrote. This session holds the lanes, so nobody else changed it.
pub(super) fn marks_proven(action: &'static str, unwritten: &[Lane]) -> Result<(), OutboxError> {
    match unwritten.first() {
        None => Ok(()),
        Some(lane) => Err(OutboxError::MarkNotWritten {
            action,
            lanes: unwritten.len(),
            lane: *lane,
        }),
    }
}

fn millis(delay: Duration) -> i64 {
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
}

fn saturated(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}
