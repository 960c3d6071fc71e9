//! Checks the role's privileges and the schema's parts before the first claim, so that a missing grant or column shows at the
//! start and not at 3 a.m.

use super::{
    OutboxError,
    parts::{self, Difference, Weight},
    row::get,
    schema::OUTBOX,
    session::{Query, Session},
};

const MISSING: Query = Query {
    action: "check privileges",
    sql: include_str!("sql/missing_privileges.sql"),
    types: &[],
};

const WRITABLE: Query = Query {
    action: "check whether transactions may write",
    sql: "SELECT pg_catalog.pg_is_in_recovery() AS standby, \
                 pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on' AS read_only",
    types: &[],
};

const SHARED: Query = Query {
    action: "check who has rights elsewhere",
    sql: include_str!("sql/shared_roles.sql"),
    types: &[],
};

const ENCODING: Query = Query {
    action: "check the encoding",
    sql: "SELECT current_setting('server_encoding') AS word",
    types: &[],
};

/// With the encoding SQL_ASCII PostgreSQL does not know the encoding of a text and converts none. A row that is not UTF-8
/// cannot be sent. <https://www.postgresql.org/docs/current/multibyte.html>
pub async fn is_without_encoding(session: &Session) -> Result<bool, OutboxError> {
    let encoding = words(session, &ENCODING).await?;
    Ok(encoding.iter().any(|name| name == "SQL_ASCII"))
}

/// The GRANT statements that this role lacks to run a relay; empty if it lacks none.
pub async fn missing_privileges(session: &Session) -> Result<Vec<String>, OutboxError> {
    words(session, &MISSING).await
}

/// What somebody has done to the recorded schema version since.
pub struct Changes {
    /// Parts that were removed or changed, and rules that were added.
    pub differences: Vec<Difference>,
    /// Warns of triggers that were added to the messages.
    pub triggers: Option<String>,
    /// At least one part of the schema is here.
    pub any: bool,
}

pub async fn changes(session: &Session) -> Result<Changes, OutboxError> {
    let here = parts::here(session, OUTBOX.name).await?;
    let expected = parts::expected(&OUTBOX);
    let mut differences = parts::differences(&expected, &here);
    differences.extend(parts::added_rules(&expected, &here));
    let triggers = parts::added_triggers(&expected, &here);
    Ok(Changes {
        any: parts::has_any_of(&expected, &here),
        differences,
        triggers: (!triggers.is_empty()).then(|| {
            format!(
                "outbox.message has triggers that are not the outbox's: {}. The relay takes each message as they leave it: one \
                 that they drop does not exist, and one whose sent_at they set is never published, and is not missed",
                triggers.join(", ")
            )
        }),
    })
}

/// The differences with which a relay fails, or loses a message's position.
pub async fn missing_parts(session: &Session) -> Result<Vec<String>, OutboxError> {
    let found = changes(session).await?;
    Ok(found
        .differences
        .iter()
        .filter(|part| part.weight() == Weight::Stops)
        .map(ToString::to_string)
        .collect())
}

/// The reason why a relay's transactions cannot write here; `None` if they can.
pub async fn is_read_only(session: &Session) -> Result<Option<&'static str>, OutboxError> {
    session.begin().await?;
    let rows = session.query(&WRITABLE, &[]).await;
    session.rollback().await?;
    let Some(row) = rows?.pop() else {
        return Ok(None);
    };
    Ok(if get(&row, "standby")? {
        Some(
            "this server is a standby, where a relay can write nothing: name the primary in database.url, or every host with \
             target_session_attrs=read-write",
        )
    } else if get(&row, "read_only")? {
        Some(
            "transactions are read-only here (default_transaction_read_only, set for the server, the database or the role): \
             find out who set it and why, and ALTER … RESET default_transaction_read_only",
        )
    } else {
        None
    })
}

/// Roles without LOGIN that have members, rights on this outbox, and rights in other databases; each with these databases.
pub async fn roles_shared_with_others(session: &Session) -> Result<Vec<String>, OutboxError> {
    words(session, &SHARED).await
}

async fn words(session: &Session, query: &Query) -> Result<Vec<String>, OutboxError> {
    let rows = session.query(query, &[]).await?;
    rows.iter().map(|row| get(row, "word")).collect()
}
