//! Claim: a transaction that holds lanes and knows their next messages.

use std::collections::HashMap;

use tokio_postgres::{Row, types::Type};

use outbox_core::{
    caution::PassedOver,
    claim::{Candidate, Claim, HeldLane, Limits, Orphan, Read, Snapshot, fitting},
    low_water::{Candidate as MarkCandidate, Mark},
    message::{Lane, Position},
    scheduling::{Tuning, shares},
};

use super::{
    OutboxError,
    candidate::{Columns, body, micros},
    row::get,
    session::{Params, Query, Session},
    settle,
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
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
    ],
};

const BODIES: Query = Query {
    action: "read large bodies",
    sql: include_str!("sql/bodies.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

/// The statements that read messages: one row may cause their failure (`outbox::unreadable`).
pub const READS: [&str; 2] = [READ.action, BODIES.action];

/// Takes the locks that the settle needs, before the relay publishes anything. A SHARE lock of another session (CREATE INDEX
/// holds one) lets a claim read and stops its settle, so the relay would publish the claim's messages again and again.
/// NOWAIT: a relay that waits for a table while it holds lanes could deadlock, for example with a TRUNCATE.
pub(super) const LOCK_TABLES: &str = "LOCK TABLE outbox.message, outbox.lane, outbox.waiting, outbox.dead \
                           IN ROW EXCLUSIVE MODE NOWAIT";

/// Begins a transaction and holds those of `lanes` that nobody else holds. Returns `None`, and leaves no transaction open, if
/// others hold all of them, or if it took marks back. `passed_over`: what it does not read.
pub async fn claim(
    session: &Session,
    lanes: &[Lane],
    limits: Limits,
    passed_over: &PassedOver,
) -> Result<Option<Claim>, OutboxError> {
    // One round trip for both.
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
        // A candidate of a future transaction is a copy from another cluster; the mark would wait for that transaction.
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
    // Other relays may hold some of `lanes`; the lanes that this claim holds fill the batch.
    let marks: Vec<i64> = held.iter().map(|l| l.mark.low_water).collect();
    for (lane, share) in held
        .iter_mut()
        .zip(shares(&Tuning::MEASURED, &marks, limits.fresh))
    {
        lane.share = share;
    }
    let (mut candidates, orphans) = read(session, &held, limits, passed_over).await?;
    let read = candidates.len();
    candidates.truncate(fitting(&candidates, limits));
    complete(session, &mut candidates, limits).await?;
    let read = Read {
        cut_short: candidates.len() < read,
        candidates,
        orphans,
        passed_over: passed_over.lanes.clone(),
    };
    Ok(Some(Claim::new(&held, read, limits, snapshot)))
}

/// Takes back marks that lie above the sequence: somebody restarted the sequence, or copied it without its value. New messages
/// would get positions below these marks, so no claim would find them and no gauge would count them. Without the marks a claim
/// finds them, and reads sent messages too. Returns true if it took marks back; then the transaction is committed. A mark that a
/// trigger keeps as it was is an error: the claim would not see the messages below it.
async fn take_back_marks(session: &Session, held: &[HeldLane]) -> Result<bool, OutboxError> {
    let lanes: Vec<Lane> = held.iter().map(|l| l.lane).collect();
    let taken_back = session.query(&TAKE_BACK_MARKS, &[&lanes]).await?;
    let Some(first) = taken_back.first() else {
        return Ok(false);
    };
    let drawn: i64 = get(first, "drawn")?;
    let mut unwritten = Vec::new();
    for row in &taken_back {
        if !get::<bool, _>(row, "written")? {
            unwritten.push(get(row, "lane")?);
        }
    }
    settle::marks_proven(TAKE_BACK_MARKS.action, &unwritten)?;
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
    passed_over: &PassedOver,
) -> Result<(Vec<Candidate>, Vec<Orphan>), OutboxError> {
    let lanes: Vec<Lane> = held.iter().map(|l| l.lane).collect();
    let marks: Vec<i64> = held.iter().map(|l| l.mark.low_water).collect();
    let shares: Vec<i64> = held.iter().map(|l| l.share as i64).collect();
    // At least half of every batch is for new messages, even if more messages are due for a retry.
    let due = limits.batch_size.div_ceil(2);
    let mut candidates = Vec::new();
    let mut orphans = Vec::new();
    let mut columns = None;
    let take = |row: Row| {
        let columns = match &columns {
            Some(columns) => columns,
            None => columns.insert(Columns::of(&row, READ.action)?),
        };
        match columns.candidate(&row)? {
            Some(candidate) => candidates.push(candidate),
            None => orphans.push(columns.orphan(&row)?),
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
        &passed_over.filed,
        &passed_over.new,
        &passed_over.keys,
    ];
    session.each(&READ, params, take).await?;
    Ok((candidates, orphans))
}

/// Fetches the bodies that `sql/read.sql` left out because of their size.
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
    let mut bodies: HashMap<Position, Vec<u8>> = HashMap::with_capacity(ids.len());
    let take = |row: Row| {
        let (lane, id) = (get(&row, "lane")?, get(&row, "id")?);
        if let Some(body) = body(&row, "payload", "binary_payload")? {
            bodies.insert(Position { lane, id }, body);
        }
        Ok(())
    };
    session.each(&BODIES, &[&lanes, &ids], take).await?;
    for candidate in candidates.iter_mut().filter(|c| missing(c)) {
        candidate.message.body = bodies.remove(&candidate.message.position);
    }
    // A message whose body is still missing was deleted by hand between the two statements.
    candidates.retain(|c| !missing(c));
    Ok(())
}
