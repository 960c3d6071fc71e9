//! Settle: every outcome of a claim, written in the claim's own transaction, then COMMIT.

use std::time::Duration;

use outbox_core::{
    message::{Lane, Position},
    settlement::{Cause, Sent, Settlement, Wait},
};
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    ctid::{Tid, Xid},
    row::get,
    session::{Query, Session},
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

/// Writes the outcomes and commits. After an error nothing of it is to be trusted: the session rolls back or, when
/// the COMMIT itself timed out, the outcome is unknown and the messages may be published again. Returns how many sent
/// messages are not marked, because they were corrected meanwhile.
pub async fn settle(
    session: &Session,
    settlement: &Settlement,
    keep: Keep,
    released_at_once: usize,
) -> Result<usize, OutboxError> {
    // Their order matters only between the removals from outbox.waiting and the release; all are one transaction.
    // Boxed: six statements at once are large. Biased: the first one that fails makes the others fail, and is the one to say.
    let (corrected, ..) = Box::pin(async {
        tokio::try_join!(
            biased;
            mark_sent(session, &settlement.sent, keep),
            delete_waiting(session, &settlement.delete_waiting),
            wait(session, &settlement.wait),
            mark_dead(session, settlement),
            release(session, &settlement.release, released_at_once),
            advance(session, settlement),
        )
    })
    .await?;
    if !corrected.is_empty() {
        tracing::warn!(
            messages = corrected.len(),
            "messages were corrected while they were published; they are published again, as they are now"
        );
        // The lane's mark may pass them, so they are filed; after `delete_waiting`, which may have taken their old record away.
        Box::pin(wait(session, &corrected)).await?;
    }
    failpoint::reach("settle.before_commit").await;
    session.commit().await?;
    failpoint::reach("settle.after_commit").await;
    Ok(corrected.len())
}

fn split(positions: &[Position]) -> (Vec<Lane>, Vec<i64>) {
    positions.iter().map(|p| (p.lane, p.id)).unzip()
}

/// Returns those that are not marked: somebody has corrected them since the claim read them, and what was published is not
/// what they are.
async fn mark_sent(session: &Session, sent: &[Sent], keep: Keep) -> Result<Vec<Wait>, OutboxError> {
    let mut corrected = Vec::new();
    if sent.is_empty() {
        return Ok(corrected);
    }
    let (query, moved) = match keep {
        Keep::Marked => (&MARK_SENT, &MARK_MOVED),
        Keep::Deleted => (&DELETE_SENT, &DELETE_MOVED),
    };
    let (tids, ids): (Vec<Tid>, Vec<i64>) =
        sent.iter().map(|s| (Tid(s.ctid), s.position.id)).unzip();
    let mut marked = session.execute(query, &[&tids, &ids]).await?;
    if marked == sent.len() as u64 {
        return Ok(corrected);
    }
    // Nobody but a person, or a person's tool, writes to a row that is pending.
    let (lanes, writers): (Vec<Lane>, Vec<Xid>) =
        sent.iter().map(|s| (s.position.lane, Xid(s.tx))).unzip();
    marked += session.execute(moved, &[&lanes, &ids, &writers]).await?;
    if marked == sent.len() as u64 {
        return Ok(corrected);
    }
    let mut unmarked = Vec::new();
    for row in &session.query(&UNMARKED, &[&lanes, &ids, &writers]).await? {
        let position = Position {
            lane: get(row, "lane")?,
            id: get(row, "id")?,
        };
        if get(row, "corrected")? {
            corrected.push(again(position));
        } else {
            unmarked.push(position);
        }
    }
    // One that is still there, and as it was, would be published again and again.
    if let Some(first) = unmarked.first() {
        return Err(OutboxError::NotMarked {
            messages: unmarked.len(),
            position: first.id,
        });
    }
    // Deleted or marked by hand: nothing is left to mark.
    if marked + corrected.len() as u64 != sent.len() as u64 {
        tracing::warn!(
            confirmed = sent.len(),
            marked,
            "rows changed under a held lane: were they deleted or marked by hand?"
        );
    }
    Ok(corrected)
}

fn again(position: Position) -> Wait {
    Wait {
        position,
        cause: Cause::Retry,
        delay: Duration::ZERO,
        attempts: 0,
        reason: None,
        error: Some("corrected while it was published".to_owned()),
        held_for: None,
    }
}

async fn delete_waiting(session: &Session, positions: &[Position]) -> Result<(), OutboxError> {
    if positions.is_empty() {
        return Ok(());
    }
    let (lanes, ids) = split(positions);
    session
        .execute(&DELETE_WAITING, &[&lanes, &ids])
        .await
        .map(drop)
}

async fn wait(session: &Session, wait: &[Wait]) -> Result<(), OutboxError> {
    if wait.is_empty() {
        return Ok(());
    }
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
    session
        .execute(
            &WAIT,
            &[
                &lanes,
                &ids,
                &causes,
                &delays,
                &attempts,
                &reasons,
                &errors,
                &destinations,
                &probes,
            ],
        )
        .await
        .map(drop)
}

async fn mark_dead(session: &Session, settlement: &Settlement) -> Result<(), OutboxError> {
    let dead = &settlement.dead;
    if dead.is_empty() {
        return Ok(());
    }
    let positions: Vec<Position> = dead.iter().map(|d| d.position).collect();
    let (lanes, ids) = split(&positions);
    let reasons: Vec<&str> = dead.iter().map(|d| d.reason.as_str()).collect();
    let attempts: Vec<i32> = dead.iter().map(|d| saturated(d.attempts)).collect();
    let errors: Vec<&str> = dead.iter().map(|d| d.error.as_str()).collect();
    let replays: Vec<bool> = dead.iter().map(|d| d.replay).collect();
    session
        .execute(
            &MARK_DEAD,
            &[&lanes, &ids, &reasons, &attempts, &errors, &replays],
        )
        .await
        .map(drop)
}

async fn release(
    session: &Session,
    keys: &[(Lane, i64)],
    at_once: usize,
) -> Result<(), OutboxError> {
    if keys.is_empty() {
        return Ok(());
    }
    let (lanes, hashes): (Vec<Lane>, Vec<i64>) = keys.iter().copied().unzip();
    session
        .execute(&RELEASE, &[&lanes, &hashes, &(at_once as i64)])
        .await
        .map(drop)
}

async fn advance(session: &Session, settlement: &Settlement) -> Result<(), OutboxError> {
    let marks = &settlement.marks;
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
    session
        .execute(&ADVANCE_LANE, &[&lanes, &low, &candidates, &txs])
        .await
        .map(drop)
}

fn millis(delay: Duration) -> i64 {
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
}

fn saturated(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}
