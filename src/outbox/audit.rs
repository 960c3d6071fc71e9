//! The audit: finds unsent messages that no claim will ever read, and files them so that they are sent.
//!
//! **Why.** A mark (`low_water`) hides the rows at or below it. Producers cannot write there, but people and their tools
//! can: a sequence is restarted or cached, rows are copied back, `outbox.waiting` or `outbox.dead` is truncated, `sent_at`
//! is set back to NULL, a key is corrected. Nothing else would find these rows.
//!
//! **Authority.** A message is *stranded* when it is unsent, at or below its lane's mark, and neither waiting nor dead.
//! A settle moves marks and rows in one transaction, so a row that one snapshot shows as stranded is stranded. The audit
//! locks the row's lane, checks the row again under that lock, and files it.
//!
//! **Failures.** A crash rolls the filing back, and the next audit finds the row again. The audit keeps no state outside
//! the rows.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use outbox_core::{
    claim::Ctid,
    message::{Lane, Position},
};
use tokio_postgres::{error::SqlState, types::Type};

use super::{
    OutboxError,
    claim::LOCK_TABLES,
    ctid::Tid,
    row::get,
    session::{Query, Session},
    settle::proven,
};

const REUSED: Query = Query {
    action: "look for positions that were used twice",
    sql: include_str!("sql/audit_reused.sql"),
    types: &[Type::INT8, Type::FLOAT8],
};
const SIGNS: Query = Query {
    action: "look for signs of changed tables",
    sql: include_str!("sql/audit_signs.sql"),
    types: &[],
};
const SIZE: Query = Query {
    action: "measure the tables to audit",
    sql: include_str!("sql/audit_size.sql"),
    types: &[],
};
const WALK: Query = Query {
    action: "audit messages",
    sql: include_str!("sql/audit_walk.sql"),
    types: &[Type::TID, Type::TID],
};
const RELEASE: Query = Query {
    action: "audit waiting messages",
    sql: include_str!("sql/audit_release.sql"),
    types: &[Type::TID, Type::TID, Type::FLOAT8],
};
const UNSENT: Query = Query {
    action: "audit replays of unsent messages",
    sql: include_str!("sql/audit_unsent.sql"),
    types: &[Type::TID, Type::TID],
};
const TIMES: Query = Query {
    action: "audit times of waiting messages",
    sql: include_str!("sql/audit_times.sql"),
    types: &[Type::TID, Type::TID],
};
const FIND: Query = Query {
    action: "look for messages that moved",
    sql: include_str!("sql/audit_find.sql"),
    types: &[Type::INT8_ARRAY],
};
const HOLD: Query = Query {
    action: "hold lanes to file stranded messages",
    sql: include_str!("sql/audit_hold.sql"),
    types: &[Type::INT2_ARRAY],
};
const HOLD_ONE: Query = Query {
    action: "wait for a lane to file stranded messages",
    sql: include_str!("sql/audit_hold_one.sql"),
    types: &[Type::INT2],
};
const FILE: Query = Query {
    action: "file stranded messages",
    sql: include_str!("sql/audit_file.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};
const RECORD: Query = Query {
    action: "report the audit to outbox.relay",
    sql: include_str!("sql/audit_record.sql"),
    types: &[Type::TEXT, Type::BOOL, Type::INT8],
};
const ADD_LANES: Query = Query {
    action: "put back missing lanes",
    sql: include_str!("sql/add_lanes.sql"),
    types: &[Type::INT2_ARRAY],
};
const LEADS: Query = Query {
    action: "ask who goes on auditing",
    sql: include_str!("sql/audit_leads.sql"),
    types: &[Type::TEXT],
};

/// What tells that marks and messages may no longer fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct Signs {
    /// The tables' and the sequence's files: TRUNCATE, RESTART and rewrites change them.
    files: Option<String>,
    /// CACHE, INCREMENT and CYCLE of the sequence.
    properties: Option<String>,
    drawn: i64,
    /// The server's clock, seconds.
    clock: f64,
}

/// What two readings of the signs show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alarm {
    /// Tables or the sequence changed.
    pub changed: bool,
    /// New messages get positions that were drawn before.
    pub restarted: bool,
    /// Perhaps they do: the files of the messages and of the sequence are new. TRUNCATE ... RESTART IDENTITY does that, and
    /// positions may have passed the old ones since; but so does SET UNLOGGED, which loses no position. See `reused`.
    pub renewed: bool,
    /// The server's clock was set back, so times in `outbox.waiting` may lie ahead.
    pub clock: bool,
}

/// A clock that is only corrected goes back by less.
const CLOCK_STEP_S: f64 = 1.0;

impl Signs {
    /// `self` is the reading before `now`.
    pub fn alarm(&self, now: &Self) -> Alarm {
        let back = now.drawn < self.drawn;
        let new_file = |table| self.file(table) != now.file(table);
        Alarm {
            changed: self.files != now.files || self.properties != now.properties || back,
            restarted: back,
            renewed: new_file("message=") && new_file("message_id_seq="),
            clock: now.clock < self.clock - CLOCK_STEP_S,
        }
    }

    fn file(&self, table: &str) -> Option<&str> {
        let files = self.files.as_deref().unwrap_or_default();
        files.split(' ').find(|file| file.starts_with(table))
    }
}

impl Alarm {
    pub fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// Whether a message that was written after the reading `before` has a position that was drawn before it.
pub async fn reused(session: &Session, before: &Signs) -> Result<bool, OutboxError> {
    let rows = session
        .query(&REUSED, &[&before.drawn, &before.clock])
        .await?;
    rows.first().map_or(Ok(false), |row| get(row, "reused"))
}

pub async fn signs(session: &Session) -> Result<Signs, OutboxError> {
    let rows = session.query(&SIGNS, &[]).await?;
    let row = rows.first().ok_or(OutboxError::Unusable {
        action: SIGNS.action,
        why: "no row was returned".to_owned(),
    })?;
    Ok(Signs {
        files: get(row, "files")?,
        properties: get(row, "properties")?,
        drawn: get(row, "drawn")?,
        clock: get(row, "clock")?,
    })
}

/// The table that a walk reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Message,
    Waiting,
}

/// Pages of both tables, and the number of writes that the server has counted on the tables of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub message: u32,
    pub waiting: u32,
    pub writes: i64,
}

pub async fn size(session: &Session) -> Result<Size, OutboxError> {
    let rows = session.query(&SIZE, &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Size::default());
    };
    let pages = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Size {
        message: pages(get(row, "message")?),
        waiting: pages(get(row, "waiting")?),
        writes: get(row, "writes")?,
    })
}

/// Where a page begins: no row has line 0.
fn page(block: u32) -> Tid {
    Tid(Ctid { block, line: 0 })
}

/// Stranded messages on the pages from `from` up to, and without, `to`.
pub async fn walk(session: &Session, from: u32, to: u32) -> Result<Vec<Position>, OutboxError> {
    let rows = session.query(&WALK, &[&page(from), &page(to)]).await?;
    rows.iter().map(position).collect()
}

/// Makes records due that wait for a message that is gone, longer than the longest back-off, or as replays of unsent messages,
/// on these pages of `outbox.waiting`. Returns their number.
pub async fn release(
    session: &Session,
    from: u32,
    to: u32,
    longest: Duration,
) -> Result<u64, OutboxError> {
    let longest = longest.as_secs_f64();
    let (from, to) = (page(from), page(to));
    let unsent = session.execute(&UNSENT, &[&from, &to]).await?;
    let released = session.execute(&RELEASE, &[&from, &to, &longest]).await?;
    Ok(unsent + released)
}

/// Corrects the times of records on these pages of `outbox.waiting`. Returns their number.
pub async fn correct_times(session: &Session, from: u32, to: u32) -> Result<u64, OutboxError> {
    session.execute(&TIMES, &[&page(from), &page(to)]).await
}

/// The stranded messages among these ids, in any lane.
pub async fn find(session: &Session, ids: &[i64]) -> Result<Vec<Position>, OutboxError> {
    let rows = session.query(&FIND, &[&ids]).await?;
    rows.iter().map(position).collect()
}

fn position(row: &tokio_postgres::Row) -> Result<Position, OutboxError> {
    Ok(Position {
        lane: get(row, "lane")?,
        id: get(row, "id")?,
    })
}

/// The result of filing stranded messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filed {
    pub filed: u64,
    /// Messages whose lanes another session held.
    pub left: Vec<Position>,
    /// Messages that are stranded nevertheless: a trigger or a rule dropped their records.
    pub dropped: Vec<Position>,
}

impl Filed {
    /// An error if records were dropped.
    pub fn proven(&self) -> Result<(), OutboxError> {
        proven(FILE.action, "waiting", "INSERTs and UPDATEs", &self.dropped)
    }
}

/// Files the messages of every lane that no other session holds.
pub async fn file(session: &Session, found: &[Position]) -> Result<Filed, OutboxError> {
    let lanes: Vec<Lane> = found
        .iter()
        .map(|p| p.lane)
        .collect::<BTreeSet<Lane>>()
        .into_iter()
        .collect();
    transaction(session, found, &HOLD, &lanes, &[&lanes]).await
}

/// Files the messages of one lane. It waits a moment for the lane, because a lane with a backlog is never free for long.
pub async fn file_lane(
    session: &Session,
    lane: Lane,
    found: &[Position],
) -> Result<Filed, OutboxError> {
    transaction(session, found, &HOLD_ONE, &[lane], &[&lane]).await
}

async fn transaction(
    session: &Session,
    found: &[Position],
    hold: &Query,
    lanes: &[Lane],
    params: super::session::Params<'_>,
) -> Result<Filed, OutboxError> {
    if lanes.is_empty() {
        return Ok(Filed::default());
    }
    let filing = async {
        // A lane is waited for no longer than `Database::yielding` says: whoever has it may want the table.
        session.begin_with(LOCK_TABLES).await?;
        let rows = session.query(hold, params).await?;
        let held: BTreeSet<Lane> = rows
            .iter()
            .map(|row| get(row, "lane"))
            .collect::<Result<_, _>>()?;
        let (now, left): (Vec<Position>, Vec<Position>) =
            found.iter().partition(|p| held.contains(&p.lane));
        let lanes: Vec<Lane> = now.iter().map(|p| p.lane).collect();
        let ids: Vec<i64> = now.iter().map(|p| p.id).collect();
        let filed = session.execute(&FILE, &[&lanes, &ids]).await?;
        // Fewer, if somebody has sent or filed some since the walk.
        let mut dropped = match usize::try_from(filed) {
            Ok(filed) if filed == now.len() => Vec::new(),
            _ => find(session, &ids).await?,
        };
        let now: BTreeSet<Position> = now.into_iter().collect();
        dropped.retain(|position| now.contains(position));
        session.commit().await?;
        Ok(Filed {
            filed,
            left,
            dropped,
        })
    };
    match filing.await {
        Ok(filed) => Ok(filed),
        // Another session truncates, migrates or holds the lane. The audit tries again later.
        Err(error) if is_locked(&error) => {
            session.rollback().await?;
            Ok(Filed {
                left: found.to_vec(),
                ..Filed::default()
            })
        }
        Err(error) => {
            // The first error is the one to report; a lost connection rolls back by itself.
            let _ = session.rollback().await;
            Err(error)
        }
    }
}

fn is_locked(error: &OutboxError) -> bool {
    matches!(error, OutboxError::Database { source, .. }
        if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
}

/// Whether it is this relay that goes on auditing.
pub async fn leads(session: &Session, instance: &str) -> Result<bool, OutboxError> {
    match session.query(&LEADS, &[&instance]).await?.first() {
        Some(row) => get(row, "leads"),
        None => Ok(false),
    }
}

/// Reports the audit in `outbox.relay`, for people. `whole`: an audit of all messages has just ended.
pub async fn record(
    session: &Session,
    instance: &str,
    whole: bool,
    stranded: usize,
) -> Result<(), OutboxError> {
    let stranded = i64::try_from(stranded).unwrap_or(i64::MAX);
    session
        .execute(&RECORD, &[&instance, &whole, &stranded])
        .await
        .map(drop)
}

/// Puts back lanes that are missing from `outbox.lane`. Returns their number.
pub async fn add_lanes(session: &Session, lanes: &[Lane]) -> Result<u64, OutboxError> {
    session.execute(&ADD_LANES, &[&lanes]).await
}

/// The result of a bounded look at the table.
#[derive(Debug, Clone, Copy)]
pub struct Glance {
    pub looked_at: u32,
    pub pages: u32,
    pub stranded: usize,
}

/// Walks pages from the beginning for this long, and files nothing.
pub async fn glance(session: &Session, within: Duration) -> Result<Glance, OutboxError> {
    const PAGES: u32 = 512;
    let began = Instant::now();
    let pages = size(session).await?.message;
    let (mut page, mut stranded) = (0, 0);
    while page < pages && began.elapsed() < within {
        let to = page.saturating_add(PAGES);
        stranded += walk(session, page, to).await?.len();
        page = to;
    }
    Ok(Glance {
        looked_at: page.min(pages),
        pages,
        stranded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(files: &str, properties: &str, drawn: i64) -> Signs {
        Signs {
            files: Some(files.to_owned()),
            properties: Some(properties.to_owned()),
            drawn,
            clock: 1000.0,
        }
    }

    #[test]
    fn what_changed_behind_the_marks_is_an_alarm_and_new_positions_are_none() {
        let before = signs("message=1", "1 1 f", 100);
        assert!(!before.alarm(&signs("message=1", "1 1 f", 100)).is_any());
        assert!(!before.alarm(&signs("message=1", "1 1 f", 101)).is_any());
        assert!(before.alarm(&signs("message=1", "1 1 f", 99)).changed);
        assert!(before.alarm(&signs("message=2", "1 1 f", 200)).changed);
        assert!(before.alarm(&signs("message=1", "50 1 f", 200)).changed);
    }

    #[test]
    fn positions_that_begin_again_are_told_apart_from_a_rewritten_table() {
        let before = signs("lane=1 message=2 message_id_seq=3", "1 1 f", 100);
        let rewritten = signs("lane=1 message=9 message_id_seq=3", "1 1 f", 100);
        let cached = signs("lane=1 message=2 message_id_seq=9", "50 1 f", 100);
        let restarted = signs("lane=1 message=9 message_id_seq=9", "1 1 f", 200);
        let back = signs("lane=1 message=2 message_id_seq=3", "1 1 f", 99);
        for other in [&rewritten, &cached] {
            let alarm = before.alarm(other);
            assert!(alarm.changed && !alarm.restarted && !alarm.renewed);
        }
        let perhaps = before.alarm(&restarted);
        assert!(perhaps.renewed && !perhaps.restarted);
        assert!(before.alarm(&back).restarted);
    }

    #[test]
    fn a_clock_that_is_set_back_is_an_alarm_and_one_that_is_corrected_is_none() {
        let before = signs("message=1", "1 1 f", 100);
        let at = |clock| Signs {
            clock,
            ..before.clone()
        };
        assert!(!before.alarm(&at(1001.0)).is_any());
        assert!(!before.alarm(&at(999.5)).is_any());
        assert!(before.alarm(&at(998.5)).clock);
        assert!(!before.alarm(&at(998.5)).changed);
    }
}
