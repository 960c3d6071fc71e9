//! Errors of PostgreSQL, and their remedies.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::config::ConfigError;

/// The action that gives a session its settings.
pub(super) const SET_UP: &str = "set up the session";

pub(super) const CONNECT: &str = "connect";
pub(super) const COMMIT: &str = "commit";

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "PostgreSQL ({action}): {}{}",
        describe(source),
        remedy(action, source)
    )]
    Database {
        action: &'static str,
        source: tokio_postgres::Error,
    },
    /// No server of the URL accepted a session. `server`: the last one that was tried.
    #[error(
        "PostgreSQL (connect to {server}): {}{}",
        describe(source),
        remedy(CONNECT, source)
    )]
    Connect {
        server: String,
        source: tokio_postgres::Error,
    },
    #[error("PostgreSQL (connect to {server}): no answer within {}", humantime::format_duration(*after))]
    ConnectTimeout { server: String, after: Duration },
    #[error("PostgreSQL ({action}): no answer within {}; the connection is discarded", humantime::format_duration(*after))]
    Timeout {
        action: &'static str,
        after: Duration,
    },
    /// The relay detected this without an attempt to write.
    #[error("PostgreSQL ({action}): every transaction is read-only here{READ_ONLY}")]
    ReadOnly { action: &'static str },
    #[error("PostgreSQL ({action}): {why}")]
    Unusable { action: &'static str, why: String },
    #[error("PostgreSQL ({action}): the result has no column \"{column}\"{OTHER_SCHEMA}")]
    ColumnMissing {
        action: &'static str,
        column: &'static str,
    },
    #[error(
        "PostgreSQL ({action}): the column \"{column}\" has the type {here}, which outboxd does not read{OTHER_SCHEMA}"
    )]
    ColumnType {
        action: &'static str,
        column: String,
        here: String,
    },
    /// The statement succeeded, and its rows are not what it wrote.
    #[error(
        "PostgreSQL ({action}): {messages} of the rows are not what was written, the first at position {position}: a trigger or \
         a rule on outbox.{table} keeps its rows as they are. Drop it, or let it pass {verb}"
    )]
    NotWritten {
        action: &'static str,
        table: &'static str,
        /// The statements that must take effect, for a person.
        verb: &'static str,
        messages: usize,
        position: i64,
    },
    /// As `NotWritten`, of the marks of lanes.
    #[error(
        "PostgreSQL ({action}): {lanes} of the marks are not what was written, the first in lane {lane}: a trigger or a rule on \
         outbox.lane keeps its rows as they are. Drop it, or let it pass UPDATEs"
    )]
    MarkNotWritten {
        action: &'static str,
        lanes: usize,
        lane: i16,
    },
    /// As `NotWritten`, of records that were to become due.
    #[error(
        "PostgreSQL ({action}): {messages} records are not due: a trigger or a rule on outbox.waiting keeps its rows as they are. \
         Drop it, or let it pass UPDATEs"
    )]
    NotReleased { action: &'static str, messages: i64 },
    /// As `NotWritten`, of messages that were to be replayed.
    #[error(
        "PostgreSQL ({action}): {messages} messages are not filed: a trigger or a rule on outbox.waiting drops new rows. Drop it, \
         or let it pass INSERTs"
    )]
    NotFiled { action: &'static str, messages: i64 },
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
            match found { Some(v) => format!("outbox schema version {v}"), None => "no outbox schema, or nothing in outbox.migration".to_owned() })]
    SchemaTooOld { found: Option<i32>, known: i32 },
}

impl OutboxError {
    fn driver(&self) -> Option<&tokio_postgres::Error> {
        match self {
            Self::Database { source, .. } | Self::Connect { source, .. } => Some(source),
            _ => None,
        }
    }

    fn code(&self) -> Option<&SqlState> {
        self.driver()?.code()
    }

    /// The server refused this statement, and the connection is usable again after a rollback. A connection to a server that
    /// turned read-only is not usable: the writable server is elsewhere, and only a new connection finds it.
    pub fn is_statement_refused(&self) -> bool {
        match self {
            Self::Database { source, .. } | Self::Connect { source, .. } => {
                source.as_db_error().is_some()
                    && !source.is_closed()
                    && !is_fatal(source)
                    && source.code() != Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
            }
            Self::NotWritten { .. }
            | Self::MarkNotWritten { .. }
            | Self::NotReleased { .. }
            | Self::NotFiled { .. } => true,
            Self::Config(_)
            | Self::ReadOnly { .. }
            | Self::Timeout { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unusable { .. }
            | Self::ColumnMissing { .. }
            | Self::ColumnType { .. }
            | Self::Tls(_)
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. } => false,
        }
    }

    /// The server refused a COMMIT: a deferred constraint, a foreign server.
    pub fn is_refused_commit(&self) -> bool {
        matches!(self, Self::Database { action, .. } if *action == COMMIT)
            && self.is_statement_refused()
    }

    /// The server refused a statement for a reason that passes: a lock, a deadlock, a time-out.
    pub fn passes(&self) -> bool {
        matches!(
            self.code(),
            Some(
                &SqlState::LOCK_NOT_AVAILABLE
                    | &SqlState::T_R_DEADLOCK_DETECTED
                    | &SqlState::T_R_SERIALIZATION_FAILURE
                    | &SqlState::QUERY_CANCELED
            )
        )
    }

    /// The server is read-only: the writable one is elsewhere, and only a new connection finds it.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly { .. })
            || self.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
    }

    /// The session cannot be used any more: every further statement fails as well.
    pub fn ends_the_session(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Database { source, .. } => source.is_closed() || is_fatal(source),
            _ => false,
        }
    }

    /// Another session holds a lock that this session needs.
    pub fn is_lock(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// The server has no free connection: for this role, for this database, or at all.
    pub fn is_short_of_connections(&self) -> bool {
        self.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
    }

    /// The server ended a statement or the session, perhaps because of its default time-outs.
    pub(super) fn is_impatience(&self) -> bool {
        self.driver().is_some_and(|source| {
            source.is_closed()
                || source.code() == Some(&SqlState::QUERY_CANCELED)
                || is_fatal(source) && is_timeout(source)
        })
    }

    /// A prepared statement belongs to another client, or is gone.
    pub fn is_of_a_pooler(&self) -> bool {
        self.driver().is_some_and(pooled)
    }

    /// The schema is not the one that this program knows. It needs a migration; waiting does not help.
    pub fn is_schema(&self) -> bool {
        match self {
            Self::ColumnMissing { .. }
            | Self::ColumnType { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. } => true,
            Self::Database { source, .. } | Self::Connect { source, .. } => {
                matches!(
                    source.code(),
                    Some(
                        &SqlState::UNDEFINED_TABLE
                            | &SqlState::UNDEFINED_COLUMN
                            | &SqlState::INVALID_SCHEMA_NAME
                    )
                ) || is_function_missing(source)
            }
            Self::Config(_)
            | Self::NotWritten { .. }
            | Self::MarkNotWritten { .. }
            | Self::NotReleased { .. }
            | Self::NotFiled { .. }
            | Self::ReadOnly { .. }
            | Self::Timeout { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unusable { .. }
            | Self::Tls(_) => false,
        }
    }
}

impl OutboxError {
    /// Waiting does not help: a person must change the relay's configuration, the server's configuration or the schema.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Config(_) | Self::Tls(_) => true,
            Self::Database { source, .. } | Self::Connect { source, .. } => {
                self.is_schema()
                    || pooled(source)
                    || matches!(
                        source.code(),
                        Some(
                            &SqlState::INVALID_PASSWORD
                                | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                                | &SqlState::INVALID_CATALOG_NAME
                                | &SqlState::INSUFFICIENT_PRIVILEGE
                        )
                    )
            }
            Self::ReadOnly { .. }
            | Self::Timeout { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unusable { .. }
            | Self::NotWritten { .. }
            | Self::MarkNotWritten { .. }
            | Self::NotReleased { .. }
            | Self::NotFiled { .. } => false,
            Self::ColumnMissing { .. }
            | Self::ColumnType { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. } => true,
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

fn is_timeout(error: &tokio_postgres::Error) -> bool {
    // idle_session_timeout, idle_in_transaction_session_timeout, transaction_timeout
    error
        .code()
        .is_some_and(|code| ["57P05", "25P03", "25P04"].contains(&code.code()))
}

fn pooled(error: &tokio_postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::DUPLICATE_PSTATEMENT | &SqlState::INVALID_SQL_STATEMENT_NAME)
    )
}

/// Compares the name of the server's function, because the server translates its messages.
fn is_row_security(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|db| db.routine() == Some("check_enable_rls"))
}

/// The server's rewriter does not accept the statement, because the table has a rule.
fn is_rule(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        *db.code() == SqlState::FEATURE_NOT_SUPPORTED && db.routine() == Some("RewriteQuery")
    })
}

/// The statement calls a function that is missing. A function that calls a missing one is a trigger of a person, perhaps, and
/// says nothing about the schema.
fn is_function_missing(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_FUNCTION) && !is_in_a_function(error)
}

/// The error arose in a function that the statement called. The context may hold values, so it is not shown.
fn is_in_a_function(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.where_().is_some())
}

/// A publication filters rows by a column that is not in the replica identity, or does not publish a generated column of
/// it (`lane`, from PostgreSQL 18 on), or there is no replica identity.
fn is_replica_identity(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|db| db.routine() == Some("CheckCmdReplicaIdentity"))
}

/// The driver's own text is `db error`; the cause is one level down.
fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error;
    if let Some(db) = error.as_db_error() {
        let text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        // The detail of this error names the obstacle, and contains nothing of a row.
        return match db.detail() {
            Some(detail) if *db.code() == SqlState::INVALID_COLUMN_REFERENCE => {
                format!("{text}: {}", detail.trim_end_matches('.'))
            }
            _ => text,
        };
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

const READ_ONLY: &str = ". This server is read-only: list every host in database.url with target_session_attrs=read-write; \
                         or default_transaction_read_only is on for it, the database or the role: turn it off";

const OTHER_SCHEMA: &str =
    ". The schema is not the one this outboxd knows: compare `outboxd migrate --dry-run`";

/// The settings that a pooler in transaction mode needs.
pub const POOLER: &str = ". database.url leads to a pooler in transaction mode: set database.prepared_statements = false and \
                          database.listen = false, or connect to PostgreSQL itself";

/// The remedy, where the server's own text names none.
fn remedy(action: &str, error: &tokio_postgres::Error) -> &'static str {
    if is_row_security(error) {
        return ". Row level security would hide rows of it from this role, and they would never be sent: ALTER TABLE outbox.… \
                DISABLE ROW LEVEL SECURITY, or ALTER ROLE … BYPASSRLS for this role";
    }
    if is_replica_identity(error) {
        return ". A publication for logical replication refuses it. Publish the outbox's tables without a row filter and, from \
                PostgreSQL 18 on, WITH (publish_generated_columns = stored); or WITH (publish = 'insert'). Their replica \
                identity must be the default: ALTER TABLE outbox.… REPLICA IDENTITY DEFAULT";
    }
    if pooled(error) {
        return POOLER;
    }
    if is_rule(error) {
        return ". A rule on this table changes the relay's statements: drop it";
    }
    if action == SET_UP && error.as_db_error().is_some() && !is_fatal(error) {
        return ". The relay's session needs this setting: connect to PostgreSQL itself, or through a pooler that lets a session \
                set it";
    }
    match error.code() {
        Some(
            &SqlState::INVALID_SCHEMA_NAME
            | &SqlState::UNDEFINED_TABLE
            | &SqlState::UNDEFINED_FUNCTION,
        ) => ". Run `outboxd migrate` on this database",
        Some(&SqlState::UNDEFINED_COLUMN) => OTHER_SCHEMA,
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) if is_in_a_function(error) => {
            ". A function that this statement calls, a trigger's perhaps, needs that privilege: grant it to the relay's role, or \
             make the function SECURITY DEFINER"
        }
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            ". Run deploy/postgres/roles.sql (or `outboxd sql --roles`), then GRANT outbox_relay to this role"
        }
        Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            ". Check the user in database.url and the password in it or in database.password_file"
        }
        Some(&SqlState::INVALID_CATALOG_NAME) => ". Check the database name in database.url",
        Some(&SqlState::TOO_MANY_CONNECTIONS) => {
            ". Raise max_connections or the CONNECTION LIMIT of the role or the database, or lower relay.workers (a relay uses \
             one connection a worker and three more, and works with two)"
        }
        Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => READ_ONLY,
        Some(&SqlState::INDEX_CORRUPTED) => {
            ". REINDEX that index, and look for the cause of the damage"
        }
        Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            ". Another transaction holds a lock on the outbox: a migration, or somebody who has locked its rows"
        }
        _ => "",
    }
}
