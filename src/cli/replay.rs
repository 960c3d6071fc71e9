//! `outboxd replay`.

use uuid::Uuid;

use super::{CliError, output};
use crate::{
    config::Source,
    outbox::{
        migrate,
        operation::Operation,
        replay::{self, Filter},
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Only these message ids
    #[arg(value_name = "MESSAGE_ID")]
    message_ids: Vec<Uuid>,
    /// Only messages created at or after this time, for example 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only messages created before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Only this aggregate type
    #[arg(long, value_name = "TYPE")]
    aggregate_type: Option<String>,
    /// Only this aggregate id
    #[arg(long = "key", value_name = "AGGREGATE_ID")]
    aggregate_id: Option<String>,
    /// Messages a second that fall due at most
    #[arg(long, default_value_t = 500.0, value_name = "PER_SECOND")]
    rate: f64,
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

impl Args {
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.message_ids.iter().map(ToString::to_string).collect();
        let named = [
            ("since", &self.since),
            ("until", &self.until),
            ("type", &self.event_type),
            ("aggregate_type", &self.aggregate_type),
            ("key", &self.aggregate_id),
        ];
        parts.extend(
            named
                .into_iter()
                .filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={v}"))),
        );
        parts.join(" ")
    }
}

pub(super) async fn replay(args: &Args, source: &Source) -> Result<(), CliError> {
    let selection = args.text();
    if selection.is_empty() {
        return Err(CliError::Usage(
            "name message ids, or a filter: --since, --until, --type, --aggregate-type, --key"
                .to_owned(),
        ));
    }
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(CliError::Usage("--rate must be above 0".to_owned()));
    }
    let session = super::session(source).await?;
    migrate::require_known(&session).await?;
    let filter = Filter {
        since: args.since.clone(),
        until: args.until.clone(),
        aggregate_type: args.aggregate_type.clone(),
        aggregate_id: args.aggregate_id.clone(),
        event_type: args.event_type.clone(),
        message_ids: args.message_ids.clone(),
    };
    let operation = Operation {
        action: "replay",
        by: super::operator(args.by.as_ref()),
        why: args.why.clone().unwrap_or_default(),
        selection,
    };
    let count = replay::replay(&session, &filter, args.rate, args.dry_run, &operation).await?;
    if args.json.json {
        let report =
            serde_json::json!({ "action": "replay", "messages": count, "dry_run": args.dry_run });
        return Ok(output::json(&report)?);
    }
    if args.dry_run {
        return Ok(output::line(&format!(
            "{count} messages would be replayed"
        ))?);
    }
    let seconds = count as f64 / args.rate;
    Ok(output::line(&format!(
        "{count} messages are replayed by the relay, over {seconds:.1} s"
    ))?)
}
