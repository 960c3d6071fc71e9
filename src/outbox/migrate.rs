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

/// A schema of ours, in whichever database it lies.
pub struct Schema {
    pub name: &'static str,
    pub migrations: &'static [Migration],
    /// Roles and grants; a script for a person to run.
    pub roles: &'static str,
    exists: Query,
    applied: Query,
    record: Query,
}

/// In the producing service's database.
pub const OUTBOX: Schema = Schema {
    name: "outbox",
    migrations: &[Migration {
        version: 1,
        name: "outbox",
        file: "0001_outbox.sql",
        sql: include_str!("../../migrations/outbox/0001_outbox.sql"),
    }],
    roles: include_str!("../../deploy/postgres/roles.sql"),
    exists: Query {
        action: "look for the outbox schema",
        sql: "SELECT to_regclass('outbox.migration') IS NOT NULL AS found",
        types: &[],
    },
    applied: Query {
        action: "read the outbox schema's version",
        sql: "SELECT version, name, checksum FROM outbox.migration ORDER BY version",
        types: &[],
    },
    record: Query {
        action: "record a migration's checksum",
        sql: "UPDATE outbox.migration SET checksum = $2 WHERE version = $1",
        types: &[Type::INT4, Type::TEXT],
    },
};

/// In the consuming service's database. The relay never looks at it.
pub const INBOX: Schema = Schema {
    name: "inbox",
    migrations: &[Migration {
        version: 1,
        name: "inbox",
        file: "0001_inbox.sql",
        sql: include_str!("../../migrations/inbox/0001_inbox.sql"),
    }],
    roles: include_str!("../../deploy/postgres/inbox_roles.sql"),
    exists: Query {
        action: "look for the inbox schema",
        sql: "SELECT to_regclass('inbox.migration') IS NOT NULL AS found",
        types: &[],
    },
    applied: Query {
        action: "read the inbox schema's version",
        sql: "SELECT version, name, checksum FROM inbox.migration ORDER BY version",
        types: &[],
    },
    record: Query {
        action: "record a migration's checksum",
        sql: "UPDATE inbox.migration SET checksum = $2 WHERE version = $1",
        types: &[Type::INT4, Type::TEXT],
    },
};

/// Version of the outbox schema that this program works with.
pub fn known() -> i32 {
    OUTBOX.known()
}

impl Schema {
    fn known(&self) -> i32 {
        self.migrations.last().map_or(0, |m| m.version)
    }
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
    pub schema: &'static str,
    pub from: Option<i32>,
    pub to: i32,
    /// Files applied, or to be applied with a dry run.
    pub applied: Vec<&'static str>,
    pub dry_run: bool,
}

/// Two `outboxd migrate` at once take turns. Bytes of `obxmigr`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(31351991786104690)";

/// Applies what is missing, each file in a transaction of its own, under an advisory lock.
pub async fn migrate(
    session: &Session,
    schema: &Schema,
    dry_run: bool,
) -> Result<Report, MigrateError> {
    let from = version(session, schema).await?;
    let known = schema.known();
    if let Some(found) = from
        && found > known
    {
        return Err(OutboxError::SchemaTooNew {
            schema: schema.name,
            found,
            known,
        }
        .into());
    }
    let mut applied = Vec::new();
    for migration in schema.migrations {
        if dry_run {
            if !is_applied(session, schema, migration).await? {
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
        let done = apply(session, schema, migration).await;
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
        schema: schema.name,
        from,
        to: known,
        applied,
        dry_run,
    })
}

async fn apply(
    session: &Session,
    schema: &Schema,
    migration: &Migration,
) -> Result<bool, MigrateError> {
    session.batch("wait for another migration", LOCK).await?;
    // Looked up again under the lock: another process may have just done it.
    let already = is_applied(session, schema, migration).await?;
    if !already {
        session.batch("apply a migration", migration.sql).await?;
    }
    session
        .execute(&schema.record, &[&migration.version, &migration.checksum()])
        .await?;
    Ok(!already)
}

async fn is_applied(
    session: &Session,
    schema: &Schema,
    migration: &Migration,
) -> Result<bool, MigrateError> {
    if !exists(session, schema).await? {
        return Ok(false);
    }
    for row in session.query(&schema.applied, &[]).await? {
        if get::<i32, _>(&row, "version")? != migration.version {
            continue;
        }
        let expected = migration.checksum();
        // None: psql or another tool ran it. Its word is taken.
        return match get::<Option<String>, _>(&row, "checksum")? {
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

async fn exists(session: &Session, schema: &Schema) -> Result<bool, OutboxError> {
    match session.query(&schema.exists, &[]).await?.first() {
        Some(row) => get(row, "found"),
        None => Ok(false),
    }
}

/// Highest version applied to this database; `None` without the schema.
async fn version(session: &Session, schema: &Schema) -> Result<Option<i32>, OutboxError> {
    if !exists(session, schema).await? {
        return Ok(None);
    }
    match session.query(&schema.applied, &[]).await?.last() {
        Some(row) => Ok(Some(get(row, "version")?)),
        None => Ok(None),
    }
}

/// Refuses an outbox that this program was not written for.
pub async fn require_known(session: &Session) -> Result<(), OutboxError> {
    let known = known();
    match version(session, &OUTBOX).await? {
        Some(found) if found == known => Ok(()),
        Some(found) if found > known => Err(OutboxError::SchemaTooNew {
            schema: OUTBOX.name,
            found,
            known,
        }),
        found => Err(OutboxError::SchemaTooOld { found, known }),
    }
}
