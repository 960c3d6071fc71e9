//! The schema's migrations, embedded; and the refusal to work on a schema that this program does not know.

use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    claim::get,
    session::{Query, Session},
};

#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub version: i32,
    pub name: &'static str,
    pub file: &'static str,
    pub sql: &'static str,
}

pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "outbox",
    file: "0001_outbox.sql",
    sql: include_str!("../../migrations/outbox/0001_outbox.sql"),
}];

/// Grants for the producer, relay and monitoring roles.
pub const ROLES: &str = include_str!("../../deploy/postgres/roles.sql");

/// Version that this program works with.
pub fn known() -> i32 {
    MIGRATIONS.last().map_or(0, |m| m.version)
}

impl Migration {
    /// SHA-256 of the file, hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(
        "migration {version} ({name}) was applied here with other contents: recorded checksum {recorded}, \
         this outboxd has {expected}. The file was edited after it ran, or it is not ours; nothing was changed"
    )]
    Edited {
        version: i32,
        name: String,
        recorded: String,
        expected: String,
    },
}

/// What one run of `outboxd migrate` found and did.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    pub from: Option<i32>,
    pub to: i32,
    /// Files applied, or to be applied with a dry run.
    pub applied: Vec<&'static str>,
    pub dry_run: bool,
}

const EXISTS: Query = Query {
    action: "look for the outbox schema",
    sql: "SELECT to_regclass('outbox.migration') IS NOT NULL AS found",
    types: &[],
};
const APPLIED: Query = Query {
    action: "read the schema version",
    sql: "SELECT version, name, checksum FROM outbox.migration ORDER BY version",
    types: &[],
};
const RECORD: Query = Query {
    action: "record a migration's checksum",
    sql: "UPDATE outbox.migration SET checksum = $2 WHERE version = $1",
    types: &[Type::INT4, Type::TEXT],
};

/// Two `outboxd migrate` at once take turns. Bytes of `obxmigr`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(31351991786104690)";

/// Applies what is missing, each file in a transaction of its own, under an advisory lock.
pub async fn migrate(session: &Session, dry_run: bool) -> Result<Report, MigrateError> {
    let from = version(session).await?;
    if let Some(found) = from
        && found > known()
    {
        return Err(OutboxError::SchemaTooNew {
            found,
            known: known(),
        }
        .into());
    }
    let mut applied = Vec::new();
    for migration in MIGRATIONS {
        if dry_run {
            if !is_applied(session, migration).await? {
                applied.push(migration.file);
            }
            continue;
        }
        session
            .batch(
                "begin a migration",
                "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL search_path = public",
            )
            .await?;
        let done = apply(session, migration).await;
        match done {
            Ok(ran) => {
                session.commit().await?;
                if ran {
                    applied.push(migration.file);
                }
            }
            Err(error) => {
                // The first error is the one to report; a lost connection rolls back by itself.
                let _ = session.rollback().await;
                return Err(error);
            }
        }
    }
    Ok(Report {
        from,
        to: known(),
        applied,
        dry_run,
    })
}

async fn apply(session: &Session, migration: &Migration) -> Result<bool, MigrateError> {
    session.batch("wait for another migration", LOCK).await?;
    // Looked up again under the lock: another process may have just done it.
    let already = is_applied(session, migration).await?;
    if !already {
        session.batch("apply a migration", migration.sql).await?;
    }
    session
        .execute(&RECORD, &[&migration.version, &migration.checksum()])
        .await?;
    Ok(!already)
}

async fn is_applied(session: &Session, migration: &Migration) -> Result<bool, MigrateError> {
    if !exists(session).await? {
        return Ok(false);
    }
    for row in session.query(&APPLIED, &[]).await? {
        if get::<i32>(&row, "version")? != migration.version {
            continue;
        }
        let expected = migration.checksum();
        // None: psql or another tool ran it. Its word is taken.
        return match get::<Option<String>>(&row, "checksum")? {
            Some(recorded) if recorded != expected => Err(MigrateError::Edited {
                version: migration.version,
                name: get(&row, "name")?,
                recorded,
                expected,
            }),
            _ => Ok(true),
        };
    }
    Ok(false)
}

async fn exists(session: &Session) -> Result<bool, OutboxError> {
    match session.query(&EXISTS, &[]).await?.first() {
        Some(row) => get(row, "found"),
        None => Ok(false),
    }
}

/// Highest version applied to this database; `None` without the schema.
pub async fn version(session: &Session) -> Result<Option<i32>, OutboxError> {
    if !exists(session).await? {
        return Ok(None);
    }
    match session.query(&APPLIED, &[]).await?.last() {
        Some(row) => Ok(Some(get(row, "version")?)),
        None => Ok(None),
    }
}

/// Refuses a schema that this program was not written for.
pub async fn require_known(session: &Session) -> Result<(), OutboxError> {
    let known = known();
    match version(session).await? {
        Some(found) if found == known => Ok(()),
        Some(found) if found > known => Err(OutboxError::SchemaTooNew { found, known }),
        found => Err(OutboxError::SchemaTooOld { found, known }),
    }
}
