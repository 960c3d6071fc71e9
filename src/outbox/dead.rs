//! Dead messages: listed, redriven, discarded. Every change is recorded in `outbox.operation`, in its own
//! transaction: who, when, why, and which messages.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    claim::get,
    operation::{self, Operation},
    session::{Query, Session},
};
use crate::message::Lane;

/// Which dead messages; an empty filter means all of them.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub reasons: Vec<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub dead_for: Option<Duration>,
    pub message_ids: Vec<Uuid>,
}

#[derive(Debug, Serialize)]
pub struct DeadMessage {
    pub message_id: Uuid,
    pub position: i64,
    pub reason: String,
    pub attempts: i32,
    pub last_error: String,
    pub replay: bool,
    pub died_at: String,
    pub created_at: Option<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub content_type: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    pub body_size: i64,
}

const FILTER_TYPES: [Type; 7] = [
    Type::TEXT_ARRAY,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::FLOAT8,
    Type::UUID_ARRAY,
    Type::INT8,
];
const LIST: Query = Query {
    action: "list dead messages",
    sql: include_str!("sql/dead_list.sql"),
    types: &FILTER_TYPES,
};
const TAKE: Query = Query {
    action: "take dead messages",
    sql: include_str!("sql/dead_take.sql"),
    types: &FILTER_TYPES,
};
const COUNT: Query = Query {
    action: "count dead messages",
    sql: "SELECT count(*) AS n FROM outbox.dead d \
          LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id \
          WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1)) \
            AND ($2::text IS NULL OR m.aggregate_type = $2) \
            AND ($3::text IS NULL OR m.aggregate_id = $3) \
            AND ($4::text IS NULL OR m.event_type = $4) \
            AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second') \
            AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))",
    types: &[
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::FLOAT8,
        Type::UUID_ARRAY,
    ],
};
const REDRIVE: Query = Query {
    action: "redrive dead messages",
    sql: include_str!("sql/redrive.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::BOOL_ARRAY],
};
/// A message that was sent before (its replay died) is kept for the audit like any other sent one.
const DISCARD: Query = Query {
    action: "discard dead messages",
    sql: "DELETE FROM outbox.message m USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id) \
          WHERE m.lane = s.lane AND m.id = s.id AND m.sent_at IS NULL",
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

/// Messages changed in one transaction at most.
const STEP: i64 = 1000;

pub async fn list(
    session: &Session,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<DeadMessage>, OutboxError> {
    let seconds = filter.dead_for.map(|d| d.as_secs_f64());
    let rows = session
        .query(
            &LIST,
            &[
                &filter.reasons,
                &filter.aggregate_type,
                &filter.aggregate_id,
                &filter.event_type,
                &seconds,
                &filter.message_ids,
                &limit,
            ],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(DeadMessage {
                message_id: get(row, "message_id")?,
                position: get(row, "position")?,
                reason: get(row, "reason")?,
                attempts: get(row, "attempts")?,
                last_error: get(row, "last_error")?,
                replay: get(row, "replay")?,
                died_at: get(row, "died_at")?,
                created_at: get(row, "created_at")?,
                aggregate_type: get(row, "aggregate_type")?,
                aggregate_id: get(row, "aggregate_id")?,
                event_type: get(row, "event_type")?,
                content_type: get(row, "content_type")?,
                exchange: get(row, "exchange")?,
                routing_key: get(row, "routing_key")?,
                body_size: get(row, "body_size")?,
            })
        })
        .collect()
}

pub async fn count(session: &Session, filter: &Filter) -> Result<i64, OutboxError> {
    let seconds = filter.dead_for.map(|d| d.as_secs_f64());
    let rows = session
        .query(
            &COUNT,
            &[
                &filter.reasons,
                &filter.aggregate_type,
                &filter.aggregate_id,
                &filter.event_type,
                &seconds,
                &filter.message_ids,
            ],
        )
        .await?;
    rows.first().map_or(Ok(0), |row| get(row, "n"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Redrive,
    Discard,
}

/// Changes every dead message that fits the filter, in bounded transactions. Returns how many.
pub async fn change(
    session: &Session,
    filter: &Filter,
    change: Change,
    operation: &Operation,
) -> Result<i64, OutboxError> {
    let mut total = 0;
    loop {
        session.begin().await?;
        let done = step(session, filter, change, operation).await;
        let taken = match done {
            Ok(taken) => taken,
            Err(error) => {
                // The first error is the one to report; a lost connection rolls back by itself.
                let _ = session.rollback().await;
                return Err(error);
            }
        };
        session.commit().await?;
        total += taken;
        if taken < STEP {
            return Ok(total);
        }
    }
}

async fn step(
    session: &Session,
    filter: &Filter,
    change: Change,
    operation: &Operation,
) -> Result<i64, OutboxError> {
    let seconds = filter.dead_for.map(|d| d.as_secs_f64());
    let rows = session
        .query(
            &TAKE,
            &[
                &filter.reasons,
                &filter.aggregate_type,
                &filter.aggregate_id,
                &filter.event_type,
                &seconds,
                &filter.message_ids,
                &STEP,
            ],
        )
        .await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let mut lanes: Vec<Lane> = Vec::with_capacity(rows.len());
    let mut ids: Vec<i64> = Vec::with_capacity(rows.len());
    let mut replays: Vec<bool> = Vec::with_capacity(rows.len());
    let mut message_ids: Vec<Uuid> = Vec::with_capacity(rows.len());
    for row in &rows {
        lanes.push(get(row, "lane")?);
        ids.push(get(row, "id")?);
        replays.push(get(row, "replay")?);
        message_ids.push(get(row, "message_id")?);
    }
    match change {
        Change::Redrive => session.execute(&REDRIVE, &[&lanes, &ids, &replays]).await?,
        Change::Discard => session.execute(&DISCARD, &[&lanes, &ids]).await?,
    };
    let taken = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    operation::record(session, operation, taken, &message_ids).await?;
    Ok(taken)
}
