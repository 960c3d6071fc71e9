//! The options of the commands that select failed messages, and change them.

use std::time::Duration;

use outbox_core::route::RoutingRules;
use uuid::Uuid;

use super::{CliError, database, output, values};
use crate::{
    config::Routing,
    outbox::{
        filter::{Filter, Routes},
        operation::Operation,
    },
};

#[derive(clap::Args)]
pub(super) struct FilterArgs {
    /// Select these message ids
    #[arg(value_name = "MESSAGE_ID")]
    pub(super) message_ids: Vec<Uuid>,
    /// Select this reason code; may be given several times
    #[arg(long, value_parser = values::reason())]
    reason: Vec<String>,
    /// Select this group of failures, as outboxd failures shows it
    #[arg(long, value_name = "GROUP", value_parser = values::group)]
    group: Option<String>,
    /// Select this event type
    #[arg(long = "type", value_name = "EVENT_TYPE", value_parser = values::text)]
    event_type: Option<String>,
    /// Select this aggregate type
    #[arg(long, value_name = "TYPE", value_parser = values::text, conflicts_with = "key")]
    aggregate_type: Option<String>,
    /// Select this key: the aggregate type and the aggregate id
    #[arg(long, value_name = "TYPE/ID", value_parser = values::key)]
    key: Option<(String, String)>,
    /// Select messages to this exchange, named by the message or by the configured route
    #[arg(long, value_name = "EXCHANGE")]
    exchange: Option<String>,
    /// Select messages that have been dead, or waited, for at least this time, for example 2h
    #[arg(long, value_name = "AGE", value_parser = values::age)]
    older_than: Option<Duration>,
}

#[derive(clap::Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    /// Select all; without it the command requires a filter
    #[arg(long)]
    all: bool,
    /// Print how many messages it would change, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Reason, for the record
    #[arg(long, required_unless_present = "dry_run", value_parser = values::text)]
    pub(super) why: Option<String>,
    /// Person, for the record [default: the login name]
    #[arg(long, value_parser = values::text)]
    by: Option<String>,
    /// Maximum number of messages that it changes in a second
    #[arg(long, value_name = "PER_SECOND", value_parser = values::rate)]
    pub(super) rate: Option<f64>,
    #[command(flatten)]
    pub(super) json: output::Json,
}

impl FilterArgs {
    pub(super) fn filter(&self, routing: &Routing) -> Filter {
        Filter {
            reasons: self.reason.clone(),
            aggregate_type: values::aggregate_type(self.key.as_ref(), self.aggregate_type.as_ref()),
            aggregate_id: self.key.as_ref().map(|(_, id)| id.clone()),
            event_type: self.event_type.clone(),
            for_at_least: self.older_than,
            message_ids: self.message_ids.clone(),
            exchange: self.exchange.clone(),
            routes: Routes::from(RoutingRules::from(routing)),
            group: self.group.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// The filter's text in the record of the operation.
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.message_ids.iter().map(ToString::to_string).collect();
        parts.extend(self.reason.iter().map(|r| format!("reason={r}")));
        let age = |d: &Duration| humantime::format_duration(*d).to_string();
        let named = [
            ("group", self.group.clone()),
            ("type", self.event_type.clone()),
            ("aggregate_type", self.aggregate_type.clone()),
            ("key", self.key.as_ref().map(values::shown_key)),
            ("exchange", self.exchange.clone()),
            ("older_than", self.older_than.as_ref().map(age)),
        ];
        let given = named
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        parts.extend(given);
        parts.join(" ")
    }
}

impl ChangeArgs {
    /// All, or a filter: not both, and not neither. `more`: what else selects the messages.
    pub(super) fn checked(&self, more: Option<&String>) -> Result<(), CliError> {
        if (self.filter.is_empty() && more.is_none()) != self.all {
            return Err(CliError::Usage(
                "give message ids or a filter, or --all, and not both".to_owned(),
            ));
        }
        Ok(())
    }

    /// `more`: what else selects the messages.
    pub(super) fn operation(&self, action: &'static str, more: Option<String>) -> Operation {
        let text = match self.all {
            true => "all".to_owned(),
            false => self.filter.text(),
        };
        let parts: Vec<String> = [Some(text).filter(|text| !text.is_empty()), more]
            .into_iter()
            .flatten()
            .collect();
        Operation {
            action,
            by: database::operator(self.by.as_ref()),
            why: self.why.clone().unwrap_or_default(),
            selection: parts.join(" "),
        }
    }
}
