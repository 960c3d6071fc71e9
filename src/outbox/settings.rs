//! The session's settings are the relay's own, whatever a server, a database or a role sets for it.
//!
//! **Why.** `ALTER SYSTEM`, `ALTER DATABASE` and `ALTER ROLE … SET` change what a statement returns (`row_security`), when it
//! is ended (`statement_timeout`), how it is isolated and how it is planned.
//!
//! **How.** What the relay needs is listed here (`needed`). Every other setting that a session may change gets its built-in
//! value (`sql/settings.sql` lists them). A value that the session has set itself outlives a reload of the server's
//! configuration, so in a session of its own all of them are set, once. A pooler in transaction mode hands out another
//! server connection for each transaction: there what the relay needs, and what differed at the connect, is said in each
//! BEGIN.
//!
//! **Limits.** What only a superuser may set is not touched: none of it changes a result of the relay's statements.
//! `default_transaction_read_only` is left as it is, and said by the scout.

use std::time::Duration;

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::config::Database;

pub const LIST: &str = include_str!("sql/settings.sql");

/// A setting and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Where a value is to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Session,
    Transaction,
}

/// The server ends a session whose client has vanished, and frees its locks and its place among the connections.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];

/// The first version that knows `transaction_timeout`.
const TRANSACTION_TIMEOUT: u32 = 17;

/// What the relay needs of a server of this version.
pub fn needed(database: &Database, scope: Scope, version: u32) -> Vec<Setting> {
    let ms = |d: Duration| d.as_millis().to_string();
    let mut needed: Vec<Setting> = [
        // First what may end the session, or a statement that follows.
        ("exit_on_error", "off".to_owned()),
        ("statement_timeout", ms(database.statement_timeout)),
        ("lock_timeout", ms(database.lock_timeout)),
        (
            "idle_in_transaction_session_timeout",
            ms(database.idle_in_transaction_timeout),
        ),
        ("idle_session_timeout", "0".to_owned()),
    ]
    .map(|(name, value)| Setting::new(name, value))
    .into();
    if version >= TRANSACTION_TIMEOUT {
        needed.push(Setting::new("transaction_timeout", "0"));
    }
    needed.extend(
        [
            // Not found in a schema that somebody else may create in.
            ("search_path", "pg_catalog, pg_temp"),
            // A policy is an error then, and not a filter: what it hides would be passed over.
            ("row_security", "off"),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_deferrable", "off"),
            ("client_encoding", "UTF8"),
            ("client_min_messages", "warning"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "1"),
            // How the server reads our texts, and writes definitions, which are compared.
            ("standard_conforming_strings", "on"),
            ("quote_all_identifiers", "off"),
            ("transform_null_equals", "off"),
            ("array_nulls", "on"),
            // Pins the plans: a batch is a few hundred index probes, and a plan that sorts a lane or compiles itself costs
            // more than the batch.
            ("jit", "off"),
            ("enable_bitmapscan", "off"),
            ("enable_seqscan", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]
        .map(|(name, value)| Setting::new(name, value)),
    );
    if scope == Scope::Session {
        needed.extend(KEEPALIVE.map(|(name, value)| Setting::new(name, value)));
    }
    needed
}

/// As options of the start of a session: a server's own time-outs may end a session, or its first statement, before it has
/// set anything.
pub fn as_options(database: &Database) -> String {
    needed(database, Scope::Session, 0)
        .iter()
        .filter(|setting| setting.name.ends_with("_timeout"))
        .map(|Setting { name, value }| format!(" -c {name}={value}"))
        .collect()
}

/// What `LIST` found, without what is `needed` anyway. Behind a pooler only what differs: it is said again and again.
pub fn others(answer: &[SimpleQueryMessage], needed: &[Setting], scope: Scope) -> Vec<Setting> {
    let get = |row: &SimpleQueryRow, column: &str| row.get(column).map(str::to_owned);
    answer
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .filter(|row| scope == Scope::Session || row.get("differs") == Some("t"))
        .filter_map(|row| {
            Some(Setting {
                name: get(row, "name")?,
                value: get(row, "value")?,
            })
        })
        .filter(|setting| {
            !needed
                .iter()
                .any(|known| known.name.eq_ignore_ascii_case(&setting.name))
        })
        .collect()
}

impl Setting {
    fn new(name: &str, value: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
        }
    }
}

/// The statements that set them.
pub fn statements<'s>(settings: impl IntoIterator<Item = &'s Setting>, scope: Scope) -> String {
    let set = match scope {
        Scope::Session => "SET",
        Scope::Transaction => "SET LOCAL",
    };
    settings
        .into_iter()
        .map(|Setting { name, value }| {
            let value = match name.as_str() {
                // A list: each of its parts is a word.
                "search_path" => value.clone(),
                _ => format!("'{}'", value.replace('\'', "''")),
            };
            format!("{set} {name} = {value}; ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_quoted_and_a_list_is_not() {
        let settings = [
            Setting::new("search_path", "pg_catalog, pg_temp"),
            Setting::new("lc_time", "it's"),
        ];
        assert_eq!(
            statements(&settings, Scope::Transaction),
            "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL lc_time = 'it''s'; "
        );
    }
}
