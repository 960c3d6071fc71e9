//! Lists waiting messages: what each waits for, since when, and until when.

use serde::Serialize;
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    OutboxError,
    filter::Filter,
    row::get,
    session::{Params, Query, Session},
    waiting::State,
};

#[derive(Debug, Serialize)]
pub struct WaitingMessage {
    pub message_id: Uuid,
    pub position: i64,
    /// Of [`State`].
    pub state: String,
    pub cause: String,
    pub since: Option<String>,
    pub attempts: i32,
    pub redriven: i32,
    pub reason: Option<String>,
    pub last_error: Option<String>,
    /// `None`: behind another message, or held.
    pub next_try_at: Option<String>,
    /// The message of its key that must be settled first.
    pub behind: Option<Uuid>,
    pub failure_group: Option<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
}

const TYPES: &[Type] = &[
    Type::TEXT_ARRAY,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::FLOAT8,
    Type::UUID_ARRAY,
    Type::TEXT,
    Type::TEXT_ARRAY,
    Type::TEXT,
    Type::TEXT_ARRAY,
    Type::INT8,
    Type::TEXT,
    Type::INT2,
    Type::INT8,
];
const OLDEST: Query = Query {
    action: "list waiting messages",
    sql: concat!(
        include_str!("sql/waiting_list_oldest.sql"),
        include_str!("sql/waiting_list.sql")
    ),
    types: TYPES,
};
const REPLAYS: Query = Query {
    action: "list waiting replays",
    sql: concat!(
        include_str!("sql/waiting_list_replays.sql"),
        include_str!("sql/waiting_list.sql")
    ),
    types: TYPES,
};
const COUNTS: Query = Query {
    action: "count waiting messages",
    sql: include_str!("sql/waiting_counts.sql"),
    types: &[Type::INT8],
};

/// Rows that one statement looks at.
const ROWS: i64 = 1000;
/// Most rows that the counts read.
pub const COUNTED: i64 = 100_000;

/// Those that wait longest first, then the replays, page by page.
pub struct Pages<'a> {
    session: &'a Session,
    filter: &'a Filter,
    /// The lists to read with their states, the next one last.
    lists: Vec<(&'static Query, Vec<&'static str>)>,
    after: (String, i16, i64),
}

fn before_all() -> (String, i16, i64) {
    ("-infinity".to_owned(), -1, 0)
}

impl<'a> Pages<'a> {
    pub fn new(session: &'a Session, filter: &'a Filter, states: &[State]) -> Self {
        let words = |replays: bool| -> Vec<&'static str> {
            let states = states.iter();
            let those = states.filter(|state| (**state == State::Replay) == replays);
            those.map(|state| state.as_str()).collect()
        };
        let lists = [(&REPLAYS, words(true)), (&OLDEST, words(false))];
        Self {
            session,
            filter,
            lists: lists
                .into_iter()
                .filter(|(_, states)| !states.is_empty())
                .collect(),
            after: before_all(),
        }
    }

    /// The next page that is not empty; empty at the end.
    pub async fn next(&mut self) -> Result<Vec<WaitingMessage>, OutboxError> {
        while let Some((list, states)) = self.lists.last() {
            let seconds = self.filter.seconds();
            let (due_since, lane, id) = &self.after;
            let page: Params<'_> = &[states, &ROWS, due_since, lane, id];
            let params = [&self.filter.params(&seconds), page].concat();
            let rows = self.session.query(list, &params).await?;
            let Some(last) = rows.last() else {
                self.lists.pop();
                self.after = before_all();
                continue;
            };
            self.after = (
                get(last, "due_since")?,
                get(last, "lane")?,
                get(last, "position")?,
            );
            let mut found = Vec::new();
            for row in &rows {
                if get(row, "fits")? {
                    found.push(message(row)?);
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }
}

fn message(row: &Row) -> Result<WaitingMessage, OutboxError> {
    Ok(WaitingMessage {
        message_id: get(row, "message_id")?,
        position: get(row, "position")?,
        state: get(row, "state")?,
        cause: get(row, "cause")?,
        since: get(row, "since")?,
        attempts: get(row, "attempts")?,
        redriven: get(row, "redriven")?,
        reason: get(row, "reason")?,
        last_error: get(row, "last_error")?,
        next_try_at: get(row, "next_try_at")?,
        behind: get(row, "behind")?,
        failure_group: get(row, "failure_group")?,
        aggregate_type: get(row, "aggregate_type")?,
        aggregate_id: get(row, "aggregate_id")?,
        event_type: get(row, "event_type")?,
        exchange: get(row, "exchange")?,
        routing_key: get(row, "routing_key")?,
    })
}

/// How many messages wait in each state, among the first [`COUNTED`] records.
pub async fn counts(session: &Session) -> Result<Vec<(String, i64)>, OutboxError> {
    let rows = session.query(&COUNTS, &[&COUNTED]).await?;
    rows.iter()
        .map(|row| Ok((get(row, "state")?, get(row, "n")?)))
        .collect()
}
