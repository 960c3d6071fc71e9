//! The questions to PostgreSQL that `outboxd check --connect` and `outboxd doctor` share.

use std::time::Duration;

use super::{
    checks::{
        CONNECTED, LOCKS, PARTS, POOLER, READABLE, SHARED_ROLES, STRANDED, VERSION, WRITABLE,
    },
    line::Line,
    setup::setup,
};
use crate::{
    config::{Database, Source},
    outbox::{
        OutboxError,
        audit::{self, Glance},
        blockers::{self, Blocker},
        pooler, preflight,
        session::Session,
        work,
    },
};

/// How long the look for stranded messages takes.
const AUDIT: Duration = Duration::from_secs(2);
/// Longest time for a statement: a person waits for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answers, and the session for more questions.
pub struct Examined {
    pub lines: Vec<Line>,
    pub session: Option<Session>,
}

/// Connects, and checks everything that a relay needs in this database. `name` shows in `pg_stat_activity`.
pub async fn examine(source: &Source, name: &str) -> Examined {
    let mut lines = Vec::new();
    let session = connect(&source.database, name, &mut lines).await;
    if let Some(session) = &session {
        ask(session, &mut lines).await;
    }
    Examined { lines, session }
}

async fn connect(database: &Database, name: &str, lines: &mut Vec<Line>) -> Option<Session> {
    let between = pooler(database).await;
    let suits = !between.is_fault();
    lines.push(between);
    if !suits {
        return None;
    }
    match Session::connect(&database.impatient(PATIENCE), name).await {
        Ok(session) => {
            lines.push(Line::ok(&CONNECTED, "the database accepts a session"));
            Some(session)
        }
        Err(error) => {
            // The pooler was not found out either.
            lines.clear();
            lines.push(Line::of_postgres(&CONNECTED, &error, &[]));
            None
        }
    }
}

/// Whether a pooler in transaction mode is in between, and the settings are for one.
pub async fn pooler(database: &Database) -> Line {
    let for_direct = database.prepared_statements || database.listen;
    let key = |key: &str| database.key(key);
    match (pooler::is_between(database).await, for_direct) {
        (Ok(true), true) => Line::fault(
            &POOLER,
            format!(
                "{} leads to a pooler in transaction mode (PgBouncer, for example), which keeps no session: set {} = \
                 false and {} = false, or connect to PostgreSQL itself",
                key("url"),
                key("prepared_statements"),
                key("listen")
            ),
        ),
        (Ok(true), false) => Line::ok(
            &POOLER,
            "a pooler in transaction mode is in between, and the settings are for one",
        ),
        (Ok(false), true) => Line::ok(&POOLER, "no pooler in transaction mode showed itself"),
        (Ok(false), false) => Line::ok(
            &POOLER,
            "the settings are for a pooler in transaction mode; a relay without a pooler is faster with the defaults",
        ),
        (Err(error), _) => Line::not_checked(&POOLER, error.to_string()),
    }
}

async fn ask(session: &Session, lines: &mut Vec<Line>) {
    // Locks come first: they explain why another question is not answered in time.
    lines.push(match locks(session).await {
        Ok(found) => locked(&found),
        Err(error) => Line::of_postgres(&LOCKS, &error, lines),
    });
    lines.push(match preflight::is_read_only(session).await {
        Ok(None) => Line::ok(&WRITABLE, "transactions may write"),
        Ok(Some(why)) => Line::fault(&WRITABLE, why),
        Err(error) => Line::of_postgres(&WRITABLE, &error, lines),
    });
    if let Err(error) = setup(session, lines).await {
        let is_known = lines.iter().any(|line| line.check == &VERSION);
        let check = if is_known { &PARTS } else { &VERSION };
        lines.push(Line::of_postgres(check, &error, lines));
    }
    match preflight::roles_shared_with_others(session).await {
        Ok(roles) => lines.extend(shared_roles(&roles)),
        Err(error) => lines.push(Line::of_postgres(&SHARED_ROLES, &error, lines)),
    }
    // A policy of row level security shows as an error of a statement that reads.
    lines.push(match work::find(session, &[0]).await {
        Ok(_) => Line::ok(&READABLE, "no policy hides rows from this role"),
        Err(error) => Line::of_postgres(&READABLE, &error, lines),
    });
    lines.push(match audit::glance(session, AUDIT).await {
        Ok(seen) => stranded(seen),
        Err(error) => Line::of_postgres(&STRANDED, &error, lines),
    });
}

/// If the lanes cannot be read (a lock, a grant, a missing table), locks on tables are still found.
async fn locks(session: &Session) -> Result<Vec<Blocker>, OutboxError> {
    match blockers::find(session, &[]).await {
        Err(error) if error.is_statement_refused() => blockers::find_of_tables(session).await,
        found => found,
    }
}

fn locked(found: &[Blocker]) -> Line {
    if found.is_empty() {
        return Line::ok(&LOCKS, "no lock is in the way");
    }
    Line::passing(&LOCKS, format!("locked by {}", blockers::text(found)))
}

fn shared_roles(roles: &[String]) -> Vec<Line> {
    if roles.is_empty() {
        return vec![Line::ok(&SHARED_ROLES, "the roles are this database's own")];
    }
    let shared = |role: &String| {
        Line::warning(
            &SHARED_ROLES,
            format!(
                "members of {role} also have rights in the databases in brackets: roles belong to the whole server"
            ),
        )
        .with_cure(
            "Give each database roles of its own: outboxd sql --roles --producer NAME --relay NAME --monitor NAME",
        )
    };
    roles.iter().map(shared).collect()
}

/// The text says which part of the table was read: the count covers only that part.
fn stranded(seen: Glance) -> Line {
    let looked_at = if seen.looked_at == seen.pages {
        "all messages".to_owned()
    } else {
        format!("{} of {} pages of messages", seen.looked_at, seen.pages)
    };
    if seen.stranded == 0 {
        return Line::ok(
            &STRANDED,
            format!("audit of {looked_at}: no message is stranded"),
        );
    }
    Line::warning(
        &STRANDED,
        format!(
            "audit of {looked_at}: {} STRANDED: unsent, where no relay looks; a running relay files and sends them",
            seen.stranded
        ),
    )
}
