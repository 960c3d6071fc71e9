//! Files a message as dead without a read, if the message cannot be read: its text has no equivalent in UTF-8, its page is
//! damaged, or its read takes longer than every time-out. Otherwise every claim that meets it would fail, and all messages of
//! these claims would wait.

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
use crate::failpoint;

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
    /// Whether a row that the claim read may have caused this error: then a read of fewer rows may succeed, and in the end one
    /// row is to blame. Only errors that depend on data count. A lock, a privilege, a changed function or a full disk says
    /// nothing about a row; if such errors counted, the relay would give up one good message after the other.
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

    /// A lack of time or memory, or a fault of the disk: a server in trouble reports these for good rows as well.
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

/// The position of the message that this lane's next claim reads first. The statement reads no column of that message.
pub async fn first(session: &Session, lane: Lane) -> Result<Option<Position>, OutboxError> {
    // Before the lane, as a claim does: a TRUNCATE of outbox.message updates all lanes, and would wait for this one while
    // this waits for the table.
    session.begin_with(LOCK_TABLES).await?;
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
    failpoint::reach("unreadable.lane_held").await;
    let rows = session.query(&FIRST, &[&lane, &mark]).await?;
    let id = rows.first().map(|row| get(row, "id")).transpose()?;
    Ok(id.map(|id| Position { lane, id }))
}

/// Files the message as dead if it is still the first of its lane. `false`: it is not, or another relay holds the lane.
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
