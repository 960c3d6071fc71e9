//! Gives the session the relay's own settings, whatever the server, the database or the role sets.
//!
//! **Why.** `ALTER SYSTEM`, `ALTER DATABASE` and `ALTER ROLE … SET` change the results of statements (`row_security`), their
//! time-outs (`statement_timeout`), their isolation and their plans.
//!
//! **How.** `needed` lists the settings that the relay needs. Every other setting that a session may change gets its built-in
//! value (`sql/settings.sql` lists them). A value that the session has set itself outlives a reload of the server's
//! configuration. So in a session of its own the relay sets all of them once. A pooler in transaction mode hands out another
//! server connection for each transaction. There each BEGIN sets the settings that the relay needs, and those that differed
//! at the connect.
//!
//! **Limits.** The relay does not touch settings that only a superuser may change: none of them changes a result of the
//! relay's statements. `default_transaction_read_only` is left as it is, and the scout reports it.

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

/// How long a value lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Session,
    Transaction,
}

/// With keepalives the server ends a session whose client has vanished, and frees its locks and its connection slot.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];

/// The first version that knows `transaction_timeout`.
const TRANSACTION_TIMEOUT: u32 = 17;

/// The settings that the relay needs on a server of this version.
pub fn needed(database: &Database, scope: Scope, version: u32) -> Vec<Setting> {
    let ms = |d: Duration| d.as_millis().to_string();
    let mut needed: Vec<Setting> = [
        // First come the settings that may end the session, or a later statement.
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
            // The relay finds no name in a schema where another role may create objects.
            ("search_path", "pg_catalog, pg_temp"),
            // With `off` a policy is an error and not a filter. A filter would hide rows, and they would never be sent.
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
            // These decide how the server reads our texts and writes definitions, which the relay compares.
            ("standard_conforming_strings", "on"),
            ("quote_all_identifiers", "off"),
            ("transform_null_equals", "off"),
            ("array_nulls", "on"),
            // These pin the plans: a batch is a few hundred index probes, and a plan that sorts a lane or is compiled costs
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

/// The settings as options of the session's start: the server's default time-outs may end a session, or its first statement,
/// before the session has set its own.
pub fn as_options(database: &Database) -> String {
    needed(database, Scope::Session, 0)
        .iter()
        .filter(|setting| setting.name.ends_with("_timeout"))
        .map(|Setting { name, value }| format!(" -c {name}={value}"))
        .collect()
}

/// The settings that `LIST` found, without the `needed` ones. Behind a pooler only those that differ, because every BEGIN
/// repeats them.
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

/// The statements that set these settings.
pub fn statements<'s>(settings: impl IntoIterator<Item = &'s Setting>, scope: Scope) -> String {
    let set = match scope {
        Scope::Session => "SET",
        Scope::Transaction => "SET LOCAL",
    };
    settings
        .into_iter()
        .map(|Setting { name, value }| {
            let value = match name.as_str() {
                // A list of names, which must not be quoted as one text.
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
