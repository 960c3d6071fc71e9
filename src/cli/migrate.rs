//! `outboxd migrate` and `outboxd sql`.

use super::{CliError, output};
use crate::{
    config::Source,
    outbox::migrate::{self, MIGRATIONS, ROLES},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Says what would be applied, and changes nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: output::Json,
}

#[derive(clap::Args)]
pub(super) struct SqlArgs {
    /// Prints the roles and grants instead
    #[arg(long)]
    roles: bool,
}

pub(super) async fn migrate(args: &Args, source: &Source) -> Result<(), CliError> {
    let session = super::session(source).await?;
    let report = migrate::migrate(&session, args.dry_run).await?;
    if args.json.json {
        return Ok(output::json(&report)?);
    }
    if report.applied.is_empty() {
        return Ok(output::line(&format!(
            "schema version {}: nothing to do",
            report.to
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
        output::line(&format!("schema version {}", report.to))?;
    }
    Ok(())
}

pub(super) fn sql(args: &SqlArgs) -> Result<(), CliError> {
    if args.roles {
        return Ok(output::line(ROLES.trim_end())?);
    }
    for migration in MIGRATIONS {
        output::line(&format!(
            "-- {}\n{}",
            migration.file,
            migration.sql.trim_end()
        ))?;
    }
    Ok(())
}
