//! Claim: a transaction that holds lanes and knows their next messages.

use std::{collections::HashMap, time::SystemTime};

use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};
use uuid::Uuid;

use super::{
    OutboxError,
    low_water::{Candidate as MarkCandidate, Mark},
    session::{Params, Query, Session},
};
use crate::message::{Lane, Message, Position};

/// How much one claim may read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// New messages read from each lane.
    pub per_lane: usize,
    /// Messages in all.
    pub batch_size: usize,
    /// Bytes of bodies in all; one larger body is still read alone.
    pub batch_bytes: u64,
    /// A body above this is refused without being fetched.
    pub max_payload_bytes: u64,
}

/// A lane held by this claim until it commits.
#[derive(Debug, Clone, Copy)]
pub struct HeldLane {
    pub lane: Lane,
    pub mark: Mark,
}

/// A message of a held lane.
#[derive(Debug)]
pub struct Candidate {
    pub message: Message,
    pub key_hash: Option<i64>,
    /// Came from `outbox.waiting`.
    pub filed: bool,
    /// Its `available_at` lies ahead: to be filed, not published.
    pub scheduled: bool,
    /// Nearest earlier message of its key that waits and holds it back.
    pub after: Option<i64>,
}

/// A filed message that is in `outbox.message` no more.
#[derive(Debug, Clone, Copy)]
pub struct Orphan {
    pub position: Position,
    pub key_hash: Option<i64>,
}

/// What a claim holds. Open until `settle::commit`, or until the session rolls back or dies.
#[derive(Debug)]
pub struct Claim {
    pub lanes: Vec<HeldLane>,
    pub candidates: Vec<Candidate>,
    /// Filed, but the message itself is gone (deleted by hand): to be forgotten.
    pub orphans: Vec<Orphan>,
    pub own_tx: i64,
    pub xmin: i64,
    /// The database's clock when the claim began, microseconds since the Unix epoch.
    pub now_us: i64,
    pub limits: Limits,
}

const CLAIM_LANES: Query = Query {
    action: "claim lanes",
    sql: include_str!("sql/claim_lanes.sql"),
    types: &[Type::INT2_ARRAY],
};

const READ: Query = Query {
    action: "read messages",
    sql: include_str!("sql/read.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8,
        Type::INT8,
        Type::INT8,
        Type::INT8,
        Type::INT8,
    ],
};

/// Begins a transaction and holds those of `lanes` that nobody else holds. `None`, and no transaction, when all
/// are held elsewhere.
pub async fn claim(
    session: &Session,
    lanes: &[Lane],
    limits: Limits,
) -> Result<Option<Claim>, OutboxError> {
    // Sent together: one round trip.
    let params: Params<'_> = &[&lanes];
    let (begun, rows) = tokio::join!(session.begin(), session.query(&CLAIM_LANES, params));
    begun?;
    let rows = rows?;
    let Some(first) = rows.first() else {
        session.rollback().await?;
        return Ok(None);
    };
    let own_tx = get(first, "own_tx")?;
    let xmin = get(first, "xmin")?;
    let now_us = micros(get(first, "now")?);
    let mut held = Vec::with_capacity(rows.len());
    for row in &rows {
        let candidate: Option<i64> = get(row, "candidate")?;
        let tx = get(row, "candidate_tx")?;
        held.push(HeldLane {
            lane: get(row, "lane")?,
            mark: Mark {
                low_water: get(row, "low_water")?,
                candidate: candidate.map(|position| MarkCandidate { position, tx }),
            },
        });
    }
    let (candidates, orphans) = read(session, &held, limits).await?;
    Ok(Some(Claim {
        lanes: held,
        candidates,
        orphans,
        own_tx,
        xmin,
        now_us,
        limits,
    }))
}

async fn read(
    session: &Session,
    held: &[HeldLane],
    limits: Limits,
) -> Result<(Vec<Candidate>, Vec<Orphan>), OutboxError> {
    let lanes: Vec<Lane> = held.iter().map(|l| l.lane).collect();
    let marks: Vec<i64> = held.iter().map(|l| l.mark.low_water).collect();
    // New messages keep at least half of every batch, whatever number is due for a retry.
    let due = limits.batch_size.div_ceil(2);
    let rows = session
        .query(
            &READ,
            &[
                &lanes,
                &marks,
                &(limits.per_lane as i64),
                &(limits.batch_size as i64),
                &(due as i64),
                &i64::try_from(limits.batch_bytes).unwrap_or(i64::MAX),
                &i64::try_from(limits.max_payload_bytes).unwrap_or(i64::MAX),
            ],
        )
        .await?;
    let mut candidates = Vec::with_capacity(rows.len());
    let mut orphans = Vec::new();
    for row in &rows {
        let position = Position {
            lane: get(row, "lane")?,
            id: get(row, "id")?,
        };
        match get::<Option<Uuid>>(row, "message_id")? {
            Some(message_id) => candidates.push(candidate(row, position, message_id)?),
            None => orphans.push(Orphan {
                position,
                key_hash: get(row, "key_hash")?,
            }),
        }
    }
    Ok((candidates, orphans))
}

fn candidate(row: &Row, position: Position, message_id: Uuid) -> Result<Candidate, OutboxError> {
    let attempts: i32 = get(row, "attempts")?;
    let body: Option<Body> = match get(row, "payload")? {
        Some(body) => Some(body),
        None => get(row, "binary_payload")?,
    };
    Ok(Candidate {
        message: Message {
            position,
            message_id,
            aggregate_type: get(row, "aggregate_type")?,
            aggregate_id: get(row, "aggregate_id")?,
            event_type: get(row, "event_type")?,
            content_type: get(row, "content_type")?,
            headers: get(row, "headers")?,
            exchange: get(row, "exchange")?,
            routing_key: get(row, "routing_key")?,
            created_at_us: micros(get(row, "created_at")?),
            attempts: u32::try_from(attempts).unwrap_or(0),
            replay: get(row, "replay")?,
            body_size: u64::try_from(get::<i64>(row, "body_size")?).unwrap_or(0),
            body: body.map(|b| b.0),
        },
        key_hash: get(row, "key_hash")?,
        filed: get(row, "filed")?,
        scheduled: get(row, "scheduled")?,
        after: get(row, "after_id")?,
    })
}

impl Claim {
    /// For each held lane: did the read stop at a limit, so that more may be there?
    pub fn exhausted(&self) -> HashMap<Lane, bool> {
        let bytes: u64 = self.candidates.iter().map(|c| c.message.body_size).sum();
        let cut = self.candidates.len() + self.orphans.len() >= self.limits.batch_size
            || bytes >= self.limits.batch_bytes;
        let mut fresh: HashMap<Lane, usize> = HashMap::new();
        let mut due: HashMap<Lane, usize> = HashMap::new();
        for c in &self.candidates {
            *(if c.filed { &mut due } else { &mut fresh })
                .entry(c.message.position.lane)
                .or_default() += 1;
        }
        let full = |n: Option<&usize>, limit: usize| n.is_some_and(|n| *n >= limit);
        let due_limit = self.limits.batch_size.div_ceil(2);
        let due_cut = self.candidates.iter().filter(|c| c.filed).count() >= due_limit;
        self.lanes
            .iter()
            .map(|l| {
                (
                    l.lane,
                    !cut && !due_cut && !full(fresh.get(&l.lane), self.limits.per_lane),
                )
            })
            .collect()
    }
}

/// A body as the server sent it: `json` and `bytea` alike are their bytes, never decoded.
struct Body(Vec<u8>);

impl<'a> FromSql<'a> for Body {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::BYTEA)
    }
}

fn micros(at: SystemTime) -> i64 {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}

pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, OutboxError> {
    row.try_get(column).map_err(|source| OutboxError::Database {
        action: "decode a row",
        source,
    })
}
