//! Lists, redrives and discards dead messages. The transaction of a change records it in `outbox.operation`: who, when, why,
//! and which messages.

use std::time::SystemTime;

use outbox_core::message::Lane;
use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    filter::Filter,
    operation::{Operation, Record},
    pace::Pace,
    row::get,
    session::{Params, Query, Session},
};

#[derive(Debug, Serialize)]
pub struct DeadMessage {
    pub message_id: Uuid,
    pub position: i64,
    pub reason: String,
    pub attempts: i32,
    pub last_error: String,
    pub replay: bool,
    /// How often it was redriven before it died this time.
    pub redriven: i32,
    pub failure_group: String,
    pub died_at: String,
    pub created_at: Option<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub content_type: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    pub body_size: i64,
    #[serde(skip)]
    place: Place,
}

/// Where a page or a step ended.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// `None`: before all.
    died_at: Option<SystemTime>,
    lane: Lane,
    id: i64,
}

const BEFORE_ALL: Place = Place {
    died_at: None,
    lane: -1,
    id: 0,
};

const LIST: Query = Query {
    action: "list dead messages",
    sql: include_str!("sql/dead_list.sql"),
    types: &[
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::FLOAT8,
        Type::UUID_ARRAY,
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::INT8,
        Type::TIMESTAMPTZ,
        Type::INT2,
        Type::INT8,
    ],
};
const TAKE: Query = Query {
    action: "take dead messages",
    sql: include_str!("sql/dead_take.sql"),
    types: &[
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::FLOAT8,
        Type::UUID_ARRAY,
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::INT8,
        Type::BOOL,
        Type::TIMESTAMPTZ,
        Type::INT2,
        Type::INT8,
    ],
};
const COUNT: Query = Query {
    action: "count dead messages",
    sql: include_str!("sql/dead_count.sql"),
    types: &[
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::FLOAT8,
        Type::UUID_ARRAY,
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT,
    ],
};
/// A message that is no longer in the lane where it died may be in a claim of its new lane, so the change holds that lane.
const HOLD: Query = Query {
    action: "hold the lanes of messages that moved",
    sql: "SELECT l.lane FROM ONLY outbox.lane l WHERE l.lane = ANY ($1::smallint[]) ORDER BY l.lane FOR UPDATE",
    types: &[Type::INT2_ARRAY],
};
const REDRIVE: Query = Query {
    action: "redrive dead messages",
    sql: include_str!("sql/redrive.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::BOOL_ARRAY,
        Type::INT4_ARRAY,
    ],
};
const NOT_REDRIVEN: Query = Query {
    action: "look for messages that were not redriven",
    sql: include_str!("sql/not_redriven.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY, Type::BOOL_ARRAY],
};
/// If a replay died, its message was sent before. That message is kept like any other sent message.
const DISCARD: Query = Query {
    action: "discard dead messages",
    sql: "DELETE FROM outbox.message m USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id) \
          WHERE m.lane = s.lane AND m.id = s.id AND m.sent_at IS NULL",
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

const NOT_DISCARDED: Query = Query {
    action: "look for messages that were not discarded",
    sql: "SELECT count(*) AS unwritten, min(m.id) AS first \
          FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id) \
          JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id WHERE m.sent_at IS NULL",
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

/// Most messages that one transaction changes.
const STEP: i64 = 1000;

/// Most rows in memory at once.
const PAGE: i64 = 200;

/// The oldest first, page by page.
pub struct Pages<'a> {
    session: &'a Session,
    filter: &'a Filter,
    after: Option<Place>,
    done: bool,
}

impl<'a> Pages<'a> {
    pub fn new(session: &'a Session, filter: &'a Filter) -> Self {
        Self {
            session,
            filter,
            after: None,
            done: false,
        }
    }

    /// The next page; empty at the end.
    pub async fn next(&mut self) -> Result<Vec<DeadMessage>, OutboxError> {
        if self.done {
            return Ok(Vec::new());
        }
        let page = page(self.session, self.filter, self.after, PAGE).await?;
        self.after = page.last().map(|last| last.place);
        self.done = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        Ok(page)
    }
}

/// The oldest dead message that fits the filter.
pub async fn first(session: &Session, filter: &Filter) -> Result<Option<DeadMessage>, OutboxError> {
    Ok(page(session, filter, None, 1).await?.pop())
}

async fn page(
    session: &Session,
    filter: &Filter,
    after: Option<Place>,
    rows: i64,
) -> Result<Vec<DeadMessage>, OutboxError> {
    let seconds = filter.seconds();
    let Place { died_at, lane, id } = after.unwrap_or(BEFORE_ALL);
    let place: Params<'_> = &[&rows, &died_at, &lane, &id];
    let params = [&filter.params(&seconds), place].concat();
    let rows = session.query(&LIST, &params).await?;
    rows.iter()
        .map(|row| {
            let position = get(row, "position")?;
            Ok(DeadMessage {
                message_id: get(row, "message_id")?,
                position,
                reason: get(row, "reason")?,
                attempts: get(row, "attempts")?,
                last_error: get(row, "last_error")?,
                replay: get(row, "replay")?,
                redriven: get(row, "redriven")?,
                failure_group: get(row, "failure_group")?,
                died_at: get(row, "died_at")?,
                created_at: get(row, "created_at")?,
                aggregate_type: get(row, "aggregate_type")?,
                aggregate_id: get(row, "aggregate_id")?,
                event_type: get(row, "event_type")?,
                content_type: get(row, "content_type")?,
                exchange: get(row, "exchange")?,
                routing_key: get(row, "routing_key")?,
                body_size: get(row, "body_size")?,
                place: Place {
                    died_at: Some(get(row, "died")?),
                    lane: get(row, "lane")?,
                    id: position,
                },
            })
        })
        .collect()
}

const NOT_DEAD: Query = Query {
    action: "look for dead messages",
    sql: "SELECT DISTINCT asked.id FROM unnest($1::uuid[]) AS asked (id) \
          WHERE NOT EXISTS (SELECT FROM outbox.dead d WHERE d.message_id = asked.id) ORDER BY asked.id",
    types: &[Type::UUID_ARRAY],
};

/// The ids that no dead message has.
pub async fn not_dead(session: &Session, ids: &[Uuid]) -> Result<Vec<Uuid>, OutboxError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query(&NOT_DEAD, &[&ids]).await?;
    rows.iter().map(|row| get(row, "id")).collect()
}

/// The result of a change of dead messages, or of its dry run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Messages redriven or discarded.
    pub messages: i64,
    /// Messages that somebody marked as sent after they died: the change removes their record and publishes nothing.
    pub sent: i64,
    /// Records whose message somebody has deleted. A discard removes the record, a redrive leaves it.
    pub gone: i64,
}

/// Counts the messages that a change would find.
pub async fn count(
    session: &Session,
    filter: &Filter,
    change: Change,
) -> Result<Changed, OutboxError> {
    let seconds = filter.seconds();
    let rows = session.query(&COUNT, &filter.params(&seconds)).await?;
    let Some(row) = rows.first() else {
        return Ok(Changed::default());
    };
    let (all, gone): (i64, i64) = (get(row, "n")?, get(row, "gone")?);
    Ok(match change {
        Change::Redrive => {
            let sent: i64 = get(row, "sent")?;
            Changed {
                messages: all - gone - sent,
                sent,
                gone,
            }
        }
        Change::Discard => Changed {
            messages: all,
            sent: 0,
            gone,
        },
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Redrive,
    Discard,
}

/// Changes every dead message that fits the filter, in bounded transactions, at the pace. `total` holds the committed ones, also
/// after an error.
pub async fn change(
    session: &Session,
    filter: &Filter,
    change: Change,
    operation: &Operation,
    pace: &mut Pace<'_>,
    total: &mut Changed,
) -> Result<(), OutboxError> {
    let mut after = BEFORE_ALL;
    let mut record = Record::new(operation);
    loop {
        let most = pace.most(STEP);
        let changing = step(session, filter, change, after, most, &mut record);
        let (taken, changed) = session.commits(changing).await?;
        total.messages += changed.messages;
        total.sent += changed.sent;
        total.gone += changed.gone;
        if taken.records < most {
            break;
        }
        after = taken.last;
        pace.after(taken.records).await;
    }
    record.finish(session).await?;
    if change == Change::Redrive {
        total.gone = count(session, filter, change).await?.gone;
    }
    Ok(())
}

/// The records that a step took, and where their messages are now.
struct Taken {
    records: i64,
    last: Place,
    message_ids: Vec<Uuid>,
    lanes: Vec<Lane>,
    ids: Vec<i64>,
    replays: Vec<bool>,
    redriven: Vec<i32>,
    /// Lanes of messages that are no longer where they died.
    moved_to: Vec<Lane>,
    gone: i64,
}

/// A trigger or a rule can let a statement succeed and keep its rows as they are, so each statement is proven; a difference is
/// an error, and the caller rolls back.
async fn step(
    session: &Session,
    filter: &Filter,
    change: Change,
    after: Place,
    most: i64,
    record: &mut Record<'_>,
) -> Result<(Taken, Changed), OutboxError> {
    let taken = take(session, filter, change, after, most).await?;
    if taken.records == 0 {
        return Ok((taken, Changed::default()));
    }
    if !taken.moved_to.is_empty() {
        session.query(&HOLD, &[&taken.moved_to]).await?;
    }
    let changed = match change {
        Change::Redrive => redrive(session, &taken).await?,
        Change::Discard => discard(session, &taken).await?,
    };
    // Also the records that were removed because their messages are sent.
    record
        .add(session, taken.records, &taken.message_ids)
        .await?;
    Ok((taken, changed))
}

async fn take(
    session: &Session,
    filter: &Filter,
    change: Change,
    after: Place,
    most: i64,
) -> Result<Taken, OutboxError> {
    let seconds = filter.seconds();
    let also_gone = change == Change::Discard;
    let step: Params<'_> = &[&most, &also_gone, &after.died_at, &after.lane, &after.id];
    let params = [&filter.params(&seconds), step].concat();
    let rows = session.query(&TAKE, &params).await?;
    let mut taken = Taken {
        records: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        last: after,
        message_ids: Vec::with_capacity(rows.len()),
        lanes: Vec::with_capacity(rows.len()),
        ids: Vec::with_capacity(rows.len()),
        replays: Vec::with_capacity(rows.len()),
        redriven: Vec::with_capacity(rows.len()),
        moved_to: Vec::new(),
        gone: 0,
    };
    let mut kept = (0, None);
    for row in &rows {
        let (lane, id): (Lane, i64) = (get(row, "lane")?, get(row, "id")?);
        let died_at = get(row, "died_at")?;
        taken.last = Place { died_at, lane, id };
        if !get::<bool, _>(row, "taken")? {
            kept = (kept.0 + 1, kept.1.or(Some(id)));
            continue;
        }
        taken.message_ids.push(get(row, "message_id")?);
        let Some(now_in) = get::<Option<Lane>, _>(row, "now_in")? else {
            taken.gone += 1;
            continue;
        };
        if now_in != lane {
            taken.moved_to.push(now_in);
        }
        taken.lanes.push(now_in);
        taken.ids.push(id);
        taken.replays.push(get(row, "replay")?);
        taken.redriven.push(get(row, "redriven")?);
    }
    written(TAKE.action, "dead", "DELETEs", kept)?;
    Ok(taken)
}

async fn redrive(session: &Session, taken: &Taken) -> Result<Changed, OutboxError> {
    let params: Params<'_> = &[&taken.lanes, &taken.ids, &taken.replays, &taken.redriven];
    let filed = session.query(&REDRIVE, params).await?;
    let params = &params[..3];
    let mut changed = Changed {
        messages: i64::try_from(filed.len()).unwrap_or(i64::MAX),
        ..Changed::default()
    };
    if changed.messages < taken.records {
        let left = session.query(&NOT_REDRIVEN, params).await?;
        if let Some(row) = left.first() {
            let unfiled = (get(row, "unfiled")?, get(row, "first")?);
            written(REDRIVE.action, "waiting", "INSERTs", unfiled)?;
            changed.sent = get(row, "sent")?;
        }
    }
    Ok(changed)
}

async fn discard(session: &Session, taken: &Taken) -> Result<Changed, OutboxError> {
    let params: Params<'_> = &[&taken.lanes, &taken.ids];
    session.execute(&DISCARD, params).await?;
    let left = session.query(&NOT_DISCARDED, params).await?;
    if let Some(row) = left.first() {
        let left = (get(row, "unwritten")?, get(row, "first")?);
        written(DISCARD.action, "message", "DELETEs", left)?;
    }
    Ok(Changed {
        messages: taken.records,
        sent: 0,
        gone: taken.gone,
    })
}

/// `rows`: how many rows are not what the statement wrote, and the first of them.
fn written(
    action: &'static str,
    table: &'static str,
    verb: &'static str,
    rows: (i64, Option<i64>),
) -> Result<(), OutboxError> {
    let (messages, first) = rows;
    match first {
        Some(position) if messages > 0 => Err(OutboxError::NotWritten {
            action,
            table,
            verb,
            messages: usize::try_from(messages).unwrap_or(usize::MAX),
            position,
        }),
        _ => Ok(()),
    }
}
