//! The state of the outbox, for people and for metrics.

use serde::Serialize;
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Status {
    pub pending: i64,
    pub due: i64,
    pub waiting: i64,
    pub dead: i64,
    pub oldest_due_age_seconds: f64,
    /// A count passed 10,000, so it is derived or cut.
    pub pending_is_capped: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct RelaySeen {
    pub instance: String,
    pub host: String,
    pub version: String,
    pub workers: i32,
    pub state: String,
    pub seen_seconds_ago: f64,
    /// Seconds since the relay last audited all messages; `None` before the first audit.
    pub audited_seconds_ago: Option<f64>,
    /// Stranded messages that the relay knows of and has not filed yet.
    pub stranded: i64,
}

const STATUS: Query = Query {
    action: "read outbox.status",
    sql: "SELECT pending, due, waiting, dead, oldest_due_age_seconds, pending_is_capped FROM outbox.status",
    types: &[],
};
const RELAYS: Query = Query {
    action: "read outbox.relay",
    // A role that may write to this table may write texts of any length.
    sql: "SELECT left(instance, 200) AS instance, left(host, 200) AS host, left(version, 50) AS version, workers, \
                 left(state, 50) AS state, \
                 extract(epoch FROM clock_timestamp() - seen_at)::double precision AS age, \
                 extract(epoch FROM clock_timestamp() - audited_at)::double precision AS audited, stranded \
          FROM outbox.relay WHERE seen_at > clock_timestamp() - interval '1 minute' AND isfinite(seen_at) ORDER BY instance",
    types: &[],
};
const BEAT: Query = Query {
    action: "report to outbox.relay",
    sql: "INSERT INTO outbox.relay AS r (instance, host, version, workers, state) VALUES ($1, $2, $3, $4, $5) \
          ON CONFLICT (instance) DO UPDATE SET state = excluded.state, seen_at = clock_timestamp()",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::INT4, Type::TEXT],
};
const LEAVE: Query = Query {
    action: "leave outbox.relay",
    // This also removes relays that died silently, more than a day ago.
    sql: "DELETE FROM outbox.relay WHERE instance = $1 OR seen_at < clock_timestamp() - interval '1 day'",
    types: &[Type::TEXT],
};

pub async fn status(session: &Session) -> Result<Status, OutboxError> {
    let rows = session.query(&STATUS, &[]).await?;
    let row = rows.first().ok_or(OutboxError::Unusable {
        action: "read outbox.status",
        why: "the view returned no row".to_owned(),
    })?;
    Ok(Status {
        pending: get(row, "pending")?,
        due: get(row, "due")?,
        waiting: get(row, "waiting")?,
        dead: get(row, "dead")?,
        oldest_due_age_seconds: get(row, "oldest_due_age_seconds")?,
        pending_is_capped: get(row, "pending_is_capped")?,
    })
}

/// Relays that reported within the last minute.
pub async fn relays(session: &Session) -> Result<Vec<RelaySeen>, OutboxError> {
    session
        .query(&RELAYS, &[])
        .await?
        .iter()
        .map(|row| {
            Ok(RelaySeen {
                instance: get(row, "instance")?,
                host: get(row, "host")?,
                version: get(row, "version")?,
                workers: get(row, "workers")?,
                state: get(row, "state")?,
                seen_seconds_ago: get(row, "age")?,
                audited_seconds_ago: get(row, "audited")?,
                stranded: get(row, "stranded")?,
            })
        })
        .collect()
}

/// Reports that this relay runs, and its state.
pub async fn beat(
    session: &Session,
    instance: &str,
    host: &str,
    workers: usize,
    state: &str,
) -> Result<(), OutboxError> {
    let workers = i32::try_from(workers).unwrap_or(i32::MAX);
    session
        .execute(
            &BEAT,
            &[
                &instance,
                &host,
                &env!("CARGO_PKG_VERSION"),
                &workers,
                &state,
            ],
        )
        .await
        .map(drop)
}

pub async fn leave(session: &Session, instance: &str) -> Result<(), OutboxError> {
    session.execute(&LEAVE, &[&instance]).await.map(drop)
}
