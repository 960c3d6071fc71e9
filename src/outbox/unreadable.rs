//! A message that cannot be read is given up without being read: text that has no equivalent in UTF-8, a damaged page, a
//! row that takes longer than any time-out. Else every claim that meets it would fail, and all that is read beside it wait.

use outbox_core::{
    message::{Lane, Position},
    reason::Reason,
    settlement::{DeadLetter, Settlement},
};
use tokio_postgres::{error::SqlState, types::Type};

use super::{
    OutboxError,
    claim::{self, LOCK_TABLES},
    row::get,
    session::{Query, Session},
    settle::{self, Keep},
};

const FIRST: Query = Query {
    action: "look for a message that cannot be read",
    sql: include_str!("sql/first_unread.sql"),
    types: &[Type::INT2, Type::INT8],
};
const HOLD: Query = Query {
    action: "hold a lane",
    sql: "SELECT low_water FROM outbox.lane WHERE lane = $1 FOR UPDATE SKIP LOCKED",
    types: &[Type::INT2],
};
const WAITS: Query = Query {
    action: "look for a message that cannot be read",
    sql: "SELECT key_hash FROM outbox.waiting WHERE lane = $1 AND id = $2",
    types: &[Type::INT2, Type::INT8],
};

impl OutboxError {
    /// A claim failed because of what it read: fewer rows may do, and in the end one row is to blame. Only errors that depend
    /// on data are: a lock, a privilege, a function that somebody has changed or a full disk say nothing about a row, and
    /// would have one good message after the other given up.
    pub fn is_about_a_row(&self) -> bool {
        let Self::Database { action, source } = self else {
            return false;
        };
        let Some(code) = source.code() else {
            return false;
        };
        // <https://www.postgresql.org/docs/current/errcodes-appendix.html>: data exception, program limit, internal error.
        let is_data = ["22", "54", "XX"]
            .iter()
            .any(|class| code.code().starts_with(class));
        claim::READS.contains(action)
            && self.is_statement_refused()
            && (is_data || self.may_be_the_servers())
    }

    /// Too little time, memory or luck with a disk: a server in trouble says so of good rows as well.
    pub fn may_be_the_servers(&self) -> bool {
        let Self::Database { source, .. } = self else {
            return false;
        };
        matches!(
            source.code(),
            Some(&SqlState::QUERY_CANCELED | &SqlState::OUT_OF_MEMORY | &SqlState::IO_ERROR)
        )
    }
}

/// Where the message stands that this lane's next claim reads first. Nothing of it is read.
pub async fn first(session: &Session, lane: Lane) -> Result<Option<Position>, OutboxError> {
    session.begin().await?;
    let found = first_held(session, lane).await;
    session.rollback().await?;
    found
}

async fn first_held(session: &Session, lane: Lane) -> Result<Option<Position>, OutboxError> {
    let held = session.query(&HOLD, &[&lane]).await?;
    let Some(mark) = held.first() else {
        return Ok(None);
    };
    let mark: i64 = get(mark, "low_water")?;
    let rows = session.query(&FIRST, &[&lane, &mark]).await?;
    let id = rows.first().map(|row| get(row, "id")).transpose()?;
    Ok(id.map(|id| Position { lane, id }))
}

/// Gives it up if it still comes first. `false`: it does not, or another relay has the lane.
pub async fn mark_dead(
    session: &Session,
    position: Position,
    error: &str,
) -> Result<bool, OutboxError> {
    session.begin_with(LOCK_TABLES).await?;
    if first_held(session, position.lane).await? != Some(position) {
        session.rollback().await?;
        return Ok(false);
    }
    let waits = session
        .query(&WAITS, &[&position.lane, &position.id])
        .await?;
    let mut written = Settlement {
        dead: vec![DeadLetter {
            position,
            reason: Reason::Unreadable,
            attempts: 1,
            error: error.to_owned(),
            replay: false,
        }],
        ..Settlement::default()
    };
    if let Some(row) = waits.first() {
        written.delete_waiting.push(position);
        let key: Option<i64> = get(row, "key_hash")?;
        written
            .release
            .extend(key.map(|hash| (position.lane, hash)));
    }
    settle::settle(session, &written, Keep::Marked, 1000).await?;
    Ok(true)
}
