//! `outboxd migrate` and `outboxd sql`.

use super::{CliError, database, output};
use crate::{
    config::Source,
    outbox::{
        migrate,
        schema::{self, INBOX, OUTBOX},
    },
};

/// One of the two schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Schema {
    /// For a service that produces events
    Outbox,
    /// For a service that consumes events, each once
    Inbox,
}

impl Schema {
    fn get(self) -> &'static schema::Schema {
        match self {
            Self::Outbox => &OUTBOX,
            Self::Inbox => &INBOX,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Schema to migrate in the database of the configuration
    #[arg(long, value_enum, default_value_t = Schema::Outbox)]
    schema: Schema,
    /// Print which migrations it would apply, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: output::Json,
}

#[derive(clap::Args)]
pub(super) struct SqlArgs {
    /// Schema to print
    #[arg(long, value_enum, default_value_t = Schema::Outbox)]
    schema: Schema,
    /// Print the roles and grants instead
    #[arg(long)]
    roles: bool,
    /// With --roles: grant the rights of a producer to this role, in place of outbox_producer
    #[arg(long, value_name = "ROLE", requires = "roles", value_parser = role)]
    producer: Option<String>,
    /// With --roles: grant the rights of a relay to this role, in place of outbox_relay
    #[arg(long, value_name = "ROLE", requires = "roles", value_parser = role)]
    relay: Option<String>,
    /// With --roles --schema inbox: grant the rights of a consumer to this role, in place of inbox_consumer
    #[arg(long, value_name = "ROLE", requires = "roles", value_parser = role)]
    consumer: Option<String>,
    /// With --roles: grant the rights of monitoring to this role, in place of outbox_monitor or inbox_monitor
    #[arg(long, value_name = "ROLE", requires = "roles", value_parser = role)]
    monitor: Option<String>,
}

/// PostgreSQL truncates longer names, so the grants would go to another role.
fn role(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > 63 {
        Err("a role's name must have 1 to 63 bytes".to_owned())
    } else if name.contains(char::is_control) || name.contains('\\') {
        Err("a role's name must not contain control characters or a backslash".to_owned())
    } else if name.starts_with("pg_") || name == "public" || name == "none" {
        Err("PostgreSQL reserves this name".to_owned())
    } else {
        Ok(name.to_owned())
    }
}

pub(super) async fn migrate(args: &Args, source: &Source) -> Result<(), CliError> {
    let session = database::session(source).await?;
    let report = migrate::migrate(&session, args.schema.get(), args.dry_run).await?;
    if args.json.json {
        return Ok(output::json(&report)?);
    }
    let (applies, records) = if args.dry_run {
        ("would apply", "would record")
    } else {
        ("applied", "recorded")
    };
    for file in &report.recorded {
        output::line(&format!(
            "{records} {file}: the schema was complete, but this file was not recorded"
        ))?;
    }
    if report.applied.is_empty() && report.recorded.is_empty() {
        return Ok(output::line(&format!(
            "{} schema version {}: nothing to do",
            report.schema, report.to
        ))?);
    }
    for file in &report.applied {
        output::line(&format!("{applies} {file}"))?;
    }
    if !args.dry_run {
        output::line(&format!("{} schema version {}", report.schema, report.to))?;
    }
    Ok(())
}

pub(super) fn sql(args: &SqlArgs) -> Result<(), CliError> {
    let schema = args.schema.get();
    if args.roles {
        let others = match args.schema {
            Schema::Outbox => [
                ("outbox_producer", &args.producer),
                ("outbox_relay", &args.relay),
                ("outbox_monitor", &args.monitor),
            ],
            Schema::Inbox => [
                ("inbox_consumer", &args.consumer),
                ("inbox_monitor", &args.monitor),
                ("", &None),
            ],
        };
        let foreign = match args.schema {
            Schema::Outbox => args.consumer.is_some(),
            Schema::Inbox => args.producer.is_some() || args.relay.is_some(),
        };
        if foreign {
            return Err(CliError::Usage(
                "--producer and --relay are for the outbox, --consumer is for the inbox (--schema inbox)"
                    .to_owned(),
            ));
        }
        let sql = named(schema.roles.trim_end(), &others);
        return Ok(output::line(&sql)?);
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

/// The script of roles, with other names.
fn named(sql: &str, others: &[(&str, &Option<String>)]) -> String {
    let (mut named, mut rest) = (String::with_capacity(sql.len()), sql);
    // Replace from left to right, so that no inserted name is replaced again.
    while let Some((at, usual, name)) = others
        .iter()
        .filter_map(|(usual, name)| Some((rest.find(usual)?, *usual, name.as_deref()?)))
        .min_by_key(|found| found.0)
    {
        let (before, after) = rest.split_at(at);
        let after = &after[usual.len()..];
        named.push_str(before);
        if before.ends_with('\'') && after.starts_with('\'') {
            named.push_str(&name.replace('\'', "''"));
        } else {
            named.push_str(&migrate::identifier(name));
        }
        rest = after;
    }
    named.push_str(rest);
    named
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_role_s_name_is_quoted_where_it_must_be_and_is_never_read_as_another() {
        let sql = "-- GRANT a_role TO x\nARRAY['a_role', 'b_role']; GRANT USAGE TO a_role; GRANT INSERT TO b_role";
        let [a, b] = ["b_role", "Shop's \"own\""].map(|name| Some(name.to_owned()));
        assert_eq!(
            named(sql, &[("a_role", &a), ("b_role", &b)]),
            "-- GRANT b_role TO x\nARRAY['b_role', 'Shop''s \"own\"']; GRANT USAGE TO b_role; \
             GRANT INSERT TO \"Shop's \"\"own\"\"\""
        );
        assert_eq!(named(sql, &[("a_role", &None), ("b_role", &None)]), sql);
    }
}
