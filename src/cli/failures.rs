//! `outboxd failures`: what fails, by cause.

use outbox_core::route::RoutingRules;
use time::OffsetDateTime;

use super::{
    CliError, database, output,
    table::{self, text, whole},
    values,
};
use crate::{
    config::{Config, Source},
    outbox::{
        failures::{self, Group},
        filter::Routes,
        migrate,
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Maximum number of groups to show [default: 20; with --json, all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    json: output::Json,
}

pub(super) async fn failures(
    args: &Args,
    source: &Source,
    config: &Config,
) -> Result<(), CliError> {
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let routes = Routes::from(RoutingRules::from(&config.routing));
    let all = failures::failures(&session, &routes).await?;
    let mut groups: Vec<Group> = all.groups.into_values().collect();
    // The largest first; the name makes the order the same each time.
    groups.sort_by(|a, b| (b.waiting + b.dead, &a.group).cmp(&(a.waiting + a.dead, &b.group)));
    let found = groups.len();
    let default = if args.json.json { usize::MAX } else { 20 };
    groups.truncate(args.limit.map_or(default, |limit| limit as usize));
    if args.json.json {
        output::json(&groups.iter().map(json).collect::<Vec<_>>())?;
    } else if groups.is_empty() {
        output::line("no failures")?;
    } else {
        table(&groups)?;
    }
    let say = |text: &str| match args.json.json {
        // A program reads the array from standard output.
        true => {
            output::note(text);
            Ok(())
        }
        false => output::line(text),
    };
    if groups.len() < found {
        say(&format!(
            "the first {} of {found} groups: --limit shows more",
            groups.len()
        ))?;
    }
    if all.left_out > 0 {
        say(&format!(
            "{} failures of further groups are not counted: no more than {} groups are",
            all.left_out,
            failures::MOST
        ))?;
    }
    Ok(())
}

fn time(seconds: Option<f64>) -> Option<String> {
    let nanos = (seconds? * 1e6) as i128 * 1000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    Some(values::shown(at))
}

/// Failures an hour, between the first one and the last one. Messages of one statement say nothing about an hour.
fn rate(group: &Group) -> Option<f64> {
    let hours = (group.last? - group.first?) / 3600.0;
    let all = (group.waiting + group.dead) as f64;
    (hours >= 1.0 / 60.0).then(|| (all / hours * 10.0).round() / 10.0)
}

fn json(group: &Group) -> serde_json::Value {
    serde_json::json!({
        "group": group.group, "reason": group.reason, "exchange": group.exchange, "routing_key": group.routing_key,
        "error": group.error, "waiting": group.waiting, "dead": group.dead, "failed_again": group.failed_again,
        "first": time(group.first), "last": time(group.last), "per_hour": rate(group), "examples": group.examples,
    })
}

fn table(groups: &[Group]) -> Result<(), CliError> {
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|g| {
            vec![
                g.group.clone(),
                g.reason.clone(),
                g.waiting.to_string(),
                g.dead.to_string(),
                g.failed_again.to_string(),
                time(g.first).unwrap_or_else(none),
                time(g.last).unwrap_or_else(none),
                rate(g).map_or_else(none, |rate| rate.to_string()),
                g.exchange.clone().unwrap_or_else(none),
                g.routing_key.clone().unwrap_or_else(none),
                g.examples.first().map_or_else(none, ToString::to_string),
                g.error.clone(),
            ]
        })
        .collect();
    Ok(table::table(
        &[
            whole("GROUP"),
            whole("REASON"),
            whole("WAITING"),
            whole("DEAD"),
            whole("AGAIN"),
            whole("FIRST"),
            whole("LAST"),
            whole("PER HOUR"),
            text("EXCHANGE"),
            text("ROUTING KEY"),
            whole("EXAMPLE"),
            text("ERROR"),
        ],
        &rows,
    )?)
}
