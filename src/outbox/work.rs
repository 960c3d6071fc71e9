//! Which lanes have work, seen without a lock.

use std::{collections::HashMap, time::Duration};

use outbox_core::message::Lane;
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

const SCOUT: Query = Query {
    action: "look for work",
    sql: include_str!("sql/scout.sql"),
    types: &[Type::INT2_ARRAY],
};

const UNTIDY: Query = Query {
    action: "look for marks that lag",
    sql: include_str!("sql/untidy.sql"),
    types: &[],
};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Lanes with a message to publish or to file now.
    pub lanes: Vec<Lane>,
    /// When the next waiting message falls due.
    pub next_due: Option<Duration>,
    /// Lanes that are not in `outbox.lane`: nobody can work them.
    pub missing: Vec<Lane>,
}

/// Looks at `lanes` only.
pub async fn find(session: &Session, lanes: &[Lane]) -> Result<Work, OutboxError> {
    let mut work = Work {
        missing: lanes.to_vec(),
        ..Work::default()
    };
    for row in session.query(&SCOUT, &[&lanes]).await? {
        // A server that was demoted still answers, with work that nobody can do: the new primary has it.
        if get(&row, "read_only")? {
            let action = SCOUT.action;
            return Err(OutboxError::ReadOnly { action });
        }
        let lane: Lane = get(&row, "lane")?;
        work.missing.retain(|missing| *missing != lane);
        let fresh: bool = get(&row, "fresh")?;
        let due_in_ms: Option<i64> = get(&row, "due_in_ms")?;
        if fresh || due_in_ms.is_some_and(|ms| ms <= 0) {
            work.lanes.push(lane);
        } else if let Some(ms) = due_in_ms.and_then(|ms| u64::try_from(ms).ok()) {
            let due = Duration::from_millis(ms);
            work.next_due = Some(work.next_due.map_or(due, |next| next.min(due)));
        }
    }
    Ok(work)
}

/// Lanes whose low-water mark lags, each with its last visible position above the mark.
pub async fn untidy(session: &Session) -> Result<HashMap<Lane, Option<i64>>, OutboxError> {
    session
        .query(&UNTIDY, &[])
        .await?
        .iter()
        .map(|row| Ok((get(row, "lane")?, get(row, "last")?)))
        .collect()
}
