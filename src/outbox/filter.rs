//! Which failed messages a command selects: the same filter for dead messages and for waiting ones.

use std::time::Duration;

use outbox_core::route::RoutingRules;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// An empty filter selects all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub reasons: Vec<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub event_type: Option<String>,
    /// Dead, or waiting, for at least this time.
    pub for_at_least: Option<Duration>,
    pub message_ids: Vec<Uuid>,
    pub exchange: Option<String>,
    /// Where messages go that name no exchange.
    pub routes: Routes,
    /// A group of `outbox.failure_group`.
    pub group: Option<String>,
}

/// The configured exchanges, for messages that name none: event by event, the first that fits. Each is a text that the
/// statements split: two patterns of LIKE, for the aggregate type and the event type, then the exchange.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    texts: Vec<String>,
    /// Exchange and pattern of the routing key, in the same order.
    targets: Vec<(String, String)>,
}

/// A character that no name of the configuration has.
const BETWEEN: char = '\u{1f}';

impl From<RoutingRules> for Routes {
    fn from(rules: RoutingRules) -> Self {
        let mut routes = Self::default();
        for rule in rules.routes {
            let exchange = rule.exchange.unwrap_or_else(|| rules.exchange.clone());
            let key = rule
                .routing_key
                .unwrap_or_else(|| rules.routing_key.clone());
            routes.add(
                &like(rule.aggregate_type.as_deref()),
                &like(rule.event_type.as_deref()),
                exchange,
                key,
            );
        }
        routes.add("%", "%", rules.exchange, rules.routing_key);
        routes
    }
}

impl Routes {
    fn add(&mut self, aggregate_type: &str, event_type: &str, exchange: String, key: String) {
        self.texts.push(format!(
            "{aggregate_type}{BETWEEN}{event_type}{BETWEEN}{exchange}"
        ));
        self.targets.push((exchange, key));
    }

    pub(super) fn texts(&self) -> &Vec<String> {
        &self.texts
    }

    /// Exchange and routing key of messages of these types, from the number of their route. `{aggregate_id}` stays: it differs
    /// from message to message.
    pub(super) fn target(
        &self,
        number: i64,
        aggregate_type: &str,
        event_type: &str,
    ) -> Option<(String, String)> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let (exchange, key) = self.targets.get(index)?;
        let key = key.replace("{event_type}", event_type);
        Some((
            exchange.clone(),
            key.replace("{aggregate_type}", aggregate_type),
        ))
    }
}

/// The pattern of a route as a pattern of LIKE.
fn like(pattern: Option<&str>) -> String {
    let Some(pattern) = pattern else {
        return "%".to_owned();
    };
    let (text, end) = match pattern.strip_suffix('*') {
        Some(beginning) => (beginning, "%"),
        None => (pattern, ""),
    };
    let mut like = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            like.push('\\');
        }
        like.push(c);
    }
    like + end
}

impl Filter {
    pub(super) fn seconds(&self) -> Option<f64> {
        self.for_at_least.map(|d| d.as_secs_f64())
    }

    /// The parameters $1 to $9 of each statement that selects messages. `seconds`: of [`Self::seconds`].
    pub(super) fn params<'a>(&'a self, seconds: &'a Option<f64>) -> [&'a (dyn ToSql + Sync); 9] {
        [
            &self.reasons,
            &self.aggregate_type,
            &self.aggregate_id,
            &self.event_type,
            seconds,
            &self.message_ids,
            &self.exchange,
            self.routes.texts(),
            &self.group,
        ]
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::route::Rule;

    use super::*;

    #[test]
    fn a_route_is_a_pattern_of_like_and_its_number_names_the_target() {
        for (pattern, expected) in [
            (None, "%"),
            (Some("order"), "order"),
            (Some("order*"), "order%"),
            (Some("*"), "%"),
            (Some("50%_a\\*"), "50\\%\\_a\\\\%"),
        ] {
            assert_eq!(like(pattern), expected);
        }
        let routes = Routes::from(RoutingRules {
            exchange: "events".to_owned(),
            routing_key: "{aggregate_type}.{event_type}".to_owned(),
            routes: vec![Rule {
                aggregate_type: Some("audit*".to_owned()),
                exchange: Some("audit".to_owned()),
                routing_key: Some("a.{aggregate_id}".to_owned()),
                ..Rule::default()
            }],
            ..RoutingRules::default()
        });
        assert_eq!(
            *routes.texts(),
            ["audit%\u{1f}%\u{1f}audit", "%\u{1f}%\u{1f}events"]
        );
        let target = |n| routes.target(n, "order", "created");
        let pair = |exchange: &str, key: &str| Some((exchange.to_owned(), key.to_owned()));
        assert_eq!(target(1), pair("audit", "a.{aggregate_id}"));
        assert_eq!(target(2), pair("events", "order.created"));
        assert_eq!((target(0), target(3)), (None, None));
    }
}
