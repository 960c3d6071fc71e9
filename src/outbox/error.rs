//! What can go wrong with PostgreSQL, and what to do about it.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::config::ConfigError;

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("PostgreSQL ({action}): {}{}", describe(source), remedy(source))]
    Database {
        action: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("PostgreSQL ({action}): no answer within {}; the connection is discarded", humantime::format_duration(*after))]
    Timeout {
        action: &'static str,
        after: Duration,
    },
    /// Seen without an attempt to write.
    #[error("PostgreSQL ({action}): every transaction is read-only here{READ_ONLY}")]
    ReadOnly { action: &'static str },
    #[error("PostgreSQL ({action}): {why}")]
    Unusable { action: &'static str, why: String },
    #[error("TLS to PostgreSQL: {0}")]
    Tls(#[from] crate::tls::TlsError),
    #[error(
        "the database has {schema} schema version {found}, this outboxd knows {known}: run a newer outboxd here, \
         or point this one at another database"
    )]
    SchemaTooNew {
        schema: &'static str,
        found: i32,
        known: i32,
    },
    #[error("the database has {}, this outboxd needs version {known}: run `outboxd migrate`",
            match found { Some(v) => format!("outbox schema version {v}"), None => "no outbox schema".to_owned() })]
    SchemaTooOld { found: Option<i32>, known: i32 },
}

impl OutboxError {
    /// The server refused this statement, and the connection is still good once it is rolled back. One to a server that
    /// turned read-only is not: the writable one is elsewhere, and only a new connection finds it.
    pub fn is_statement_refused(&self) -> bool {
        match self {
            Self::Database { source, .. } => {
                source.as_db_error().is_some()
                    && !source.is_closed()
                    && !is_fatal(source)
                    && source.code() != Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
            }
            Self::Config(_)
            | Self::ReadOnly { .. }
            | Self::Timeout { .. }
            | Self::Unusable { .. }
            | Self::Tls(_)
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. } => false,
        }
    }

    /// The schema is not the one this program knows. Waiting alone does not mend it; a migration does.
    pub fn is_schema(&self) -> bool {
        match self {
            Self::SchemaTooNew { .. } | Self::SchemaTooOld { .. } => true,
            Self::Database { source, .. } => matches!(
                source.code(),
                Some(
                    &SqlState::UNDEFINED_TABLE
                        | &SqlState::UNDEFINED_COLUMN
                        | &SqlState::INVALID_SCHEMA_NAME
                )
            ),
            Self::Config(_)
            | Self::ReadOnly { .. }
            | Self::Timeout { .. }
            | Self::Unusable { .. }
            | Self::Tls(_) => false,
        }
    }
}

fn is_fatal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        matches!(
            db.parsed_severity(),
            Some(tokio_postgres::error::Severity::Fatal | tokio_postgres::error::Severity::Panic)
        )
    })
}

/// The driver prints `db error`; the cause is one level down.
fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error;
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

const READ_ONLY: &str = ". This server is read-only: list every host in database.url with target_session_attrs=read-write";

/// What the person at the keyboard can do, where the server's own text does not say.
fn remedy(error: &tokio_postgres::Error) -> &'static str {
    match error.code() {
        Some(
            &SqlState::INVALID_SCHEMA_NAME
            | &SqlState::UNDEFINED_TABLE
            | &SqlState::UNDEFINED_FUNCTION,
        ) => ". Run `outboxd migrate` on this database",
        Some(&SqlState::UNDEFINED_COLUMN) => {
            ". The schema is not the one this outboxd knows: compare `outboxd migrate --dry-run`"
        }
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            ". Run deploy/postgres/roles.sql (or `outboxd sql --roles`), then GRANT outbox_relay to this role"
        }
        Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            ". Check the user in database.url and the password in it or in database.password_file"
        }
        Some(&SqlState::INVALID_CATALOG_NAME) => ". Check the database name in database.url",
        Some(&SqlState::TOO_MANY_CONNECTIONS) => {
            ". Raise max_connections, or lower relay.workers (a relay uses one connection a worker and two more)"
        }
        Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => READ_ONLY,
        Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            ". Another session holds a lock on the outbox, a migration perhaps"
        }
        _ => "",
    }
}
