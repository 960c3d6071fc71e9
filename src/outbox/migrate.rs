//! Applies the migrations, and refuses a schema that this program does not know.

use tokio_postgres::types::Type;

use super::{
    OutboxError,
    parts::{self, Difference},
    preflight,
    row::get,
    schema::{self, OUTBOX, Schema},
    session::{Query, Session},
};

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(
        "migration {version} ({name}) was applied here with other contents: recorded checksum {recorded}, \
         this outboxd has {expected}. The file was edited after it ran, or it is not ours; nothing was changed.{}",
        edited(*.version, .schema, .differences)
    )]
    Edited {
        schema: &'static str,
        version: i32,
        name: String,
        recorded: String,
        expected: String,
        differences: Vec<Difference>,
    },
    #[error(
        "schema {schema} has version {version}, and is not as `outboxd sql{}` makes it:\n  {}\n\
         Nothing was changed or recorded. Put each back as `outboxd sql{}` defines it, as the owner of schema {schema}",
        flag(.schema), list(.differences), flag(.schema)
    )]
    Different {
        schema: &'static str,
        version: i32,
        differences: Vec<Difference>,
    },
    #[error(
        "schema {schema} is incomplete: it has parts of ours and no recorded version, and lacks\n  {}\n\
         Nothing was changed. Complete it as `outboxd sql{}` defines it and run this again: it then records the version; \
         or, if you need nothing in it (the rows of {schema}.message are lost): DROP SCHEMA {schema} CASCADE, and run this again",
        list(.differences), flag(.schema)
    )]
    Half {
        schema: &'static str,
        differences: Vec<Difference>,
    },
    #[error(
        "schema {schema} belongs to {owner}, and this role ({role}) may not act as {owner}: run this as {owner}, or as a member of it"
    )]
    NotOwner {
        schema: &'static str,
        owner: String,
        role: String,
    },
    #[error(
        "this role ({role}) may not create a schema in database {database}. As the owner of the database: \
         GRANT CREATE ON DATABASE {} TO {}; or CREATE SCHEMA {schema} AUTHORIZATION {}; then run this again",
        identifier(.database), identifier(.role), identifier(.role)
    )]
    MayNotCreate {
        schema: &'static str,
        role: String,
        database: String,
    },
    #[error("{0}; nothing was changed")]
    ReadOnly(&'static str),
}

fn list(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("\n  ")
}

fn edited(version: i32, schema: &str, differences: &[Difference]) -> String {
    if differences.is_empty() {
        format!(
            " The schema itself is as this outboxd makes it: if the file differed in its comments only, \
             UPDATE {schema}.migration SET checksum = NULL WHERE version = {version}, and run this again"
        )
    } else {
        format!(" It differs in\n  {}", list(differences))
    }
}

/// The flag of `outboxd sql` for this schema.
fn flag(schema: &str) -> &'static str {
    if schema == OUTBOX.name {
        ""
    } else {
        " --schema inbox"
    }
}

/// Quotes a name where necessary, for a statement that a person runs.
pub fn identifier(name: &str) -> String {
    let plain = name
        .bytes()
        .enumerate()
        .all(|(i, b)| b.is_ascii_lowercase() || b == b'_' || (i > 0 && b.is_ascii_digit()));
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The result of one run of `outboxd migrate`.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub from: Option<i32>,
    pub to: i32,
    /// Files that it applied; with a dry run, files that it would apply.
    pub applied: Vec<&'static str>,
    /// Files whose parts are all present but were not recorded: it recorded them; with a dry run, it would record them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<&'static str>,
    pub dry_run: bool,
}

/// Two runs of `outboxd migrate` at once take turns. Bytes of `obxmigr`.
const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(31351991786104690)";

/// The database in which a migration would run, and the role.
struct Place {
    there: bool,
    owner: String,
    owned: bool,
    may_create: bool,
    /// The table that records the migrations exists.
    recorded: bool,
    readable: bool,
    role: String,
    database: String,
    standby: bool,
    read_only: bool,
}

/// Uses only object ids and the catalog, because without USAGE a role cannot even look up a name.
const PLACE: Query = Query {
    action: "look for the schema",
    sql: "SELECT n.oid IS NOT NULL AS there, \
                 coalesce(pg_catalog.pg_get_userbyid(n.nspowner)::pg_catalog.text, '') AS owner, \
                 coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), false) AS owned, \
                 pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create, \
                 c.oid IS NOT NULL AS recorded, \
                 coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE') \
                          AND pg_catalog.has_table_privilege(c.oid, 'SELECT'), false) AS readable, \
                 current_user::pg_catalog.text AS role, pg_catalog.current_database()::pg_catalog.text AS database, \
                 pg_catalog.pg_is_in_recovery() AS standby, \
                 pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS read_only \
          FROM (VALUES ($1)) AS wanted (name) \
          LEFT JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) wanted.name \
          LEFT JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
               AND c.relname OPERATOR(pg_catalog.=) 'migration'::pg_catalog.text \
               AND c.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog.\"char\"",
    types: &[Type::TEXT],
};

impl Place {
    async fn look(session: &Session, schema: &Schema) -> Result<Self, OutboxError> {
        let rows = session.query(&PLACE, &[&schema.name]).await?;
        let row = rows.first().ok_or(OutboxError::Unusable {
            action: PLACE.action,
            why: "no row".to_owned(),
        })?;
        Ok(Self {
            there: get(row, "there")?,
            owner: get(row, "owner")?,
            owned: get(row, "owned")?,
            may_create: get(row, "may_create")?,
            recorded: get(row, "recorded")?,
            readable: get(row, "readable")?,
            role: get(row, "role")?,
            database: get(row, "database")?,
            standby: get(row, "standby")?,
            read_only: get(row, "read_only")?,
        })
    }

    /// Checks whether this role may write here before it tries, because the server's own error names no remedy.
    fn require_writable(&self, schema: &Schema) -> Result<(), MigrateError> {
        if self.standby {
            return Err(MigrateError::ReadOnly(
                "this server is a standby: name the primary in database.url, or every host with target_session_attrs=read-write",
            ));
        }
        if self.read_only {
            return Err(MigrateError::ReadOnly(
                "transactions are read-only here (default_transaction_read_only, set for the server, the database or the role): \
                 find out who set it and why, and ALTER … RESET default_transaction_read_only",
            ));
        }
        if self.there && !self.owned {
            return Err(self.not_owner(schema));
        }
        if !self.there && !self.may_create {
            return Err(MigrateError::MayNotCreate {
                schema: schema.name,
                role: self.role.clone(),
                database: self.database.clone(),
            });
        }
        Ok(())
    }

    fn not_owner(&self, schema: &Schema) -> MigrateError {
        MigrateError::NotOwner {
            schema: schema.name,
            owner: self.owner.clone(),
            role: self.role.clone(),
        }
    }
}

/// Applies the missing migrations in one transaction, under an advisory lock. It records a checksum only if the schema is
/// exactly as the migrations make it. A dry run makes the same checks.
pub async fn migrate(
    session: &Session,
    schema: &Schema,
    dry_run: bool,
) -> Result<Report, MigrateError> {
    session
        .begin_with("SET LOCAL statement_timeout = 0; SET LOCAL search_path = pg_catalog, pg_temp")
        .await?;
    match in_transaction(session, schema, dry_run).await {
        Ok(report) => {
            session.commit().await?;
            Ok(report)
        }
        Err(error) => {
            // The first error is the one to report; a lost connection rolls back by itself.
            let _ = session.rollback().await;
            Err(error)
        }
    }
}

async fn in_transaction(
    session: &Session,
    schema: &Schema,
    dry_run: bool,
) -> Result<Report, MigrateError> {
    if !dry_run {
        session.batch("wait for another migration", LOCK).await?;
    }
    let place = Place::look(session, schema).await?;
    let records = match (place.recorded, place.readable) {
        (true, true) => session.query(&schema.applied, &[]).await?,
        (true, false) => return Err(place.not_owner(schema)),
        (false, _) => Vec::new(),
    };
    let from = match records.last() {
        Some(row) => Some(get(row, "version")?),
        None => None,
    };
    let mut report = Report {
        schema: schema.name,
        from,
        to: schema.known(),
        applied: Vec::new(),
        recorded: Vec::new(),
        dry_run,
    };
    if let Some(found) = from
        && found > report.to
    {
        return Err(OutboxError::SchemaTooNew {
            schema: schema.name,
            found,
            known: report.to,
        }
        .into());
    }
    let expected = parts::expected(schema);
    let here = parts::here_in_transaction(session, schema.name).await?;
    let different = parts::differences(&expected, &here);
    let mut unrecorded = Vec::new();
    for migration in schema.migrations {
        let mut row = None;
        for record in &records {
            if get::<i32, _>(record, "version")? == migration.version {
                row = Some(record);
            }
        }
        match row {
            Some(row) => {
                let expected = migration.checksum();
                match get::<Option<String>, _>(row, "checksum")? {
                    Some(recorded) if recorded == expected => {}
                    // psql or another tool ran the file. The record alone is no proof, so the schema is compared.
                    None => unrecorded.push(migration),
                    Some(recorded) => {
                        return Err(MigrateError::Edited {
                            schema: schema.name,
                            version: migration.version,
                            name: get(row, "name")?,
                            recorded,
                            expected,
                            differences: different,
                        });
                    }
                }
            }
            None if !parts::has_any_of(&expected, &here) => {
                place.require_writable(schema)?;
                if !dry_run {
                    session.batch("apply a migration", migration.sql).await?;
                }
                report.applied.push(migration.file);
                unrecorded.push(migration);
            }
            // Somebody made the schema by hand, or emptied the table that records the migrations.
            None if different.is_empty() => {
                report.recorded.push(migration.file);
                unrecorded.push(migration);
            }
            None => {
                return Err(MigrateError::Half {
                    schema: schema.name,
                    differences: different,
                });
            }
        }
    }
    if dry_run && !report.applied.is_empty() {
        return Ok(report);
    }
    let different = if report.applied.is_empty() {
        different
    } else {
        let here = parts::here_in_transaction(session, schema.name).await?;
        parts::differences(&expected, &here)
    };
    if !different.is_empty() {
        return Err(MigrateError::Different {
            schema: schema.name,
            version: report.to,
            differences: different,
        });
    }
    if !unrecorded.is_empty() && !dry_run {
        place.require_writable(schema)?;
        for migration in unrecorded {
            let (version, name, checksum) =
                (migration.version, migration.name, migration.checksum());
            session
                .execute(&schema.record, &[&version, &name, &checksum])
                .await?;
        }
    }
    Ok(report)
}

/// Highest version applied to this database; `None` without a record.
async fn version(session: &Session, schema: &Schema) -> Result<Option<i32>, OutboxError> {
    if !Place::look(session, schema).await?.recorded {
        return Ok(None);
    }
    match session.query(&schema.applied, &[]).await?.last() {
        Some(row) => Ok(Some(get(row, "version")?)),
        None => Ok(None),
    }
}

/// Like `require_known`, but accepts a whole schema whose record somebody has emptied (a cleaner that truncates every table).
/// So a relay that runs can reconnect, and the inspection reports the fault.
pub async fn require_usable(session: &Session) -> Result<(), OutboxError> {
    match require_known(session).await {
        Err(OutboxError::SchemaTooOld { found: None, .. })
            if preflight::missing_parts(session).await?.is_empty() =>
        {
            Ok(())
        }
        known => known,
    }
}

/// Refuses an outbox of another schema version.
pub async fn require_known(session: &Session) -> Result<(), OutboxError> {
    let known = schema::known();
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
