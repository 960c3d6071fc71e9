//! `outboxd replay`.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    CliError, database, output,
    values::{self, Moment},
};
use crate::{
    config::Source,
    outbox::{
        migrate,
        operation::Operation,
        replay::{self, Filter, Replayed},
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Select these message ids
    #[arg(value_name = "MESSAGE_ID")]
    message_ids: Vec<Uuid>,
    /// Select messages created at or after this time, for example 2026-01-31T08:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    since: Option<Moment>,
    /// Select messages created before this time
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    until: Option<Moment>,
    /// Select this event type
    #[arg(long = "type", value_name = "EVENT_TYPE", value_parser = values::text)]
    event_type: Option<String>,
    /// Select this aggregate type
    #[arg(long, value_name = "TYPE", value_parser = values::text, conflicts_with = "key")]
    aggregate_type: Option<String>,
    /// Select this key: the aggregate type and the aggregate id
    #[arg(long, value_name = "TYPE/ID", value_parser = values::key)]
    key: Option<(String, String)>,
    /// Maximum number of messages that fall due in a second
    #[arg(long, default_value = "500", value_name = "PER_SECOND", value_parser = values::rate)]
    rate: f64,
    /// Print how many messages it would replay, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Reason, for the record
    #[arg(long, required_unless_present = "dry_run", value_parser = values::text)]
    why: Option<String>,
    /// Person, for the record [default: the login name]
    #[arg(long, value_parser = values::text)]
    by: Option<String>,
    #[command(flatten)]
    json: output::Json,
}

impl Args {
    fn is_empty(&self) -> bool {
        self.message_ids.is_empty()
            && self.since.is_none()
            && self.until.is_none()
            && self.event_type.is_none()
            && self.aggregate_type.is_none()
            && self.key.is_none()
    }
}

/// The filter's text in the record and the report, with times in UTC.
fn text(filter: &Filter) -> String {
    let mut parts: Vec<String> = filter.message_ids.iter().map(ToString::to_string).collect();
    let key = filter
        .aggregate_type
        .clone()
        .zip(filter.aggregate_id.clone());
    let key = key.as_ref().map(values::shown_key);
    let named = [
        ("since", filter.since.map(|at| values::shown(at.into()))),
        ("until", filter.until.map(|at| values::shown(at.into()))),
        ("type", filter.event_type.clone()),
        (
            "aggregate_type",
            filter.aggregate_type.clone().filter(|_| key.is_none()),
        ),
        ("key", key),
    ];
    let given = named
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    parts.extend(given);
    parts.join(" ")
}

pub(super) async fn replay(args: &Args, source: &Source) -> Result<(), CliError> {
    if args.is_empty() {
        return Err(CliError::Usage(
            "give message ids, or a filter: --since, --until, --type, --aggregate-type, --key"
                .to_owned(),
        ));
    }
    let session = database::session(source).await?;
    migrate::require_known(&session).await?;
    let now = replay::now(&session).await?;
    let (since, until) = (args.since.map(|m| m.by(now)), args.until.map(|m| m.by(now)));
    if let (Some(since), Some(until)) = (since, until)
        && since >= until
    {
        return Err(CliError::Usage(format!(
            "--since {} is not before --until {}: no message is in that range",
            values::shown(since),
            values::shown(until)
        )));
    }
    let asked: BTreeSet<Uuid> = args.message_ids.iter().copied().collect();
    let filter = Filter {
        since: since.map(Into::into),
        until: until.map(Into::into),
        aggregate_type: values::aggregate_type(args.key.as_ref(), args.aggregate_type.as_ref()),
        aggregate_id: args.key.as_ref().map(|(_, id)| id.clone()),
        event_type: args.event_type.clone(),
        message_ids: asked.iter().copied().collect(),
    };
    let selection = text(&filter);
    let operation = Operation {
        action: "replay",
        by: database::operator(args.by.as_ref()),
        why: args.why.clone().unwrap_or_default(),
        selection: selection.clone(),
    };
    let mut done = Replayed::default();
    let (rate, dry_run) = (args.rate, args.dry_run);
    let replaying = replay::replay(&session, &filter, rate, dry_run, &operation, &mut done);
    if let Err(error) = database::whole(replaying).await {
        if !dry_run {
            database::half(done.messages.unsigned_abs(), "filed for replay");
        }
        return Err(error);
    }
    let count = done.messages;
    let missing: Vec<Uuid> = asked.difference(&done.found).copied().collect();
    if args.json.json {
        let report = serde_json::json!({
            "action": "replay",
            "messages": count,
            "dry_run": args.dry_run,
            "since": since.map(values::shown),
            "until": until.map(values::shown),
            "not_found": missing,
        });
        output::json(&report)?;
    } else if args.dry_run {
        output::line(&format!("{count} messages would be replayed: {selection}"))?;
    } else {
        let seconds = count as f64 / args.rate;
        output::line(&format!(
            "{count} messages are filed for replay, over {seconds:.1} s: {selection}"
        ))?;
    }
    database::none_missing(
        &missing,
        "no matching sent message has this id, or it waits or is dead",
    )
}
