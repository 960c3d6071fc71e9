//! The condition of the outbox, for a person: what holds its marks and its vacuum back, dead rows, retention, producers' grants.
//!
//! Each statement has a bound of its own: statistics, the catalog, or a number of rows for each lane.

use super::{
    OutboxError,
    blockers::Who,
    row::get,
    session::{Query, Session},
};

const PRODUCERS: Query = Query {
    action: "check the producers' privileges",
    sql: include_str!("sql/doctor_producers.sql"),
    types: &[],
};
const WRITERS: Query = Query {
    action: "look for transactions that write",
    sql: include_str!("sql/doctor_writers.sql"),
    types: &[],
};
const MARKS: Query = Query {
    action: "look for marks that are held back",
    sql: include_str!("sql/doctor_marks.sql"),
    types: &[],
};
const HORIZON: Query = Query {
    action: "look for what holds vacuum back",
    sql: include_str!("sql/doctor_horizon.sql"),
    types: &[],
};
const TABLES: Query = Query {
    action: "look at the statistics of the tables",
    sql: include_str!("sql/doctor_tables.sql"),
    types: &[],
};
const RETENTION: Query = Query {
    action: "look for old sent messages",
    sql: include_str!("sql/doctor_retention.sql"),
    types: &[],
};
const RETURNED: Query = Query {
    action: "look for returned messages",
    sql: include_str!("sql/doctor_returned.sql"),
    types: &[],
};

/// A role that may insert events, and the GRANT statements that it lacks.
#[derive(Debug, Clone)]
pub struct Producer {
    pub role: String,
    pub missing: Vec<String>,
}

/// At most 20.
pub async fn producers(session: &Session) -> Result<Vec<Producer>, OutboxError> {
    let rows = session.query(&PRODUCERS, &[]).await?;
    let producer = |row| {
        Ok(Producer {
            role: get(row, "producer")?,
            missing: get(row, "missing")?,
        })
    };
    rows.iter().map(producer).collect()
}

/// A transaction that has written.
#[derive(Debug, Clone)]
pub struct Writer {
    pub who: Who,
    pub user: String,
    pub application: String,
    pub database: String,
    /// `None`: this role may not see it.
    pub seconds: Option<f64>,
}

/// The marks, and what may hold them back.
#[derive(Debug, Clone)]
pub struct Marks {
    /// The oldest first; at most five.
    pub writers: Vec<Writer>,
    /// Lanes with a message that was written after the oldest open transaction began.
    pub lanes: i64,
    /// The age of the oldest of these messages: the transaction is at least that old.
    pub seconds: f64,
}

pub async fn marks(session: &Session) -> Result<Marks, OutboxError> {
    let rows = session.query(&MARKS, &[]).await?;
    let (lanes, seconds) = match rows.first() {
        Some(row) => (get(row, "lanes")?, get(row, "seconds")?),
        None => (0, 0.0),
    };
    let writer = |row| {
        Ok(Writer {
            who: match get(row, "pid")? {
                Some(pid) => Who::Session { pid },
                None => Who::Prepared {
                    name: get(row, "gid")?,
                },
            },
            user: get(row, "login")?,
            application: get(row, "application")?,
            database: get(row, "database")?,
            seconds: get(row, "seconds")?,
        })
    };
    let rows = session.query(&WRITERS, &[]).await?;
    Ok(Marks {
        writers: rows
            .iter()
            .map(writer)
            .collect::<Result<_, OutboxError>>()?,
        lanes,
        seconds,
    })
}

/// Something that keeps VACUUM from removing old versions of rows.
#[derive(Debug, Clone)]
pub struct Holder {
    pub what: String,
    /// Transactions since.
    pub age: i32,
}

/// The oldest first; at most three.
pub async fn horizon(session: &Session) -> Result<Vec<Holder>, OutboxError> {
    let rows = session.query(&HORIZON, &[]).await?;
    let holder = |row| {
        Ok(Holder {
            what: get(row, "what")?,
            age: get(row, "age")?,
        })
    };
    rows.iter().map(holder).collect()
}

/// The statistics of a table.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: String,
    pub live: i64,
    pub dead: i64,
    /// `None`: never since the statistics were reset.
    pub vacuumed_seconds_ago: Option<f64>,
}

pub async fn tables(session: &Session) -> Result<Vec<Table>, OutboxError> {
    let rows = session.query(&TABLES, &[]).await?;
    let table = |row| {
        Ok(Table {
            name: get(row, "name")?,
            live: get(row, "live")?,
            dead: get(row, "dead")?,
            vacuumed_seconds_ago: get(row, "vacuumed_seconds_ago")?,
        })
    };
    rows.iter().map(table).collect()
}

/// The age in seconds of the oldest sent message among the first rows of each lane; `None` if no message there is sent.
pub async fn oldest_sent(session: &Session) -> Result<Option<f64>, OutboxError> {
    let rows = session.query(&RETENTION, &[]).await?;
    rows.first().map_or(Ok(None), |row| get(row, "seconds"))
}

/// Messages that the broker returned because no queue was bound for them, among the first 10,000 records of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Returned {
    pub waiting: i64,
    pub dead: i64,
}

pub async fn returned(session: &Session) -> Result<Returned, OutboxError> {
    let rows = session.query(&RETURNED, &[]).await?;
    let nothing = Returned {
        waiting: 0,
        dead: 0,
    };
    rows.first().map_or(Ok(nothing), |row| {
        Ok(Returned {
            waiting: get(row, "waiting")?,
            dead: get(row, "dead")?,
        })
    })
}
