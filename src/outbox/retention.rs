//! Retention: sent messages are deleted when they have been kept long enough, in small steps that never hold what a
//! claim needs. Only rows at or below a lane's low-water mark are looked at, so no claim reads them any more.

use std::time::Duration;

use outbox_core::message::Lane;
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

const PRUNE_LANE: Query = Query {
    action: "prune sent messages",
    sql: include_str!("sql/prune_lane.sql"),
    types: &[Type::INT2, Type::INT8, Type::INT8, Type::FLOAT8],
};

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub deleted: u64,
    /// Where the next step of this lane begins.
    pub cursor: i64,
    /// More may be old enough.
    pub more: bool,
    /// It passed over unsent rows that are filed nowhere.
    pub stranded: bool,
}

/// Looks at up to `rows` rows of a lane above `cursor`. The cursor is the caller's, so that deleted rows that the
/// vacuum could not remove yet are not walked over again.
pub async fn prune_step(
    session: &Session,
    lane: Lane,
    cursor: i64,
    rows: u32,
    kept_for: Duration,
) -> Result<Step, OutboxError> {
    let found = session
        .query(
            &PRUNE_LANE,
            &[&lane, &cursor, &i64::from(rows), &kept_for.as_secs_f64()],
        )
        .await?;
    let Some(row) = found.first() else {
        return Ok(Step {
            deleted: 0,
            cursor,
            more: false,
            stranded: false,
        });
    };
    let looked: i64 = get(row, "looked")?;
    let deleted: i64 = get(row, "deleted")?;
    let next: i64 = get(row, "cursor")?;
    Ok(Step {
        deleted: u64::try_from(deleted).unwrap_or(0),
        cursor: next,
        more: looked >= i64::from(rows) && next > cursor,
        stranded: get(row, "stranded")?,
    })
}
