//! `outboxd dead list|show|redrive|discard`.

use std::time::Duration;

use clap::Subcommand;
use uuid::Uuid;

use super::{CliError, output};
use crate::{
    config::Source,
    outbox::{
        dead::{self, Change, DeadMessage, Filter},
        migrate,
        operation::Operation,
    },
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Lists dead messages, the oldest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// Shows at most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        json: output::Json,
    },
    /// Shows one dead message, without its body
    Show {
        message_id: Uuid,
        #[command(flatten)]
        json: output::Json,
    },
    /// Publishes dead messages again, with all their attempts ahead of them
    Redrive(ChangeArgs),
    /// Deletes dead messages for good; they are recorded, not kept
    Discard(ChangeArgs),
}

#[derive(clap::Args)]
pub(super) struct FilterArgs {
    /// Only these message ids
    #[arg(value_name = "MESSAGE_ID")]
    message_ids: Vec<Uuid>,
    /// Only this reason code; may be given several times
    #[arg(long)]
    reason: Vec<String>,
    /// Only this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Only this aggregate type
    #[arg(long, value_name = "TYPE")]
    aggregate_type: Option<String>,
    /// Only this aggregate id
    #[arg(long = "key", value_name = "AGGREGATE_ID")]
    aggregate_id: Option<String>,
    /// Only those dead for at least so long, for example 2h
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

#[derive(clap::Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// All dead messages; without it a filter is asked for
    #[arg(long)]
    all: bool,
    /// Prints how many it would be, and changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Why, for the record
    #[arg(long, required_unless_present = "dry_run")]
    why: Option<String>,
    /// Who, for the record [default: the login name]
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    json: output::Json,
}

impl FilterArgs {
    fn filter(&self) -> Filter {
        Filter {
            reasons: self.reason.clone(),
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            event_type: self.event_type.clone(),
            dead_for: self.older_than,
            message_ids: self.message_ids.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.message_ids.is_empty()
            && self.reason.is_empty()
            && self.event_type.is_none()
            && self.aggregate_type.is_none()
            && self.aggregate_id.is_none()
            && self.older_than.is_none()
    }

    /// As it goes into the record.
    fn text(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.message_ids.iter().map(ToString::to_string));
        parts.extend(self.reason.iter().map(|r| format!("reason={r}")));
        parts.extend(self.event_type.iter().map(|t| format!("type={t}")));
        parts.extend(
            self.aggregate_type
                .iter()
                .map(|t| format!("aggregate_type={t}")),
        );
        parts.extend(self.aggregate_id.iter().map(|k| format!("key={k}")));
        parts.extend(
            self.older_than
                .iter()
                .map(|d| format!("older_than={}", humantime::format_duration(*d))),
        );
        if parts.is_empty() {
            "all".to_owned()
        } else {
            parts.join(" ")
        }
    }
}

pub(super) async fn dead(command: &Command, source: &Source) -> Result<(), CliError> {
    match command {
        Command::List {
            filter,
            limit,
            json,
        } => {
            let session = super::session(source).await?;
            migrate::require_known(&session).await?;
            // One more than is shown, to know whether that is all.
            let wanted = i64::from(*limit) + 1;
            let mut found = dead::list(&session, &filter.filter(), wanted).await?;
            let shown = usize::try_from(*limit).unwrap_or(usize::MAX);
            let cut = found.len() > shown;
            found.truncate(shown);
            if json.json {
                return Ok(output::json(&found)?);
            }
            list(&found, cut)
        }
        Command::Show { message_id, json } => {
            let session = super::session(source).await?;
            migrate::require_known(&session).await?;
            let filter = Filter {
                message_ids: vec![*message_id],
                ..Filter::default()
            };
            let found = dead::list(&session, &filter, 1).await?;
            let Some(message) = found.first() else {
                return Err(CliError::Failure(format!(
                    "no dead message has the id {message_id}"
                )));
            };
            if json.json {
                Ok(output::json(message)?)
            } else {
                show(message)
            }
        }
        Command::Redrive(args) => change(args, source, Change::Redrive).await,
        Command::Discard(args) => change(args, source, Change::Discard).await,
    }
}

/// `cut`: there are more than these.
fn list(found: &[DeadMessage], cut: bool) -> Result<(), CliError> {
    if found.is_empty() && !cut {
        return Ok(output::line("no dead messages")?);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|d| {
            vec![
                d.message_id.to_string(),
                d.died_at.clone(),
                d.reason.clone(),
                d.attempts.to_string(),
                key(d),
                d.event_type.clone().unwrap_or_default(),
                d.last_error.chars().take(80).collect(),
            ]
        })
        .collect();
    output::table(
        &[
            "MESSAGE ID",
            "DIED AT",
            "REASON",
            "ATTEMPTS",
            "KEY",
            "TYPE",
            "LAST ERROR",
        ],
        &rows,
    )?;
    if cut {
        output::line(&format!(
            "the first {}; there are more: --limit shows them",
            found.len()
        ))?;
    }
    Ok(())
}

fn show(d: &DeadMessage) -> Result<(), CliError> {
    let none = || "-".to_owned();
    let rows = [
        ("message id", d.message_id.to_string()),
        ("position", d.position.to_string()),
        ("key", key(d)),
        ("type", d.event_type.clone().unwrap_or_else(none)),
        ("reason", d.reason.clone()),
        ("attempts", d.attempts.to_string()),
        ("last error", d.last_error.clone()),
        ("died at", d.died_at.clone()),
        ("created at", d.created_at.clone().unwrap_or_else(none)),
        (
            "exchange",
            d.exchange
                .clone()
                .unwrap_or_else(|| "(as configured)".to_owned()),
        ),
        (
            "routing key",
            d.routing_key
                .clone()
                .unwrap_or_else(|| "(as configured)".to_owned()),
        ),
        ("content type", d.content_type.clone().unwrap_or_else(none)),
        ("body", format!("{} bytes", d.body_size)),
        (
            "replay",
            if d.replay {
                "yes: it had been sent before"
            } else {
                "no"
            }
            .to_owned(),
        ),
    ];
    for (name, value) in rows {
        output::line(&format!("{name:<13}{}", value.escape_debug()))?;
    }
    Ok(())
}

fn key(d: &DeadMessage) -> String {
    match (&d.aggregate_type, &d.aggregate_id) {
        (Some(kind), Some(id)) => format!("{kind}/{id}"),
        (Some(kind), None) => kind.clone(),
        (None, _) => "-".to_owned(),
    }
}

async fn change(args: &ChangeArgs, source: &Source, change: Change) -> Result<(), CliError> {
    if args.filter.is_empty() && !args.all {
        return Err(CliError::Usage(
            "name message ids or a filter, or say --all".to_owned(),
        ));
    }
    let session = super::session(source).await?;
    migrate::require_known(&session).await?;
    let filter = args.filter.filter();
    let (action, verb) = match change {
        Change::Redrive => ("redrive", "redriven"),
        Change::Discard => ("discard", "discarded"),
    };
    let count = if args.dry_run {
        dead::count(&session, &filter).await?
    } else {
        let operation = Operation {
            action,
            by: super::operator(args.by.as_ref()),
            why: args.why.clone().unwrap_or_default(),
            selection: args.filter.text(),
        };
        dead::change(&session, &filter, change, &operation).await?
    };
    if args.json.json {
        let report =
            serde_json::json!({ "action": action, "messages": count, "dry_run": args.dry_run });
        return Ok(output::json(&report)?);
    }
    let would = if args.dry_run { "would be " } else { "" };
    Ok(output::line(&format!("{count} messages {would}{verb}"))?)
}
