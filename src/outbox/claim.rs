//! Claim: a transaction that holds lanes and knows their next messages.

use std::{collections::HashMap, fmt::Display, time::SystemTime};

use tokio_postgres::{
    Row,
    row::RowIndex,
    types::{FromSql, Type},
};
use uuid::Uuid;

use outbox_core::{
    circuit::Destination,
    claim::{Candidate, Claim, HeldLane, Limits, Orphan, Read, Snapshot, Waited, fitting},
    low_water::{Candidate as MarkCandidate, Mark},
    message::{Lane, Message, Position},
    scheduling::{Tuning, shares},
};

use super::{
    OutboxError,
    ctid::{Tid, Xid},
    row::get,
    session::{Params, Query, Session},
};

const CLAIM_LANES: Query = Query {
    action: "claim lanes",
    sql: include_str!("sql/claim_lanes.sql"),
    types: &[Type::INT2_ARRAY],
};

const TAKE_BACK_MARKS: Query = Query {
    action: "take back marks",
    sql: include_str!("sql/take_back_marks.sql"),
    types: &[Type::INT2_ARRAY],
};

const READ: Query = Query {
    action: "read messages",
    sql: include_str!("sql/read.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8,
        Type::INT8,
        Type::INT8,
    ],
};

const BODIES: Query = Query {
    action: "read large bodies",
    sql: include_str!("sql/bodies.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

/// Statements that read messages: what fails there may be one row's fault (`outbox::unreadable`).
pub const READS: [&str; 2] = [READ.action, BODIES.action];

/// What `sql/read.sql` selects. Looked up by number: by name, each of them in each row is a search through all names.
const COLUMNS: [&str; 26] = [
    "filed",
    "lane",
    "id",
    "place",
    "tx",
    "key_hash",
    "attempts",
    "replay",
    "scheduled",
    "message_id",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "content_type",
    "headers",
    "headers_size",
    "exchange",
    "routing_key",
    "created_at",
    "body_size",
    "payload",
    "binary_payload",
    "after_id",
    "probe",
    "unmarkable",
    "destination",
];

/// Its number; one that is not selected does not compile.
const fn column(name: &str) -> usize {
    let mut n = 0;
    while n < COLUMNS.len() {
        if same(COLUMNS[n].as_bytes(), name.as_bytes()) {
            return n;
        }
        n += 1;
    }
    panic!("not a column of sql/read.sql")
}

/// `==`, for constants.
const fn same(mut one: &[u8], mut other: &[u8]) -> bool {
    while let ([a, rest @ ..], [b, other_rest @ ..]) = (one, other) {
        if *a != *b {
            return false;
        }
        (one, other) = (rest, other_rest);
    }
    one.is_empty() && other.is_empty()
}

/// A column of a row of `sql/read.sql`.
macro_rules! field {
    ($row:expr, $name:literal) => {
        get($row, const { column($name) })
    };
    ($row:expr, $name:literal as $type:ty) => {
        get::<$type, _>($row, const { column($name) })
    };
}

/// The locks that the settle will need, taken before anything is published. Somebody else's SHARE lock (CREATE INDEX holds
/// one) lets a claim read and would stop its settle: all of its messages would be published again and again.
/// NOWAIT: a relay that never waits for a table while it holds lanes is in no deadlock, with a TRUNCATE for example.
pub(super) const LOCK_TABLES: &str = "LOCK TABLE outbox.message, outbox.lane, outbox.waiting, outbox.dead \
                           IN ROW EXCLUSIVE MODE NOWAIT";

/// Begins a transaction and holds those of `lanes` that nobody else holds. `None`, and no transaction, when all
/// are held elsewhere, or marks had to be taken back first.
pub async fn claim(
    session: &Session,
    lanes: &[Lane],
    limits: Limits,
) -> Result<Option<Claim>, OutboxError> {
    // Sent together: one round trip.
    let params: Params<'_> = &[&lanes];
    let (begun, rows) = tokio::join!(
        session.begin_with(LOCK_TABLES),
        session.query(&CLAIM_LANES, params)
    );
    begun?;
    let rows = rows?;
    let Some(first) = rows.first() else {
        session.rollback().await?;
        return Ok(None);
    };
    let snapshot = Snapshot {
        own_tx: get(first, "own_tx")?,
        xmin: get(first, "xmin")?,
        drawn: get(first, "drawn")?,
        now_us: micros(get(first, "now")?),
    };
    let mut held = Vec::with_capacity(rows.len());
    let mut highest = 0;
    for row in &rows {
        let position: Option<i64> = get(row, "candidate")?;
        let tx: Option<i64> = get(row, "candidate_tx")?;
        let low_water: i64 = get(row, "low_water")?;
        highest = highest.max(low_water).max(position.unwrap_or(0));
        // One of a transaction that is still to come was copied here from another cluster, and would be waited for.
        let candidate = position.zip(tx).filter(|(_, tx)| *tx <= snapshot.own_tx);
        held.push(HeldLane {
            lane: get(row, "lane")?,
            mark: Mark {
                low_water,
                candidate: candidate.map(|(position, tx)| MarkCandidate { position, tx }),
            },
            share: 0,
        });
    }
    if highest > snapshot.drawn && take_back_marks(session, &held).await? {
        return Ok(None);
    }
    // Peers may hold some of the lanes asked for: the others fill the batch.
    let marks: Vec<i64> = held.iter().map(|l| l.mark.low_water).collect();
    for (lane, share) in held
        .iter_mut()
        .zip(shares(&Tuning::MEASURED, &marks, limits.fresh))
    {
        lane.share = share;
    }
    let (mut candidates, orphans) = read(session, &held, limits).await?;
    let read = candidates.len();
    candidates.truncate(fitting(&candidates, limits));
    complete(session, &mut candidates, limits).await?;
    let read = Read {
        cut_short: candidates.len() < read,
        candidates,
        orphans,
    };
    Ok(Some(Claim::new(&held, read, limits, snapshot)))
}

/// The sequence was restarted, or is a copy without its value: what is written from now on would lie below the marks,
/// never be sent, and be seen by no gauge. Without the marks it is found, at the price of reading what was sent as well.
/// True when some were taken back: then the transaction is over.
async fn take_back_marks(session: &Session, held: &[HeldLane]) -> Result<bool, OutboxError> {
    let lanes: Vec<Lane> = held.iter().map(|l| l.lane).collect();
    let taken_back = session.query(&TAKE_BACK_MARKS, &[&lanes]).await?;
    let Some(first) = taken_back.first() else {
        return Ok(false);
    };
    let drawn: i64 = get(first, "drawn")?;
    session.commit().await?;
    tracing::error!(
        lanes = taken_back.len(),
        drawn,
        "the sequence outbox.message_id_seq stands below positions that were settled: it was restarted, or copied without \
         its value. New events are sent, but may come before older ones of their key; set it above all positions: \
         docs/operating/failover.md, \"Copies that are not physical\""
    );
    Ok(true)
}

async fn read(
    session: &Session,
    held: &[HeldLane],
    limits: Limits,
) -> Result<(Vec<Candidate>, Vec<Orphan>), OutboxError> {
    let lanes: Vec<Lane> = held.iter().map(|l| l.lane).collect();
    let marks: Vec<i64> = held.iter().map(|l| l.mark.low_water).collect();
    let shares: Vec<i64> = held.iter().map(|l| l.share as i64).collect();
    // New messages keep at least half of every batch, whatever number is due for a retry.
    let due = limits.batch_size.div_ceil(2);
    let mut candidates = Vec::new();
    let mut orphans = Vec::new();
    let take = |row: Row| {
        let row = &row;
        debug_assert!({
            let selected = row.columns().iter().map(|column| column.name());
            selected.eq(COLUMNS)
        });
        let position = Position {
            lane: field!(row, "lane")?,
            id: field!(row, "id")?,
        };
        match field!(row, "message_id" as Option<Uuid>)? {
            Some(message_id) => candidates.push(candidate(row, position, message_id)?),
            None => orphans.push(Orphan {
                position,
                key_hash: field!(row, "key_hash")?,
            }),
        }
        Ok(())
    };
    let params: Params<'_> = &[
        &lanes,
        &marks,
        &shares,
        &(limits.batch_size as i64),
        &(due as i64),
        &i64::try_from(limits.small_body()).unwrap_or(i64::MAX),
    ];
    session.each(&READ, params, take).await?;
    Ok((candidates, orphans))
}

/// Fetches the bodies that were too large to come along with their rows.
async fn complete(
    session: &Session,
    candidates: &mut Vec<Candidate>,
    limits: Limits,
) -> Result<(), OutboxError> {
    let large = limits.small_body() + 1..=limits.max_payload_bytes;
    let missing = |c: &Candidate| c.message.body.is_none() && large.contains(&c.message.body_size);
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = candidates
        .iter()
        .filter(|c| missing(c))
        .map(|c| (c.message.position.lane, c.message.position.id))
        .unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let mut bodies: HashMap<Position, Body> = HashMap::with_capacity(ids.len());
    let take = |row: Row| {
        let (lane, id) = (get(&row, "lane")?, get(&row, "id")?);
        if let Some(body) = body(&row, "payload", "binary_payload")? {
            bodies.insert(Position { lane, id }, body);
        }
        Ok(())
    };
    session.each(&BODIES, &[&lanes, &ids], take).await?;
    for candidate in candidates.iter_mut().filter(|c| missing(c)) {
        let body = bodies.remove(&candidate.message.position);
        candidate.message.body = body.map(|body| body.0);
    }
    // Deleted by hand between the two statements.
    candidates.retain(|c| !missing(c));
    Ok(())
}

fn body<I: RowIndex + Display>(row: &Row, json: I, binary: I) -> Result<Option<Body>, OutboxError> {
    Ok(match get(row, json)? {
        Some(body) => Some(body),
        None => get(row, binary)?,
    })
}

fn candidate(row: &Row, position: Position, message_id: Uuid) -> Result<Candidate, OutboxError> {
    let attempts: i32 = field!(row, "attempts")?;
    let body = body(
        row,
        const { column("payload") },
        const { column("binary_payload") },
    )?;
    Ok(Candidate {
        message: Message {
            position,
            message_id,
            aggregate_type: field!(row, "aggregate_type")?,
            aggregate_id: field!(row, "aggregate_id")?,
            event_type: field!(row, "event_type")?,
            content_type: field!(row, "content_type")?,
            headers: field!(row, "headers" as Option<JsonText>)?.map(|text| text.0),
            headers_size: u64::try_from(field!(row, "headers_size" as i32)?).unwrap_or(0),
            exchange: field!(row, "exchange")?,
            routing_key: field!(row, "routing_key")?,
            created_at_us: micros(field!(row, "created_at")?),
            attempts: u32::try_from(attempts).unwrap_or(0),
            replay: field!(row, "replay")?,
            body_size: u64::try_from(field!(row, "body_size" as i32)?).unwrap_or(0),
            body: body.map(|b| b.0),
        },
        ctid: field!(row, "place" as Tid)?.0,
        tx: field!(row, "tx" as Xid)?.0,
        key_hash: field!(row, "key_hash")?,
        filed: field!(row, "filed")?,
        scheduled: field!(row, "scheduled")?,
        after: field!(row, "after_id")?,
        waited: Waited {
            probe: field!(row, "probe")?,
            unmarkable: field!(row, "unmarkable")?,
            destination: field!(row, "destination" as Option<i64>)?.map(Destination),
        },
    })
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

/// `json` as it was written.
struct JsonText(String);

impl<'a> FromSql<'a> for JsonText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

fn micros(at: SystemTime) -> i64 {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}
