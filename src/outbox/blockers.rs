//! Finds transactions that keep the relay from writing, because they hold a lock that the relay needs.

use std::time::Duration;

use outbox_core::message::{Lane, Position};
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Query, Session},
};

const BLOCKERS: Query = Query {
    action: "look for blocking transactions",
    sql: concat!(
        include_str!("sql/blockers_lanes.sql"),
        include_str!("sql/blockers.sql")
    ),
    types: &[],
};
const OF_TABLES: Query = Query {
    action: "look for transactions that block tables",
    sql: concat!(
        include_str!("sql/blockers_tables.sql"),
        include_str!("sql/blockers.sql")
    ),
    types: &[],
};
const OF_ROWS: Query = Query {
    action: "look for transactions that block rows",
    sql: concat!(
        include_str!("sql/blockers_rows.sql"),
        include_str!("sql/blockers.sql")
    ),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Session {
        pid: i32,
    },
    /// A prepared transaction outlives its session, and even a restart of the server.
    Prepared {
        name: String,
    },
}

#[derive(Debug)]
pub struct Blocker {
    pub who: Who,
    pub user: String,
    pub application: String,
    /// `None`: this role may not see the state.
    pub state: Option<String>,
    pub transaction_seconds: f64,
    /// One of the locks, for a person.
    pub what: String,
}

/// The longest transactions first; at most five. `rows`: messages that could not be locked.
pub async fn find(session: &Session, rows: &[Position]) -> Result<Vec<Blocker>, OutboxError> {
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = rows.iter().map(|p| (p.lane, p.id)).unzip();
    let found = match rows.is_empty() {
        true => session.query(&BLOCKERS, &[]).await?,
        false => session.query(&OF_ROWS, &[&lanes, &ids]).await?,
    };
    found.iter().map(blocker).collect()
}

/// As [`find`], of locks on tables alone: no lock on a table of the outbox can stop this statement.
pub async fn find_of_tables(session: &Session) -> Result<Vec<Blocker>, OutboxError> {
    let found = session.query(&OF_TABLES, &[]).await?;
    found.iter().map(blocker).collect()
}

fn blocker(row: &tokio_postgres::Row) -> Result<Blocker, OutboxError> {
    Ok(Blocker {
        who: match get(row, "pid")? {
            Some(pid) => Who::Session { pid },
            None => Who::Prepared {
                name: get(row, "gid")?,
            },
        },
        user: get(row, "usename")?,
        application: get(row, "application")?,
        state: get(row, "state")?,
        transaction_seconds: get(row, "seconds")?,
        what: get(row, "what")?,
    })
}

/// As [`find`], by a session that holds nothing. For rows it reads several tables, and whoever blocks may have one of them and
/// want another: it gives up before the server looks for somebody to end.
pub async fn find_yielding(
    session: &Session,
    patience: Duration,
    rows: &[Position],
) -> Result<Vec<Blocker>, OutboxError> {
    let patience = format!("SET LOCAL lock_timeout = '{}ms'", patience.as_millis());
    session.begin_with(&patience).await?;
    let found = find(session, rows).await;
    session.rollback().await?;
    found
}

pub fn text(blockers: &[Blocker]) -> String {
    let all: Vec<String> = blockers.iter().map(one).collect();
    let is_session = |b: &Blocker| matches!(b.who, Who::Session { .. });
    let end = match (
        blockers.iter().any(is_session),
        blockers.iter().all(is_session),
    ) {
        (_, true) => "end that transaction, or the session with pg_terminate_backend(pid)",
        (false, _) => "end it in this database with COMMIT PREPARED or ROLLBACK PREPARED",
        (true, false) => {
            "end the sessions with pg_terminate_backend(pid), and a prepared transaction in this database with COMMIT PREPARED \
             or ROLLBACK PREPARED"
        }
    };
    format!("{}; {end}", all.join("; "))
}

fn one(b: &Blocker) -> String {
    let user = b.user.escape_debug();
    let what = b.what.escape_debug();
    let seconds = b.transaction_seconds;
    let pid = match &b.who {
        Who::Session { pid } => pid,
        Who::Prepared { name } => {
            let name = name.escape_debug();
            return format!(
                "the prepared transaction '{name}' (user {user}, prepared {seconds:.0} s ago) with {what}"
            );
        }
    };
    let application = b.application.escape_debug();
    // Of another role's session a relay may see only the pid, the user and the application.
    let since = match &b.state {
        Some(state) => format!(", {state}, in its transaction for {seconds:.0} s"),
        None => String::new(),
    };
    format!("pid {pid} (user {user}, application \"{application}\"{since}) with {what}")
}
