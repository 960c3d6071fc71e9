//! Replay: publishes sent messages again, with the same message id and the header `outbox-replay`. Replayed messages wait in
//! `outbox.waiting` like any other message that is not yet due. A rate spaces their due times. A replay never holds back new
//! messages, and never waits for them.

use std::{collections::BTreeSet, time::SystemTime};

use outbox_core::{message::Lane, scheduling::all_lanes};
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    OutboxError,
    operation::{Operation, Record},
    row::get,
    session::{Params, Query, Session},
};

/// Selects sent messages. The command demands at least one condition.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub message_ids: Vec<Uuid>,
}

const STEP: Query = Query {
    action: "replay sent messages",
    sql: include_str!("sql/replay_step.sql"),
    types: &[
        Type::INT2,
        Type::INT8,
        Type::INT8,
        Type::TIMESTAMPTZ,
        Type::TIMESTAMPTZ,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::UUID_ARRAY,
        Type::FLOAT8,
        Type::FLOAT8,
        Type::BOOL,
    ],
};

const NOW: Query = Query {
    action: "ask for the time",
    sql: "SELECT clock_timestamp() AS now",
    types: &[],
};

/// The database's time: its clock also wrote `created_at`.
pub async fn now(session: &Session) -> Result<SystemTime, OutboxError> {
    let rows = session.query(&NOW, &[]).await?;
    rows.first()
        .map_or_else(|| Ok(SystemTime::now()), |row| get(row, "now"))
}

/// The messages that a replay selected.
#[derive(Debug, Default)]
pub struct Replayed {
    pub messages: i64,
    /// The message ids of the filter that were found.
    pub found: BTreeSet<Uuid>,
}

/// Rows that one transaction reads.
const ROWS: i64 = 5000;

/// Files the messages; with `dry_run` it only counts them. At most `per_second` of them fall due in a second. `all` holds
/// the committed steps, also after an error.
pub async fn replay(
    session: &Session,
    filter: &Filter,
    per_second: f64,
    dry_run: bool,
    operation: &Operation,
    all: &mut Replayed,
) -> Result<(), OutboxError> {
    let between = 1.0 / per_second;
    let mut record = Record::new(operation);
    for lane in all_lanes() {
        // People can insert rows of any position.
        let mut cursor = i64::MIN;
        loop {
            let found = step(
                session,
                filter,
                lane,
                cursor,
                all.messages as f64 * between,
                between,
                dry_run,
                &mut record,
            );
            let found = session.commits(found).await?;
            all.messages += found.messages;
            all.found.extend(found.message_ids);
            match found.last {
                Some(last) if found.looked >= ROWS && last < i64::MAX => cursor = last + 1,
                _ => break,
            }
        }
    }
    record.finish(session).await
}

#[derive(Default)]
struct Found {
    /// The last position that the step looked at.
    last: Option<i64>,
    looked: i64,
    /// Messages filed, or those that a dry run would file.
    messages: i64,
    /// The message ids that the filter names, if any.
    message_ids: Vec<Uuid>,
}

#[allow(clippy::too_many_arguments, reason = "the parameters of one statement")]
async fn step(
    session: &Session,
    filter: &Filter,
    lane: Lane,
    cursor: i64,
    first_due_s: f64,
    between_s: f64,
    dry_run: bool,
    record: &mut Record<'_>,
) -> Result<Found, OutboxError> {
    let file = async |ids: &[Uuid], first_due_s: f64| {
        let params: Params<'_> = &[
            &lane,
            &cursor,
            &ROWS,
            &filter.since,
            &filter.until,
            &filter.aggregate_type,
            &filter.aggregate_id,
            &filter.event_type,
            &ids,
            &first_due_s,
            &between_s,
            &dry_run,
        ];
        session.query(&STEP, params).await
    };
    let rows = file(&filter.message_ids, first_due_s).await?;
    let Some(row) = rows.first() else {
        return Ok(Found::default());
    };
    let mut messages: i64 = get(row, if dry_run { "chosen" } else { "filed" })?;
    let mut message_ids: Vec<Uuid> = get(row, "message_ids")?;
    let unfiled: Vec<Uuid> = get(row, "unfiled")?;
    if !unfiled.is_empty() {
        // Another replay may have filed them since the statement began. Then the statement no longer chooses them, or it
        // files them now: the relay has published them meanwhile.
        let again = file(&unfiled, first_due_s + messages as f64 * between_s).await?;
        let (more, ids) = proven(&again)?;
        messages += more;
        message_ids.extend(ids);
    }
    if messages > 0 && !dry_run {
        record.add(session, messages, &message_ids).await?;
    }
    Ok(Found {
        last: get(row, "last")?,
        looked: get(row, "looked")?,
        messages,
        message_ids: if filter.message_ids.is_empty() {
            Vec::new()
        } else {
            message_ids
        },
    })
}

/// What a second attempt has filed. What it chose and did not file, a trigger or a rule drops: the INSERT succeeds and files
/// nothing. The caller rolls back.
fn proven(rows: &[Row]) -> Result<(i64, Vec<Uuid>), OutboxError> {
    let Some(row) = rows.first() else {
        return Ok((0, Vec::new()));
    };
    let unfiled: Vec<Uuid> = get(row, "unfiled")?;
    if unfiled.is_empty() {
        return Ok((get(row, "filed")?, get(row, "message_ids")?));
    }
    Err(OutboxError::NotFiled {
        action: STEP.action,
        messages: i64::try_from(unfiled.len()).unwrap_or(i64::MAX),
    })
}
