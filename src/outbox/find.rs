//! Finds the positions of messages. It only reads, and every statement reads a bounded number of rows.

use std::time::SystemTime;

use outbox_core::{
    message::{Lane, Position},
    scheduling::all_lanes,
};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    OutboxError,
    row::get,
    search::{self, Backwards, Window},
    session::{Query, Session},
};

const ENDS: Query = Query {
    action: "look at the ends of outbox.message",
    sql: include_str!("sql/where_ends.sql"),
    types: &[],
};
const POSITION: Query = Query {
    action: "find the position at a time",
    sql: include_str!("sql/where_position.sql"),
    types: &[Type::INT2_ARRAY, Type::TIMESTAMPTZ, Type::INT8, Type::INT8],
};
const WINDOW: Query = Query {
    action: "look for a message id",
    sql: include_str!("sql/where_window.sql"),
    types: &[Type::UUID, Type::INT2_ARRAY, Type::INT8, Type::INT8],
};
const FILED: Query = Query {
    action: "look for a message id among the waiting and the dead",
    sql: include_str!("sql/where_filed.sql"),
    types: &[Type::UUID, Type::INT8],
};
const IN_LANE: Query = Query {
    action: "look for a message id in a lane",
    sql: include_str!("sql/where_lane.sql"),
    types: &[Type::UUID, Type::INT2, Type::INT8, Type::INT8, Type::INT8],
};
const CORRELATED: Query = Query {
    action: "look for a correlation id",
    sql: include_str!("sql/where_correlated.sql"),
    types: &[Type::TEXT, Type::TEXT, Type::INT8, Type::INT8],
};
const BELOW: Query = Query {
    action: "look for the next position below a gap",
    sql: include_str!("sql/where_below.sql"),
    types: &[Type::INT8],
};
const KEY: Query = Query {
    action: "list the messages of a key",
    sql: include_str!("sql/where_key.sql"),
    types: &[Type::TEXT, Type::TEXT, Type::INT8, Type::INT8],
};
const KEY_LANE: Query = Query {
    action: "compute a key's lane",
    sql: "SELECT (outbox.key_hash($1, $2) & 63)::smallint AS lane",
    types: &[Type::TEXT, Type::TEXT],
};
const WHEN: Query = Query {
    action: "read when a position was written",
    // The nearest message at or above a position, in any lane.
    sql: "SELECT near.created_at FROM generate_series(0, 63) AS l (lane) \
          CROSS JOIN LATERAL (SELECT m.id, m.created_at FROM outbox.message m \
                              WHERE m.lane = l.lane::smallint AND m.id >= $1 ORDER BY m.id LIMIT 1) near \
          WHERE isfinite(near.created_at) ORDER BY near.id LIMIT 1",
    types: &[Type::INT8],
};
const SIZE: Query = Query {
    action: "read the size of outbox.message",
    sql: "SELECT pg_relation_size('outbox.message') AS bytes",
    types: &[],
};

/// Most rows of `outbox.waiting`, and of `outbox.dead`, that are read for an id.
const FILED_ROWS: i64 = 100_000;
/// Most rows of a key's lane that each part of a list reads.
const KEY_ROWS: i64 = 20_000;
/// Most messages that one answer has.
pub const MOST: usize = 100;
/// Rows of a lane that one statement reads.
const LANE_ROWS: i64 = 20_000;
/// Most rows that a search between two times, or in a key's lane, reads.
pub const BUDGET: i64 = 1_000_000;

/// The first and the last position; `None`: the table is empty.
pub async fn ends(session: &Session) -> Result<Option<Window>, OutboxError> {
    let rows = session.query(&ENDS, &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let (first, last): (Option<i64>, Option<i64>) = (get(row, "first")?, get(row, "last")?);
    Ok(first.zip(last).map(|(first, last)| Window { first, last }))
}

/// The position at a time, in these lanes: a message of that time is in this window, but for clocks. The window is large only where
/// positions have gaps.
pub async fn position_at(
    session: &Session,
    lanes: &[Lane],
    at: SystemTime,
    ends: Window,
) -> Result<Window, OutboxError> {
    let rows = session
        .query(&POSITION, &[&lanes, &at, &ends.first, &ends.last])
        .await?;
    rows.first().map_or(Ok(ends), |row| {
        Ok(Window {
            first: get(row, "above")?,
            last: get(row, "below")?,
        })
    })
}

pub async fn lane_of_key(
    session: &Session,
    aggregate_type: &str,
    aggregate_id: &str,
) -> Result<Option<Lane>, OutboxError> {
    let rows = session
        .query(&KEY_LANE, &[&aggregate_type, &aggregate_id])
        .await?;
    rows.first().map_or(Ok(None), |row| get(row, "lane"))
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Hits {
    pub positions: Vec<Position>,
    pub rows: i64,
    /// The positions that were read; `None`: none.
    pub read: Option<Window>,
    /// The search ended before its window did, at its budget or with `MOST` messages.
    pub is_cut: bool,
}

impl Hits {
    fn add(&mut self, window: Window, rows: i64, positions: impl IntoIterator<Item = Position>) {
        self.rows += rows;
        self.positions.extend(positions);
        self.read = Some(match self.read {
            None => window,
            Some(read) => Window {
                first: read.first.min(window.first),
                last: read.last.max(window.last),
            },
        });
    }
}

/// Looks around the position at the id's time, farther and farther, until it finds the id.
pub async fn around(
    session: &Session,
    id: Uuid,
    lanes: &[Lane],
    at: SystemTime,
    ends: Window,
) -> Result<Hits, OutboxError> {
    let position = position_at(session, lanes, at, ends).await?;
    let mut hits = Hits::default();
    for window in search::around(position.last, ends) {
        look(session, id, lanes, window, &mut hits).await?;
        if !hits.positions.is_empty() {
            return Ok(hits);
        }
    }
    if search::has_gap(position) {
        search_window(session, id, position, Some(BUDGET), &mut hits).await?;
    }
    Ok(hits)
}

/// Looks at all positions of a window, the newest first. `budget`: most rows that it reads.
pub async fn between(
    session: &Session,
    id: Uuid,
    window: Window,
    budget: Option<i64>,
) -> Result<Hits, OutboxError> {
    let mut hits = Hits::default();
    search_window(session, id, window, budget, &mut hits).await?;
    Ok(hits)
}

async fn search_window(
    session: &Session,
    id: Uuid,
    window: Window,
    budget: Option<i64>,
    hits: &mut Hits,
) -> Result<(), OutboxError> {
    let lanes: Vec<Lane> = all_lanes().collect();
    let mut windows = Backwards::new(window);
    while let Some(window) = windows.next() {
        let rows = look(session, id, &lanes, window, hits).await?;
        if !hits.positions.is_empty() {
            break;
        }
        if rows == 0 {
            skip_gap(session, &mut windows).await?;
        }
        if windows.last().is_some() && budget.is_some_and(|budget| hits.rows >= budget) {
            hits.is_cut = true;
            break;
        }
    }
    Ok(())
}

/// An empty window may be the beginning of a gap.
async fn skip_gap(session: &Session, windows: &mut Backwards) -> Result<(), OutboxError> {
    if let Some(last) = windows.last() {
        let rows = session.query(&BELOW, &[&last]).await?;
        windows.skip_to(rows.first().map_or(Ok(None), |row| get(row, "id"))?);
    }
    Ok(())
}

async fn look(
    session: &Session,
    id: Uuid,
    lanes: &[Lane],
    window: Window,
    hits: &mut Hits,
) -> Result<i64, OutboxError> {
    let rows = session
        .query(&WINDOW, &[&id, &lanes, &window.first, &window.last])
        .await?;
    let Some(row) = rows.first() else {
        return Ok(0);
    };
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = (get(row, "lanes")?, get(row, "ids")?);
    let rows: i64 = get(row, "looked")?;
    let found = lanes.into_iter().zip(ids);
    hits.add(window, rows, found.map(|(lane, id)| Position { lane, id }));
    Ok(rows)
}

/// Looks at a key's lane, the newest messages first.
pub async fn in_lane(
    session: &Session,
    id: Uuid,
    lane: Lane,
    window: Window,
    budget: Option<i64>,
) -> Result<Hits, OutboxError> {
    let mut hits = Hits::default();
    let mut unread = Some(window.last);
    while let Some(last) = unread.filter(|last| *last >= window.first && hits.positions.is_empty())
    {
        if budget.is_some_and(|budget| hits.rows >= budget) {
            hits.is_cut = true;
            break;
        }
        let rows = session
            .query(&IN_LANE, &[&id, &lane, &last, &window.first, &LANE_ROWS])
            .await?;
        let Some(row) = rows.first() else { break };
        let looked: i64 = get(row, "looked")?;
        let lowest: Option<i64> = get(row, "lowest")?;
        let ids: Vec<i64> = get(row, "ids")?;
        let first = if looked < LANE_ROWS {
            window.first
        } else {
            lowest.unwrap_or(window.first)
        };
        let read = Window { first, last };
        hits.add(
            read,
            looked,
            ids.into_iter().map(|id| Position { lane, id }),
        );
        unread = first.checked_sub(1);
    }
    Ok(hits)
}

/// Looks among the waiting and the dead.
pub async fn filed(session: &Session, id: Uuid) -> Result<Vec<Position>, OutboxError> {
    let rows = session.query(&FILED, &[&id, &FILED_ROWS]).await?;
    rows.iter()
        .map(|row| {
            Ok(Position {
                lane: get(row, "lane")?,
                id: get(row, "id")?,
            })
        })
        .collect()
}

/// Looks for a correlation id at all positions of a window, the newest first.
pub async fn correlated(
    session: &Session,
    correlation_id: &str,
    window: Window,
    budget: Option<i64>,
) -> Result<Hits, OutboxError> {
    let pattern = pattern(correlation_id);
    let mut hits = Hits::default();
    let mut windows = Backwards::new(window);
    while let Some(window) = windows.next() {
        let Window { first, last } = window;
        let rows = session
            .query(&CORRELATED, &[&correlation_id, &pattern, &first, &last])
            .await?;
        let mut looked = 0;
        let mut found = Vec::new();
        for row in &rows {
            looked = get(row, "looked")?;
            let (Some(lane), Some(id)) = (get(row, "lane")?, get(row, "id")?) else {
                continue;
            };
            let headers: Option<String> = get(row, "headers")?;
            if headers.is_none_or(|headers| carries(&headers, correlation_id)) {
                found.push(Position { lane, id });
            }
        }
        hits.add(window, looked, found);
        // One window may have more than its statement returns.
        hits.is_cut |= rows.len() > MOST;
        if looked == 0 {
            skip_gap(session, &mut windows).await?;
        }
        let is_enough =
            hits.positions.len() >= MOST || budget.is_some_and(|budget| hits.rows >= budget);
        if windows.last().is_some() && is_enough {
            hits.is_cut = true;
            break;
        }
    }
    hits.is_cut |= hits.positions.len() > MOST;
    hits.positions.truncate(MOST);
    Ok(hits)
}

/// A regular expression of PostgreSQL for the member `correlation_id` with this value, however its writer spells JSON: with every
/// other character than ASCII escaped (Python), with `&`, `<` and `>` escaped (Go, Rails), with quotes and `+`, too (.NET), or
/// with slashes escaped (PHP).
fn pattern(correlation_id: &str) -> String {
    let mut pattern = r#""correlation_id"\s*:\s*""#.to_owned();
    // PostgreSQL refuses an expression that is too complex. AMQP has no longer correlation id.
    if correlation_id.len() > 255 {
        return pattern;
    }
    for c in correlation_id.chars() {
        let mut escaped = String::new();
        for unit in c.encode_utf16(&mut [0; 2]) {
            escaped.push_str(r"\\u");
            for digit in format!("{unit:04x}").chars() {
                match digit.to_ascii_uppercase() {
                    upper if upper == digit => escaped.push(digit),
                    upper => escaped.extend(['[', digit, upper, ']']),
                }
            }
        }
        let plain = match c {
            '"' => r#"\\""#.to_owned(),
            '\\' => r"\\\\".to_owned(),
            '/' => r"\\?/".to_owned(),
            '\n' => r"\\n".to_owned(),
            '\r' => r"\\r".to_owned(),
            '\t' => r"\\t".to_owned(),
            '\u{8}' => r"\\b".to_owned(),
            '\u{c}' => r"\\f".to_owned(),
            c if c.is_ascii_punctuation() => format!(r"\{c}"),
            c => c.to_string(),
        };
        pattern.push_str(&format!("(?:{plain}|{escaped})"));
    }
    pattern + "\""
}

/// Whether the headers' JSON text has this correlation id.
fn carries(headers: &str, correlation_id: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(headers).is_ok_and(|headers| {
        headers
            .get("correlation_id")
            .is_some_and(|id| id == correlation_id)
    })
}

/// The messages of a key.
#[derive(Debug)]
pub struct OfKey {
    /// Not sent, or to be published again, the oldest first.
    pub open: Vec<Position>,
    /// There may be more of them.
    pub open_is_cut: bool,
    /// The last ones that were sent.
    pub sent: Vec<Position>,
    /// Older messages of the lane were not looked at.
    pub sent_is_cut: bool,
}

/// Lists the messages of a key that are not sent, and the `sent` last ones that are.
pub async fn of_key(
    session: &Session,
    aggregate_type: &str,
    aggregate_id: &str,
    sent: i64,
) -> Result<OfKey, OutboxError> {
    let rows = session
        .query(&KEY, &[&aggregate_type, &aggregate_id, &KEY_ROWS, &sent])
        .await?;
    let mut found = OfKey {
        open: Vec::new(),
        open_is_cut: false,
        sent: Vec::new(),
        sent_is_cut: false,
    };
    let Some(row) = rows.first() else {
        return Ok(found);
    };
    let lane: Lane = get(row, "lane")?;
    let positions = |ids: Vec<i64>| ids.into_iter().map(|id| Position { lane, id }).collect();
    let mut open: Vec<i64> = get(row, "open")?;
    found.open_is_cut = get::<bool, _>(row, "open_is_cut")? || open.len() > MOST;
    open.truncate(MOST);
    found.open = positions(open);
    found.sent = positions(get(row, "sent")?);
    found.sent_is_cut = get(row, "sent_is_cut")?;
    Ok(found)
}

/// Bytes of the table, without its index and what is stored out of line.
pub async fn table_bytes(session: &Session) -> Result<i64, OutboxError> {
    let rows = session.query(&SIZE, &[]).await?;
    rows.first().map_or(Ok(0), |row| get(row, "bytes"))
}

/// When the first message at or above this position was written.
pub async fn written_at(
    session: &Session,
    position: i64,
) -> Result<Option<SystemTime>, OutboxError> {
    let rows = session.query(&WHEN, &[&position]).await?;
    rows.first().map_or(Ok(None), |row| get(row, "created_at"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_each_character_in_every_spelling() {
        assert_eq!(
            pattern("a/+\"\\é𝄞"),
            [
                r#""correlation_id"\s*:\s*""#,
                r"(?:a|\\u0061)",
                r"(?:\\?/|\\u002[fF])",
                r"(?:\+|\\u002[bB])",
                r#"(?:\\"|\\u0022)"#,
                r"(?:\\\\|\\u005[cC])",
                r"(?:é|\\u00[eE]9)",
                r"(?:𝄞|\\u[dD]834\\u[dD][dD]1[eE])",
                "\""
            ]
            .concat()
        );
    }

    #[test]
    fn a_correlation_id_is_found_however_json_spells_it() {
        for (id, json) in [
            ("c-1", r#"{"correlation_id":"c-1"}"#),
            ("é", r#"{"correlation_id":"é"}"#),
            ("é", r#"{"correlation_id":"\u00e9"}"#),
            ("ë/𝄞", r#"{"correlation_id":"\u00EB\/\uD834\uDD1E"}"#),
            ("a\"b", r#"{"correlation_id":"a\"b"}"#),
        ] {
            assert!(carries(json, id), "{id}");
        }
        for json in [
            r#"{"correlation_id":1}"#,
            r#"{"other":"c-1"}"#,
            r#"["c-1"]"#,
            "null",
            "{",
        ] {
            assert!(!carries(json, "c-1"), "{json}");
        }
    }
}
