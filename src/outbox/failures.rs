//! Failures by group: messages that failed for one cause, however many there are. PostgreSQL counts the messages of a page, and
//! the pages are added here, so that neither a statement nor this program grows with the number of messages.

use std::collections::HashMap;

use serde::Serialize;
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    OutboxError,
    filter::Routes,
    row::get,
    session::{Query, Session},
};

const TYPES: &[Type] = &[Type::TEXT_ARRAY, Type::INT2, Type::INT8, Type::INT8];
const DEAD: Query = Query {
    action: "group dead messages",
    sql: concat!(
        include_str!("sql/failures_dead.sql"),
        include_str!("sql/failures.sql")
    ),
    types: TYPES,
};
const WAITING: Query = Query {
    action: "group waiting messages",
    sql: concat!(
        include_str!("sql/failures_waiting.sql"),
        include_str!("sql/failures.sql")
    ),
    types: TYPES,
};

/// Records that one statement counts.
const PAGE: i64 = 5000;
/// Most groups in memory.
pub const MOST: usize = 10_000;
/// Most message ids that a group names.
const EXAMPLES: usize = 3;

#[derive(Debug, Clone, Serialize)]
pub struct Group {
    pub group: String,
    pub reason: String,
    /// `None`: the messages were deleted.
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    /// Ids, numbers and times are replaced with a question mark.
    pub error: String,
    pub waiting: i64,
    pub dead: i64,
    /// Of these: failed again after a redrive.
    pub failed_again: i64,
    /// Seconds since 1970. Of a dead message when it died, of a waiting one since when it is due.
    pub first: Option<f64>,
    pub last: Option<f64>,
    /// Messages of the last ones.
    pub examples: Vec<Uuid>,
}

#[derive(Debug, Default)]
pub struct Failures {
    pub groups: HashMap<String, Group>,
    /// Failures of further groups.
    pub left_out: i64,
}

/// Adds up all failures.
pub async fn failures(session: &Session, routes: &Routes) -> Result<Failures, OutboxError> {
    let mut all = Failures::default();
    for query in [&WAITING, &DEAD] {
        // Before every position: people can insert rows of any position.
        let (mut lane, mut id) = (i16::MIN, i64::MIN);
        loop {
            let rows = session
                .query(query, &[routes.texts(), &lane, &id, &PAGE])
                .await?;
            let Some(last) = rows.last() else { break };
            (lane, id) = (get(last, "last_lane")?, get(last, "last_id")?);
            for row in &rows {
                if let Some(group) = get::<Option<String>, _>(row, "failure_group")?
                    && get::<Option<i64>, _>(row, "n")?.is_some()
                {
                    all.add(group, row, std::ptr::eq(query, &DEAD), routes)?;
                }
            }
        }
    }
    Ok(all)
}

impl Failures {
    fn add(
        &mut self,
        name: String,
        row: &Row,
        is_dead: bool,
        routes: &Routes,
    ) -> Result<(), OutboxError> {
        let n: i64 = get(row, "n")?;
        if self.groups.len() >= MOST && !self.groups.contains_key(&name) {
            self.left_out += n;
            return Ok(());
        }
        if !self.groups.contains_key(&name) {
            self.groups.insert(name.clone(), empty(&name, row, routes)?);
        }
        let Some(group) = self.groups.get_mut(&name) else {
            return Ok(());
        };
        *(if is_dead {
            &mut group.dead
        } else {
            &mut group.waiting
        }) += n;
        group.failed_again += get::<i64, _>(row, "again")?;
        let (first, last): (Option<f64>, Option<f64>) = (get(row, "first")?, get(row, "last")?);
        group.first = first.into_iter().chain(group.first).reduce(f64::min);
        group.last = last.into_iter().chain(group.last).reduce(f64::max);
        let examples: Vec<Uuid> = get(row, "examples")?;
        let room = EXAMPLES.saturating_sub(group.examples.len());
        group.examples.extend(examples.into_iter().take(room));
        Ok(())
    }
}

fn empty(name: &str, row: &Row, routes: &Routes) -> Result<Group, OutboxError> {
    let aggregate_type: Option<String> = get(row, "aggregate_type")?;
    let event_type: Option<String> = get(row, "event_type")?;
    let route: Option<i64> = get(row, "route")?;
    let target = match (route, aggregate_type, event_type) {
        (Some(route), Some(kind), Some(event)) => routes.target(route, &kind, &event),
        _ => None,
    };
    let (exchange, key) = target.unzip();
    Ok(Group {
        group: name.to_owned(),
        reason: get(row, "reason")?,
        exchange: get::<Option<String>, _>(row, "exchange")?.or(exchange),
        routing_key: get::<Option<String>, _>(row, "routing_key")?.or(key),
        error: get::<Option<String>, _>(row, "error")?.unwrap_or_default(),
        waiting: 0,
        dead: 0,
        failed_again: 0,
        first: None,
        last: None,
        examples: Vec::new(),
    })
}
