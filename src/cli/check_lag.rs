//! `outboxd check-lag`: a monitoring plugin.
//! <https://www.monitoring-plugins.org/doc/guidelines.html>

use std::{process::ExitCode, time::Duration};

use super::{CliError, database, output, values};
use crate::{
    config::Source,
    outbox::status::{self, Status},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A lag above this is a warning, for example 60s
    #[arg(long, default_value = "60s", value_parser = values::age)]
    warning: Duration,
    /// A lag above this is critical, for example 5m
    #[arg(long, default_value = "5m", value_parser = values::age)]
    critical: Duration,
}

pub(super) async fn check_lag(args: &Args, source: &Source) -> ExitCode {
    if args.warning > args.critical {
        return unknown("--warning is above --critical");
    }
    match measure(source).await {
        Ok(status) => report(args, &status),
        Err(error) => unknown(&error.to_string()),
    }
}

async fn measure(source: &Source) -> Result<Status, CliError> {
    let session = database::session(source).await?;
    Ok(status::status(&session).await?)
}

fn report(args: &Args, status: &Status) -> ExitCode {
    let lag = status.oldest_due_age_seconds;
    let (word, code) = if lag > args.critical.as_secs_f64() {
        ("CRITICAL", 2)
    } else if lag > args.warning.as_secs_f64() {
        ("WARNING", 1)
    } else {
        ("OK", 0)
    };
    // As `outboxd status` shows it. The performance data must be a number.
    let about = if status.pending_is_capped {
        " (about)"
    } else {
        ""
    };
    say(
        &format!(
            "OUTBOX {word} - lag {lag:.1}s, {} pending{about}, {} dead | lag={lag:.3}s;{};{} pending={} dead={}",
            status.pending,
            status.dead,
            args.warning.as_secs_f64(),
            args.critical.as_secs_f64(),
            status.pending,
            status.dead,
        ),
        code,
    )
}

/// Exit code 3.
pub(super) fn unknown(why: &str) -> ExitCode {
    say(&format!("OUTBOX UNKNOWN - {}", why.replace('\n', "; ")), 3)
}

fn say(text: &str, code: u8) -> ExitCode {
    match output::line(text) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(3),
    }
}
