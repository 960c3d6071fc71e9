//! What this role may do here, asked before the first claim: a missing grant is said at start, not at 3 a.m.

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

/// The GRANT statements that this role lacks to run a relay; empty when it has all.
pub async fn missing_privileges(session: &Session) -> Result<Vec<String>, OutboxError> {
    session
        .query(&MISSING, &[])
        .await?
        .iter()
        .map(|row| get(row, "mend"))
        .collect()
}
