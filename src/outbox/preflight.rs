//! What this role may do here, and what is here, asked before the first claim: a missing grant or column is said at
//! start, not at 3 a.m.

use super::{
    OutboxError,
    claim::get,
    session::{Query, Session},
};

const MISSING: Query = Query {
    action: "check privileges",
    sql: include_str!("sql/missing_privileges.sql"),
    types: &[],
};

const LOST: Query = Query {
    action: "check the schema",
    sql: include_str!("sql/missing_parts.sql"),
    types: &[],
};

const ENCODING: Query = Query {
    action: "check the encoding",
    sql: "SELECT current_setting('server_encoding') AS word",
    types: &[],
};

/// PostgreSQL does not say in which encoding text is, so it converts none, and one row that is not UTF-8 would fail
/// every claim that reads it. <https://www.postgresql.org/docs/current/multibyte.html>
pub async fn is_without_encoding(session: &Session) -> Result<bool, OutboxError> {
    let encoding = words(session, &ENCODING).await?;
    Ok(encoding.iter().any(|name| name == "SQL_ASCII"))
}

/// The GRANT statements that this role lacks to run a relay; empty when it has all.
pub async fn missing_privileges(session: &Session) -> Result<Vec<String>, OutboxError> {
    words(session, &MISSING).await
}

/// Tables, columns and properties of the schema version that is recorded, and that somebody has taken away or changed
/// since.
pub async fn missing_parts(session: &Session) -> Result<Vec<String>, OutboxError> {
    words(session, &LOST).await
}

async fn words(session: &Session, query: &Query) -> Result<Vec<String>, OutboxError> {
    let rows = session.query(query, &[]).await?;
    rows.iter().map(|row| get(row, "word")).collect()
}
