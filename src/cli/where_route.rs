//! The route of a message as a relay with this command's configuration computes it.

use outbox_core::{
    circuit::{Destination, Target},
    envelope::{Envelope, EnvelopeBuilder, EnvelopeOptions},
    header::HeaderValue,
    reason::Reason,
    route::{self, RoutingRules},
};
use serde::Serialize;
use serde_json::Value;

use super::CliError;
use crate::{config::Config, outbox::whereabouts::Facts};

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Route {
    Goes {
        exchange: String,
        routing_key: String,
        mandatory: bool,
        properties: serde_json::Map<String, Value>,
        headers: serde_json::Map<String, Value>,
        /// It waits for another destination than this configuration gives it.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_held_for_another: bool,
    },
    Refused {
        refused: &'static str,
        detail: String,
    },
}

/// Routes messages as a relay with this command's configuration does.
pub(super) struct Router {
    builder: EnvelopeBuilder,
    max_payload_bytes: u64,
}

impl Router {
    pub(super) fn new(config: &Config) -> Result<Self, CliError> {
        let router = route::Router::new(RoutingRules::from(&config.routing))
            .map_err(|e| CliError::Setup(e.to_string()))?;
        let options = EnvelopeOptions::from(config);
        Ok(Self {
            max_payload_bytes: options.max_payload_bytes,
            builder: EnvelopeBuilder::new(router, options),
        })
    }

    pub(super) fn route(&self, facts: &Facts) -> Route {
        let reason =
            |reason: Option<&String>| reason.is_some_and(|r| r == Reason::Unreadable.as_str());
        if reason(facts.waiting.as_ref().and_then(|w| w.reason.as_ref()))
            || reason(facts.dead.as_ref().and_then(|d| d.reason.as_ref()))
        {
            return Route::Refused {
                refused: Reason::Unreadable.as_str(),
                detail: "the row cannot be read".to_owned(),
            };
        }
        let mut message = facts.message.clone();
        // The body changes nothing but the refusal of one that is too large.
        message.body = (message.body_size <= self.max_payload_bytes).then(Vec::new);
        match self.builder.build(&mut message, amqp_guard::FRAME_MAX) {
            Err(refusal) => Route::Refused {
                refused: refusal.reason.as_str(),
                detail: refusal.detail,
            },
            Ok(envelope) => {
                let to = Target::of(&envelope.exchange, &envelope.routing_key);
                let own = [to.destination, to.exchange, to.untried];
                let held = facts.waiting.as_ref().and_then(|w| w.destination);
                let is_own = |held: i64| own.contains(&Destination(held));
                goes(envelope, held.is_some_and(|held| !is_own(held)))
            }
        }
    }
}

fn goes(envelope: Envelope, is_held_for_another: bool) -> Route {
    let Envelope {
        exchange,
        routing_key,
        mandatory,
        properties: p,
        headers,
        body: _,
    } = envelope;
    let mut properties = serde_json::Map::new();
    let mut add = |name: &str, value: Value| properties.insert(name.to_owned(), value);
    add("message_id", p.message_id.into());
    add("type", p.type_.into());
    add("content_type", p.content_type.into());
    add("timestamp", p.timestamp_s.into());
    add("app_id", p.app_id.into());
    if let Some(correlation_id) = p.correlation_id {
        add("correlation_id", correlation_id.into());
    }
    Route::Goes {
        exchange,
        routing_key,
        mandatory,
        properties,
        headers: headers
            .into_iter()
            .map(|(name, value)| (name, json(value)))
            .collect(),
        is_held_for_another,
    }
}

fn json(value: HeaderValue) -> Value {
    match value {
        HeaderValue::Bool(value) => value.into(),
        HeaderValue::I64(value) => value.into(),
        HeaderValue::F64(value) => value.into(),
        HeaderValue::String(value) => value.into(),
        HeaderValue::Null => Value::Null,
        HeaderValue::List(values) => values.into_iter().map(json).collect(),
        HeaderValue::Table(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| (name, json(value)))
                .collect(),
        ),
    }
}

impl Route {
    /// Names and values, for a person.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        match self {
            Route::Refused { refused, detail } => lines.push((
                "route",
                format!("none: a relay with this command's configuration refuses it ({refused}: {detail})"),
            )),
            Route::Goes { exchange, routing_key, mandatory, properties, headers, is_held_for_another } => {
                lines.push(("route", "as this command's configuration computes it:".to_owned()));
                lines.push(("  exchange", exchange.clone()));
                lines.push(("  routing key", routing_key.clone()));
                lines.push(("  mandatory", if *mandatory { "yes" } else { "no" }.to_owned()));
                if *is_held_for_another {
                    lines.push((
                        "  but",
                        "the relay that filed it computed another destination: its configuration differs, or did".to_owned(),
                    ));
                }
                for (name, value) in properties.iter().filter(|(name, _)| *name != "message_id") {
                    lines.push(("  property", format!("{name}: {}", plain(value))));
                }
                for (name, value) in headers {
                    lines.push(("  header", format!("{name}: {}", plain(value))));
                }
            }
        }
        lines
    }
}

/// A header's value without JSON's quotes around a text.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
