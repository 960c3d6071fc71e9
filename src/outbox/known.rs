//! What the outbox knows of messages that were found. It only reads, and every statement reads a bounded number of rows.

use outbox_core::message::{Lane, Message, Position};
use serde::Serialize;
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
    whereabouts::{self, Ahead, Counted, Dead, Facts, Head, Neighbour, Waiting},
};

const FACTS: Query = Query {
    action: "read what is known of a message",
    sql: include_str!("sql/where_facts.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};
const HOLDERS: Query = Query {
    action: "look who works a lane",
    sql: include_str!("sql/where_holders.sql"),
    types: &[Type::INT2_ARRAY],
};
const AHEAD: Query = Query {
    action: "count the messages before one",
    sql: include_str!("sql/where_ahead.sql"),
    types: &[Type::INT2, Type::INT8, Type::INT8, Type::INT8, Type::INT8],
};
const OPERATIONS: Query = Query {
    action: "look for operations on a message",
    sql: include_str!("sql/where_operations.sql"),
    types: &[Type::UUID, Type::INT8],
};
const BODY: Query = Query {
    action: "read a body",
    sql: include_str!("sql/where_body.sql"),
    types: &[Type::INT2, Type::INT8, Type::INT8],
};
const MAY_READ_OPERATIONS: Query = Query {
    action: "check whether operations may be read",
    sql: "SELECT has_table_privilege('outbox.operation', 'SELECT') AS may",
    types: &[],
};
const WRITERS: Query = Query {
    action: "count the writing transactions",
    // Every role sees who has a transaction id. A relay's transactions write no messages, and an autovacuum has no user.
    // A prepared transaction has no session.
    sql: "SELECT count(DISTINCT l.pid) \
                 + (SELECT count(*) FROM pg_prepared_xacts p WHERE p.database = current_database()) AS n \
          FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
          WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
            AND a.datname = current_database() AND a.usename IS NOT NULL AND a.pid <> pg_backend_pid() \
            AND coalesce(a.application_name, '') NOT LIKE 'outboxd/%'",
    types: &[],
};
/// Most rows before a message that are counted.
const COUNTED_ROWS: i64 = 2_000;
/// Most rows above the mark that are read to find the first pending one.
const FRONT_ROWS: i64 = 20_000;
/// Sent messages of a lane that a rate is measured with.
const RATE_ROWS: i64 = 500;
/// Operations that are looked through.
const LAST_OPERATIONS: i64 = 200;

/// What is known of these messages, in this order; those that were deleted meanwhile are left out.
pub async fn facts(session: &Session, positions: &[Position]) -> Result<Vec<Facts>, OutboxError> {
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = positions.iter().map(|p| (p.lane, p.id)).unzip();
    let rows = session.query(&FACTS, &[&lanes, &ids]).await?;
    rows.iter().map(fact).collect()
}

fn fact(row: &Row) -> Result<Facts, OutboxError> {
    let text = |column| -> Result<String, OutboxError> {
        Ok(get::<Option<String>, _>(row, column)?.unwrap_or_default())
    };
    let size = |column| -> Result<u64, OutboxError> {
        Ok(u64::try_from(get::<i32, _>(row, column)?).unwrap_or(0))
    };
    let attempts: i32 = get(row, "attempts")?;
    let replay: bool = get(row, "replay")?;
    let waiting = match get::<Option<String>, _>(row, "cause")? {
        None => None,
        Some(cause) => Some(Waiting {
            cause,
            since: text("due_since")?,
            next_try_at: get(row, "due_at")?,
            next_try_in_seconds: get(row, "due_in")?,
            attempts,
            reason: get(row, "reason")?,
            last_error: get(row, "last_error")?,
            replay,
            destination: get(row, "destination")?,
            failed_probes: get(row, "failed_probes")?,
        }),
    };
    let dead = if get(row, "is_dead")? && waiting.is_none() {
        Some(Dead {
            died_at: text("died_at")?,
            reason: get(row, "reason")?,
            attempts,
            last_error: get(row, "last_error")?,
            replay,
        })
    } else {
        None
    };
    let behind = match (get(row, "ahead_message_id")?, get(row, "ahead_id")?) {
        (Some(message_id), Some(position)) => Some(Neighbour {
            message_id,
            position,
        }),
        _ => None,
    };
    let head = match (get(row, "head_message_id")?, get(row, "head_id")?) {
        (Some(message_id), Some(position)) => Some(Head {
            message_id,
            position,
            cause: text("head_cause")?,
            reason: get(row, "head_reason")?,
            next_try_at: get(row, "head_due_at")?,
        }),
        _ => None,
    };
    Ok(Facts {
        message: Message {
            position: Position {
                lane: get(row, "lane")?,
                id: get(row, "id")?,
            },
            message_id: get::<Option<Uuid>, _>(row, "message_id")?.unwrap_or_default(),
            aggregate_type: text("aggregate_type")?,
            aggregate_id: get(row, "aggregate_id")?,
            event_type: text("event_type")?,
            content_type: text("content_type")?,
            headers: get(row, "headers")?,
            headers_size: size("headers_size")?,
            exchange: get(row, "exchange")?,
            routing_key: get(row, "routing_key")?,
            created_at_us: get::<Option<i64>, _>(row, "created_at_us")?.unwrap_or_default(),
            attempts: u32::try_from(attempts).unwrap_or(0),
            replay,
            body_size: size("body_size")?,
            body: None,
            damage: get(row, "missing")?,
        },
        created_at: text("created_at")?,
        available_at: get(row, "available_at")?,
        is_early: get(row, "is_early")?,
        sent_at: get(row, "sent_at")?,
        is_below_mark: get(row, "is_below")?,
        waiting,
        dead,
        behind,
        head,
    })
}

/// A session that holds a lane's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    #[serde(skip)]
    pub lane: Lane,
    pub pid: i32,
    pub application: String,
}

pub async fn holders(session: &Session, lanes: &[Lane]) -> Result<Vec<Holder>, OutboxError> {
    let rows = session.query(&HOLDERS, &[&lanes]).await?;
    rows.iter()
        .map(|row| {
            Ok(Holder {
                lane: get(row, "lane")?,
                pid: get(row, "pid")?,
                application: get(row, "application")?,
            })
        })
        .collect()
}

/// What stands before a pending message in its lane.
pub async fn ahead(session: &Session, position: Position) -> Result<Ahead, OutboxError> {
    let Position { lane, id } = position;
    let rows = session
        .query(
            &AHEAD,
            &[&lane, &id, &COUNTED_ROWS, &RATE_ROWS, &FRONT_ROWS],
        )
        .await?;
    let row = rows.first().ok_or(OutboxError::Unusable {
        action: AHEAD.action,
        why: "the statement returned no row".to_owned(),
    })?;
    let (messages, is_about) = whereabouts::before(Counted {
        rows: get(row, "looked")?,
        limit: COUNTED_ROWS,
        pending: get(row, "pending")?,
        lowest: get::<Option<i64>, _>(row, "lowest")?.unwrap_or(id),
        front: get(row, "front")?,
        position: id,
    });
    Ok(Ahead {
        messages,
        is_about,
        is_far: get(row, "is_far")?,
        sent_ages: get(row, "sent_ages")?,
    })
}

/// What a person did to a message with a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    pub action: String,
    pub at: String,
    pub by: String,
    pub why: String,
}

/// What the last operations did to a message; `None`: this role may not read them.
pub async fn operations(session: &Session, id: Uuid) -> Result<Option<Vec<Done>>, OutboxError> {
    let rows = session.query(&MAY_READ_OPERATIONS, &[]).await?;
    if !rows.first().map_or(Ok(false), |row| get(row, "may"))? {
        return Ok(None);
    }
    let rows = session.query(&OPERATIONS, &[&id, &LAST_OPERATIONS]).await?;
    let done = rows.iter().map(|row| {
        Ok(Done {
            action: get(row, "action")?,
            at: get(row, "at")?,
            by: get(row, "by_whom")?,
            why: get(row, "why")?,
        })
    });
    done.collect::<Result<_, _>>().map(Some)
}

/// Transactions that may have written messages and have not committed.
pub async fn open_writers(session: &Session) -> Result<i64, OutboxError> {
    let rows = session.query(&WRITERS, &[]).await?;
    rows.first().map_or(Ok(0), |row| get(row, "n"))
}

/// A body: JSON as it was written, or bytes.
pub enum Body {
    Json(String),
    Bytes(Vec<u8>),
}

/// The body, if it has at most so many bytes.
pub async fn body(
    session: &Session,
    position: Position,
    most: u64,
) -> Result<Option<Body>, OutboxError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = session
        .query(&BODY, &[&position.lane, &position.id, &most])
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    Ok(match get(row, "payload")? {
        Some(json) => Some(Body::Json(json)),
        None => get::<Option<Vec<u8>>, _>(row, "binary_payload")?.map(Body::Bytes),
    })
}
