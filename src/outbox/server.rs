//! Facts about the server and this session, for a person. Each statement reads settings, statistics or the catalog.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

const SERVER: Query = Query {
    action: "ask for the server's version",
    sql: include_str!("sql/doctor_server.sql"),
    types: &[],
};
const CONNECTIONS: Query = Query {
    action: "count the connections",
    sql: include_str!("sql/doctor_connections.sql"),
    types: &[],
};
const SETTINGS: Query = Query {
    action: "look at the server's settings",
    sql: include_str!("sql/doctor_settings.sql"),
    types: &[],
};
const CLOCK: Query = Query {
    action: "ask for the server's time",
    sql: "SELECT extract(epoch FROM clock_timestamp())::float8 AS seconds",
    types: &[],
};

#[derive(Debug, Clone)]
pub struct Server {
    pub version: String,
    /// For example 160004.
    pub number: i32,
    pub database: String,
    pub login: String,
    /// `None`: a socket in the file system.
    pub address: Option<String>,
    pub port: Option<i32>,
    /// The version of TLS; `None` without TLS.
    pub tls: Option<String>,
    /// This role may see when other roles' transactions began.
    pub sees_others: bool,
}

pub async fn server(session: &Session) -> Result<Server, OutboxError> {
    let row = one(session, &SERVER).await?;
    Ok(Server {
        version: get(&row, "version")?,
        number: get(&row, "number")?,
        database: get(&row, "database")?,
        login: get(&row, "login")?,
        address: get(&row, "address")?,
        port: get(&row, "port")?,
        tls: get(&row, "tls")?,
        sees_others: get(&row, "sees_others")?,
    })
}

/// Connections in use, and how many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// `None`: no limit.
    pub limit: Option<i32>,
    pub used: i32,
}

#[derive(Debug, Clone, Copy)]
pub struct Connections {
    pub server: Share,
    pub role: Share,
    pub database: Share,
}

pub async fn connections(session: &Session) -> Result<Connections, OutboxError> {
    let row = one(session, &CONNECTIONS).await?;
    let share = |limit: &'static str, used: &'static str| -> Result<Share, OutboxError> {
        let limit: Option<i32> = get(&row, limit)?;
        Ok(Share {
            limit: limit.filter(|limit| *limit >= 0),
            used: get(&row, used)?,
        })
    };
    Ok(Connections {
        server: share("server_limit", "server_used")?,
        role: share("role_limit", "role_used")?,
        database: share("database_limit", "database_used")?,
    })
}

/// Settings that harm an outbox, each in words.
pub async fn harmful_settings(session: &Session) -> Result<Vec<String>, OutboxError> {
    let rows = session.query(&SETTINGS, &[]).await?;
    rows.iter().map(|row| get(row, "word")).collect()
}

/// The server's time, and this machine's time before the question and after the answer. Seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub before: f64,
    pub server: f64,
    pub after: f64,
}

pub async fn clocks(session: &Session) -> Result<Clocks, OutboxError> {
    // The first question also prepares the statement, which takes a round trip of its own.
    one(session, &CLOCK).await?;
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64())
    };
    let before = now();
    let row = one(session, &CLOCK).await?;
    let after = now();
    Ok(Clocks {
        before,
        server: get(&row, "seconds")?,
        after,
    })
}

async fn one(session: &Session, query: &Query) -> Result<tokio_postgres::Row, OutboxError> {
    let row = session.query(query, &[]).await?.pop();
    row.ok_or_else(|| OutboxError::Unusable {
        action: query.action,
        why: "the server returned no row".to_owned(),
    })
}
