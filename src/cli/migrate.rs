//! `outboxd migrate` and `outboxd sql`.

use super::{CliError, output};
use crate::{
    config::Source,
    outbox::migrate::{self, INBOX, OUTBOX},
};

/// Which of the two schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Schema {
    /// For a service that produces events
    Outbox,
    /// For a service that consumes them, each once
    Inbox,
}

impl Schema {
    fn get(self) -> &'static migrate::Schema {
        match self {
            Self::Outbox => &OUTBOX,
            Self::Inbox => &INBOX,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// The schema to migrate in the database of the configuration
    #[arg(long, value_enum, default_value_t = Schema::Outbox)]
    schema: Schema,
    /// Says what would be applied, and changes nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: output::Json,
}

#[derive(clap::Args)]
pub(super) struct SqlArgs {
    /// The schema to print
    #[arg(long, value_enum, default_value_t = Schema::Outbox)]
    schema: Schema,
    /// Prints the roles and grants instead
    #[arg(long)]
    roles: bool,
}

pub(super) async fn migrate(args: &Args, source: &Source) -> Result<(), CliError> {
    let session = super::session(source).await?;
    let report = migrate::migrate(&session, args.schema.get(), args.dry_run).await?;
    if args.json.json {
        return Ok(output::json(&report)?);
    }
    if report.applied.is_empty() {
        return Ok(output::line(&format!(
            "{} schema version {}: nothing to do",
            report.schema, report.to
        ))?);
    }
    let verb = if args.dry_run {
        "would apply"
    } else {
        "applied"
    };
    for file in &report.applied {
        output::line(&format!("{verb} {file}"))?;
    }
    if !args.dry_run {
        output::line(&format!("{} schema version {}", report.schema, report.to))?;
    }
    Ok(())
}

pub(super) fn sql(args: &SqlArgs) -> Result<(), CliError> {
    let schema = args.schema.get();
    if args.roles {
        return Ok(output::line(schema.roles.trim_end())?);
    }
    for migration in schema.migrations {
        output::line(&format!(
            "-- {}\n{}",
            migration.file,
            migration.sql.trim_end()
        ))?;
    }
    Ok(())
}
