//! Files a message as dead without a read, if the message cannot be read: its text has no equivalent in UTF-8, its body is
//! damaged, or its read takes longer than every time-out. Otherwise every claim that meets it would fail, and all messages of
//! these claims would wait.
//!
//! A claim's read also uses indexes, `outbox.waiting` and `outbox.dead`. Damage there fails the read of good messages, one
//! after the other. So a message is to blame only if the server cannot read its row alone, by its place and without any other
//! relation. An error of an index or of the server itself is never a message's fault.

use outbox_core::{
    caution::PassedOver,
    claim::Ctid,
    message::{Lane, Position},
    reason::Reason,
    settlement::{DeadLetter, Settlement},
};
use tokio_postgres::{error::SqlState, types::Type};

use super::{
    OutboxError,
    claim::{self, LOCK_TABLES},
    ctid::{Tid, Xid},
    row::get,
    session::{Params, Query, Session},
    settle::{self, Keep},
};
use crate::failpoint;

const FIRST: Query = Query {
    action: "look for a message that cannot be read",
    sql: include_str!("sql/first_unread.sql"),
    types: &[
        Type::INT2,
        Type::INT8,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
    ],
};
const ALONE: Query = Query {
    action: "read one message alone",
    sql: include_str!("sql/read_alone.sql"),
    types: &[Type::TID, Type::INT8],
};
const RELATION: Query = Query {
    action: "look for a damaged relation",
    sql: include_str!("sql/damaged_relation.sql"),
    types: &[Type::OID, Type::OID],
};
const HOLD: Query = Query {
    action: "hold a lane",
    sql: "SELECT low_water FROM ONLY outbox.lane WHERE lane = $1 FOR UPDATE SKIP LOCKED",
    types: &[Type::INT2],
};
const WAITS: Query = Query {
    action: "look for a message that cannot be read",
    // The record of an earlier message at this position says nothing about this one.
    sql: "SELECT w.key_hash, coalesce(w.replay AND w.message_id = m.message_id, false) AS replay FROM outbox.waiting w \
          LEFT JOIN outbox.message m ON m.lane = w.lane AND m.id = w.id WHERE w.lane = $1 AND w.id = $2",
    types: &[Type::INT2, Type::INT8],
};

impl OutboxError {
    /// Whether a row that was read may have caused this error: then a read of fewer rows may succeed, and in the end one row is
    /// to blame. Only errors that depend on data count. A lock, a privilege, a changed function, a damaged index, a lack of
    /// memory or a full disk says nothing about a row; if such errors counted, the relay would give up one good message after
    /// the other.
    pub fn may_be_about_a_row(&self) -> bool {
        let Self::Database { action, source } = self else {
            return false;
        };
        if !claim::READS.contains(action) && *action != ALONE.action {
            return false;
        }
        let Some(code) = source.code().filter(|_| self.is_statement_refused()) else {
            return false;
        };
        // <https://www.postgresql.org/docs/current/errcodes-appendix.html>: data exception, program limit, internal error.
        let is_data = ["22", "54", "XX"]
            .iter()
            .any(|class| code.code().starts_with(class));
        *code != SqlState::INDEX_CORRUPTED && (is_data || self.is_a_time_out())
    }

    /// A read of fewer rows may succeed, whoever is to blame.
    pub fn is_of_many_rows(&self) -> bool {
        let too_much =
            |source: &tokio_postgres::Error| source.code() == Some(&SqlState::OUT_OF_MEMORY);
        self.may_be_about_a_row()
            || matches!(self, Self::Database { action, source } if claim::READS.contains(action) && too_much(source))
    }

    /// A server in trouble reports this for good rows as well.
    pub fn is_a_time_out(&self) -> bool {
        matches!(self, Self::Database { source, .. } if source.code() == Some(&SqlState::QUERY_CANCELED))
    }
}

/// The message that this lane's next claim reads first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    pub position: Position,
    place: Ctid,
    /// The transaction that wrote it.
    tx: u64,
}

/// Finds it. The statement reads no column of the message that may be stored outside of its row. `None`: no message, or another
/// relay holds the lane.
pub async fn first(
    session: &Session,
    lane: Lane,
    passed_over: &PassedOver,
) -> Result<Option<First>, OutboxError> {
    // Before the lane, as a claim does: a TRUNCATE of outbox.message updates all lanes, and would wait for this one while
    // this waits for the table.
    session.begin_with(LOCK_TABLES).await?;
    let found = first_held(session, lane, passed_over).await;
    session.rollback().await?;
    found
}

async fn first_held(
    session: &Session,
    lane: Lane,
    passed_over: &PassedOver,
) -> Result<Option<First>, OutboxError> {
    let held = session.query(&HOLD, &[&lane]).await?;
    let Some(mark) = held.first() else {
        return Ok(None);
    };
    let mark: i64 = get(mark, "low_water")?;
    failpoint::reach("unreadable.lane_held").await;
    let PassedOver {
        filed, new, keys, ..
    } = passed_over;
    let params: Params<'_> = &[&lane, &mark, filed, new, keys];
    let rows = session.query(&FIRST, params).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let id = get(row, "id")?;
    let place: Option<Tid> = get(row, "place")?;
    let tx: Option<Xid> = get(row, "tx")?;
    // A record without a message has nothing that could be unreadable.
    Ok(place.map(|place| First {
        position: Position { lane, id },
        place: place.0,
        tx: tx.map_or(0, |tx| tx.0),
    }))
}

/// Reads the message as a claim does, but alone and by its place. The inner error is the server's refusal.
pub async fn read_alone(
    session: &Session,
    first: First,
    max_payload_bytes: u64,
) -> Result<Result<(), OutboxError>, OutboxError> {
    let largest = i64::try_from(max_payload_bytes).unwrap_or(i64::MAX);
    let read = session
        .each(&ALONE, &[&Tid(first.place), &largest], |_| Ok(()))
        .await;
    match read {
        Err(error) if error.is_statement_refused() => Ok(Err(error)),
        read => read.map(Ok),
    }
}

/// The relation whose file the server's text names, in whatever language; `None` if it names none.
pub struct Damaged {
    pub name: String,
    /// It holds rows of `outbox.message`, or their long values.
    pub has_messages: bool,
    pub is_index: bool,
}

impl Damaged {
    /// For a person.
    pub fn remedy(&self) -> String {
        let name = &self.name;
        if self.is_index {
            format!(
                "{name} is an index: REINDEX INDEX {name}, and look for the cause of the damage"
            )
        } else {
            format!("the damage is in {name}: look for its cause, and restore it")
        }
    }
}

pub async fn damaged(
    session: &Session,
    error: &OutboxError,
) -> Result<Option<Damaged>, OutboxError> {
    let OutboxError::Database { source, .. } = error else {
        return Ok(None);
    };
    let text = source.as_db_error().map_or("", |db| db.message());
    let Some((tablespace, file)) = file_in(text) else {
        return Ok(None);
    };
    let rows = session.query(&RELATION, &[&tablespace, &file]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    Ok(Some(Damaged {
        name: get(row, "name")?,
        has_messages: get(row, "has_messages")?,
        is_index: get(row, "is_index")?,
    }))
}

/// Tablespace (0: the database's own) and number of the file that a text such as `invalid page in block 1 of relation
/// base/5/16402` names.
fn file_in(text: &str) -> Option<(u32, u32)> {
    let number = |word: &str| {
        let digits = word
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(word.len());
        word[..digits].parse().ok()
    };
    if let Some((_, path)) = text.split_once("base/") {
        return Some((0, number(path.split('/').nth(1)?)?));
    }
    let (_, path) = text.split_once("pg_tblspc/")?;
    // pg_tblspc/<tablespace>/<version>/<database>/<file>
    Some((number(path)?, number(path.split('/').nth(3)?)?))
}

/// Files the message as dead if it is still the first of its lane. `false`: it is not, somebody corrected it, or another relay
/// holds the lane.
pub async fn mark_dead(
    session: &Session,
    first: First,
    passed_over: &PassedOver,
    error: &str,
) -> Result<bool, OutboxError> {
    let position = first.position;
    session.begin_with(LOCK_TABLES).await?;
    if first_held(session, position.lane, passed_over).await? != Some(first) {
        session.rollback().await?;
        return Ok(false);
    }
    let waits = session
        .query(&WAITS, &[&position.lane, &position.id])
        .await?;
    let mut letter = DeadLetter {
        position,
        tx: first.tx,
        reason: Reason::Unreadable,
        attempts: 1,
        error: error.to_owned(),
        replay: false,
    };
    let mut written = Settlement::default();
    if let Some(row) = waits.first() {
        letter.replay = get(row, "replay")?;
        written.delete_waiting.push(position);
        let key: Option<i64> = get(row, "key_hash")?;
        written
            .release
            .extend(key.map(|hash| (position.lane, hash)));
    }
    written.dead.push(letter);
    let corrected = settle::settle(session, &written, Keep::Marked, 1000).await?;
    Ok(corrected.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_damaged_file_is_found_in_any_language() {
        let file = |text| file_in(text);
        assert_eq!(
            file("invalid page in block 1 of relation base/16384/16402"),
            Some((0, 16402))
        );
        assert_eq!(
            file("ungültige Seite in Block 3 von Relation »base/5/16402_fsm«"),
            Some((0, 16402))
        );
        assert_eq!(
            file("could not read block 7 in file \"base/5/2619.1\": read only 0 of 8192 bytes"),
            Some((0, 2619))
        );
        assert_eq!(
            file("invalid page in block 1 of relation pg_tblspc/16999/PG_15_202209061/16384/16402"),
            Some((16999, 16402))
        );
        for none in [
            "out of memory",
            "base/",
            "base/5",
            "base/5/x",
            "pg_tblspc/1/2",
        ] {
            assert_eq!(file(none), None, "{none}");
        }
    }
}
