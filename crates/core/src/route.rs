//! The destination of a message: exchange, routing key, and `mandatory`. No I/O.

use crate::{
    limits::{self, NotShort, SHORT},
    message::Message,
    reason::{Reason, Refusal},
};

/// One rule of `routing.routes`; omitted values come from the default route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// An exact text, or a prefix followed by `*`. `None` matches all.
    pub aggregate_type: Option<String>,
    pub event_type: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    pub mandatory: Option<bool>,
    /// Replaces the list of `routing` for the messages that the rule matches.
    pub allowed_exchanges: Option<Vec<String>>,
}

/// The part of the section `routing` that decides the destination of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingRules {
    pub exchange: String,
    pub routing_key: String,
    pub mandatory: bool,
    /// First match wins.
    pub routes: Vec<Rule>,
    /// Exchanges that a row may name besides the configured ones. `None` allows all except the default exchange,
    /// through which a row could reach any queue of the virtual host.
    pub allowed_exchanges: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error(
        "{key}: \"{pattern}\" {problem}; it takes {{aggregate_type}}, {{aggregate_id}} and {{event_type}}"
    )]
    Pattern {
        key: String,
        pattern: String,
        problem: &'static str,
    },
    #[error("{key}: an exchange's name {problem}")]
    Exchange { key: String, problem: &'static str },
}

impl RouteError {
    /// The configuration key with the error.
    pub fn key(&self) -> &str {
        match self {
            Self::Pattern { key, .. } | Self::Exchange { key, .. } => key,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Router {
    rules: Vec<Compiled>,
}

#[derive(Debug, Clone)]
struct Compiled {
    aggregate_type: Fits,
    event_type: Fits,
    exchange: String,
    routing_key: Pattern,
    mandatory: bool,
    allowed: Allowed,
}

/// Exchanges that a row may name itself. A row may always name the exchange of its route.
#[derive(Debug, Clone)]
enum Allowed {
    AllButTheDefault,
    /// Contains the default exchange only if the configuration lists it.
    These(Vec<String>),
}

#[derive(Debug, Clone)]
enum Fits {
    All,
    Exactly(String),
    Beginning(String),
}

#[derive(Debug, Clone)]
struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    AggregateType,
    AggregateId,
    EventType,
}

/// The destination of one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    pub exchange: String,
    pub routing_key: String,
    pub mandatory: bool,
}

impl Router {
    pub fn new(rules: RoutingRules) -> Result<Self, RouteError> {
        let default = compile(
            "routing",
            Rule::default(),
            &rules.exchange,
            &rules.routing_key,
            rules.mandatory,
        )?;
        let mut compiled = Vec::with_capacity(rules.routes.len() + 1);
        for (i, rule) in rules.routes.into_iter().enumerate() {
            let section = format!("routing.routes.{i}");
            compiled.push(compile(
                &section,
                rule,
                &rules.exchange,
                &rules.routing_key,
                rules.mandatory,
            )?);
        }
        compiled.push(default);
        // The list of `routing` adds to the configured exchanges; the list of a rule is complete.
        let configured: Vec<String> = compiled
            .iter()
            .map(|rule| rule.exchange.clone())
            .filter(|exchange| !exchange.is_empty())
            .collect();
        if let Some(mut allowed) = rules.allowed_exchanges {
            allowed.extend(configured);
            for rule in &mut compiled {
                if matches!(rule.allowed, Allowed::AllButTheDefault) {
                    rule.allowed = Allowed::These(allowed.clone());
                }
            }
        }
        Ok(Self { rules: compiled })
    }

    /// Exchanges of the configured routes, without duplicates.
    pub fn exchanges(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .rules
            .iter()
            .map(|rule| rule.exchange.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Moves the row's own exchange and routing key out of the message.
    pub(crate) fn route(&self, message: &mut Message) -> Result<Routed, Refusal> {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(message)) else {
            // Unreachable: the default route matches everything.
            return Err(Refusal::new(Reason::NoRoute, "no route fits"));
        };
        let own_key = message.routing_key.take();
        let exchange = match message.exchange.take() {
            Some(named) => {
                if named != rule.exchange && !rule.allowed.lists(&named) {
                    return Err(Refusal::new(
                        Reason::ExchangeNotAllowed,
                        rule.allowed.refusal(&named),
                    ));
                }
                exchange_problem(&named).map_or(Ok(()), |problem| {
                    Err(Refusal::new(
                        Reason::ExchangeInvalid,
                        format!("the row's exchange {problem}"),
                    ))
                })?;
                named
            }
            None => rule.exchange.clone(),
        };
        // The default exchange takes the routing key as a queue's name, so such a row could reach any queue.
        if exchange.is_empty() && own_key.is_some() && !rule.allowed.lists("") {
            return Err(Refusal::new(
                Reason::ExchangeNotAllowed,
                rule.allowed.refusal(""),
            ));
        }
        let routing_key = match own_key {
            Some(named) => named,
            None => rule.routing_key.fill(message)?,
        };
        match limits::short(&routing_key) {
            Ok(()) => Ok(Routed {
                exchange,
                routing_key,
                mandatory: rule.mandatory,
            }),
            Err(NotShort::TooLong) => Err(Refusal::new(
                Reason::RoutingKeyTooLong,
                format!(
                    "the routing key has {} bytes; AMQP allows {SHORT}",
                    routing_key.len()
                ),
            )),
            Err(NotShort::ControlCharacter) => Err(Refusal::new(
                Reason::RoutingKeyInvalid,
                "the routing key holds a control character",
            )),
        }
    }
}

fn compile(
    section: &str,
    rule: Rule,
    exchange: &str,
    routing_key: &str,
    mandatory: bool,
) -> Result<Compiled, RouteError> {
    let exchange = rule.exchange.unwrap_or_else(|| exchange.to_owned());
    if let Some(problem) = exchange_problem(&exchange) {
        return Err(RouteError::Exchange {
            key: format!("{section}.exchange"),
            problem,
        });
    }
    let pattern = rule.routing_key.as_deref().unwrap_or(routing_key);
    let routing_key = Pattern::parse(pattern).map_err(|problem| RouteError::Pattern {
        key: format!("{section}.routing_key"),
        pattern: pattern.to_owned(),
        problem,
    })?;
    Ok(Compiled {
        aggregate_type: Fits::parse(rule.aggregate_type),
        event_type: Fits::parse(rule.event_type),
        exchange,
        routing_key,
        mandatory: rule.mandatory.unwrap_or(mandatory),
        allowed: rule
            .allowed_exchanges
            .map_or(Allowed::AllButTheDefault, Allowed::These),
    })
}

fn exchange_problem(name: &str) -> Option<&'static str> {
    match limits::short(name) {
        Ok(()) => None,
        Err(NotShort::TooLong) => Some("has more than 255 bytes"),
        Err(NotShort::ControlCharacter) => Some("holds a control character"),
    }
}

impl Compiled {
    fn fits(&self, message: &Message) -> bool {
        self.aggregate_type.fits(&message.aggregate_type)
            && self.event_type.fits(&message.event_type)
    }
}

impl Allowed {
    fn lists(&self, exchange: &str) -> bool {
        match self {
            Self::AllButTheDefault => !exchange.is_empty(),
            Self::These(names) => names.iter().any(|name| name == exchange),
        }
    }

    fn refusal(&self, exchange: &str) -> &'static str {
        if exchange.is_empty() {
            "the row names a queue through the default exchange, which reaches every queue: to allow this, list \"\" in \
             routing.allowed_exchanges"
        } else {
            "the row names an exchange that is not in routing.allowed_exchanges"
        }
    }
}

impl Fits {
    fn parse(text: Option<String>) -> Self {
        match text {
            None => Self::All,
            Some(text) => match text.strip_suffix('*') {
                Some(beginning) => Self::Beginning(beginning.to_owned()),
                None => Self::Exactly(text),
            },
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::All => true,
            Self::Exactly(exact) => text == exact,
            Self::Beginning(beginning) => text.starts_with(beginning),
        }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if before.contains('}') {
                return Err("has a } without a {");
            }
            let (name, after) = after.split_once('}').ok_or("has a { without a }")?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(match name {
                "aggregate_type" => Piece::AggregateType,
                "aggregate_id" => Piece::AggregateId,
                "event_type" => Piece::EventType,
                _ => return Err("has an unknown placeholder"),
            });
            rest = after;
        }
        if rest.contains('}') {
            return Err("has a } without a {");
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if text.len() > SHORT {
            return Err("has more than 255 bytes");
        }
        Ok(Self(pieces))
    }

    fn fill(&self, message: &Message) -> Result<String, Refusal> {
        let mut key = String::with_capacity(48);
        for piece in &self.0 {
            key.push_str(match piece {
                Piece::Text(text) => text,
                Piece::AggregateType => &message.aggregate_type,
                Piece::EventType => &message.event_type,
                Piece::AggregateId => message.aggregate_id.as_deref().ok_or_else(|| {
                    Refusal::new(
                        Reason::NoRoute,
                        "its route's routing key needs {aggregate_id}, and the row has none",
                    )
                })?,
            });
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::sample;

    fn rules() -> RoutingRules {
        RoutingRules {
            exchange: "events".to_owned(),
            routing_key: "{aggregate_type}.{event_type}".to_owned(),
            mandatory: true,
            routes: Vec::new(),
            allowed_exchanges: None,
        }
    }

    fn routed(exchange: &str, routing_key: &str, mandatory: bool) -> Routed {
        Routed {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            mandatory,
        }
    }

    #[test]
    fn the_default_route_and_the_row_s_own() {
        let router = Router::new(rules()).unwrap();
        assert_eq!(
            router.route(&mut sample()).unwrap(),
            routed("events", "order.created", true)
        );
        let mut own = Message {
            exchange: Some("audit".to_owned()),
            routing_key: Some("a.b".to_owned()),
            ..sample()
        };
        assert_eq!(
            router.route(&mut own).unwrap(),
            routed("audit", "a.b", true)
        );
    }

    #[test]
    fn the_first_rule_that_fits_wins() {
        let rule = |aggregate_type: &str, exchange: &str| Rule {
            aggregate_type: Some(aggregate_type.to_owned()),
            exchange: Some(exchange.to_owned()),
            routing_key: Some("{aggregate_id}".to_owned()),
            mandatory: Some(false),
            ..Rule::default()
        };
        let routes = vec![
            rule("invoice", "money"),
            rule("ord*", "orders"),
            rule("order", "never"),
        ];
        let router = Router::new(RoutingRules { routes, ..rules() }).unwrap();
        assert_eq!(
            router.route(&mut sample()).unwrap(),
            routed("orders", "1042", false)
        );
        let mut other = Message {
            aggregate_type: "invoices".to_owned(),
            ..sample()
        };
        assert_eq!(
            router.route(&mut other).unwrap(),
            routed("events", "invoices.created", true)
        );
        assert_eq!(router.exchanges(), ["events", "money", "never", "orders"]);
    }

    #[test]
    fn an_allow_list_holds_for_rows_and_never_for_the_configured_exchanges() {
        let allowed_exchanges = Some(vec!["audit".to_owned()]);
        let router = Router::new(RoutingRules {
            allowed_exchanges,
            ..rules()
        })
        .unwrap();
        let with = |exchange: Option<&str>| {
            router
                .route(&mut Message {
                    exchange: exchange.map(str::to_owned),
                    ..sample()
                })
                .map(|r| r.exchange)
        };
        assert_eq!(with(None).unwrap(), "events");
        assert_eq!(with(Some("events")).unwrap(), "events");
        assert_eq!(with(Some("audit")).unwrap(), "audit");
        assert_eq!(
            with(Some("other")).unwrap_err().reason,
            Reason::ExchangeNotAllowed
        );
    }

    #[test]
    fn a_row_reaches_the_default_exchange_only_where_it_is_listed() {
        let goes = |rules: RoutingRules, exchange: Option<&str>, routing_key: Option<&str>| {
            Router::new(rules)
                .unwrap()
                .route(&mut Message {
                    exchange: exchange.map(str::to_owned),
                    routing_key: routing_key.map(str::to_owned),
                    ..sample()
                })
                .map_err(|refusal| refusal.reason)
        };
        let refused = Err(Reason::ExchangeNotAllowed);
        let listing = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            RoutingRules {
                allowed_exchanges: Some(names),
                ..rules()
            }
        };
        assert_eq!(goes(rules(), Some(""), Some("other.queue")), refused);
        assert_eq!(goes(rules(), Some(""), None), refused);
        assert_eq!(goes(listing(&["audit"]), Some(""), Some("q")), refused);
        assert_eq!(
            goes(listing(&[""]), Some(""), Some("q")),
            Ok(routed("", "q", true))
        );
        assert_eq!(
            goes(rules(), Some("audit"), Some("q")),
            Ok(routed("audit", "q", true))
        );

        // A configured default exchange is the team's choice, but the row must not choose the queue.
        let configured = |rules: RoutingRules| RoutingRules {
            exchange: String::new(),
            ..rules
        };
        assert_eq!(
            goes(configured(rules()), None, None),
            Ok(routed("", "order.created", true))
        );
        assert_eq!(
            goes(configured(rules()), Some(""), None),
            Ok(routed("", "order.created", true))
        );
        assert_eq!(
            goes(configured(rules()), None, Some("other.queue")),
            refused
        );
        assert_eq!(
            goes(configured(listing(&["audit"])), None, Some("other.queue")),
            refused
        );
        assert_eq!(
            goes(configured(listing(&[""])), None, Some("q")),
            Ok(routed("", "q", true))
        );
    }

    #[test]
    fn a_route_s_list_replaces_the_section_s_list_for_its_messages() {
        let named = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        let routes = vec![
            Rule {
                aggregate_type: Some("ord*".to_owned()),
                allowed_exchanges: named(&["sales"]),
                ..Rule::default()
            },
            Rule {
                aggregate_type: Some("refund".to_owned()),
                allowed_exchanges: named(&[]),
                ..Rule::default()
            },
        ];
        let router = Router::new(RoutingRules {
            routes,
            allowed_exchanges: named(&["audit"]),
            ..rules()
        })
        .unwrap();
        let goes = |aggregate_type: &str, exchange: &str| {
            let mut message = Message {
                aggregate_type: aggregate_type.to_owned(),
                exchange: Some(exchange.to_owned()),
                ..sample()
            };
            router.route(&mut message).is_ok()
        };
        for (aggregate_type, exchange, expected) in [
            ("order", "sales", true),
            ("order", "events", true),
            ("order", "audit", false),
            ("refund", "sales", false),
            ("refund", "events", true),
            ("user", "audit", true),
            ("user", "sales", false),
        ] {
            assert_eq!(
                goes(aggregate_type, exchange),
                expected,
                "{aggregate_type} {exchange}"
            );
        }
    }

    #[test]
    fn names_that_amqp_cannot_carry_are_refused() {
        let router = Router::new(rules()).unwrap();
        let reason = |message: Message| router.route(&mut { message }).unwrap_err().reason;
        let long = || Some("é".repeat(128));
        assert_eq!(
            reason(Message {
                routing_key: long(),
                ..sample()
            }),
            Reason::RoutingKeyTooLong
        );
        assert_eq!(
            reason(Message {
                event_type: "e".repeat(250),
                ..sample()
            }),
            Reason::RoutingKeyTooLong
        );
        assert_eq!(
            reason(Message {
                exchange: long(),
                ..sample()
            }),
            Reason::ExchangeInvalid
        );
        let newline = || Some("a\nb".to_owned());
        assert_eq!(
            reason(Message {
                exchange: newline(),
                ..sample()
            }),
            Reason::ExchangeInvalid
        );
        assert_eq!(
            reason(Message {
                routing_key: newline(),
                ..sample()
            }),
            Reason::RoutingKeyInvalid
        );
        let by_id = RoutingRules {
            routing_key: "{aggregate_id}".to_owned(),
            ..rules()
        };
        let mut without = Message {
            aggregate_id: None,
            ..sample()
        };
        assert_eq!(
            Router::new(by_id)
                .unwrap()
                .route(&mut without)
                .unwrap_err()
                .reason,
            Reason::NoRoute
        );
    }

    #[test]
    fn a_pattern_that_cannot_be_filled_is_named() {
        for pattern in ["{id}", "{aggregate_type", "a}b", "{}", "{aggregate_type}}"] {
            let error = Router::new(RoutingRules {
                routing_key: pattern.to_owned(),
                ..rules()
            })
            .unwrap_err();
            assert!(
                error.to_string().starts_with("routing.routing_key: "),
                "{error}"
            );
        }
        let routes = vec![Rule {
            exchange: Some("a\u{7}".to_owned()),
            ..Rule::default()
        }];
        let error = Router::new(RoutingRules { routes, ..rules() }).unwrap_err();
        assert!(
            error.to_string().starts_with("routing.routes.0.exchange: "),
            "{error}"
        );
    }

    #[test]
    fn a_problem_with_a_route_names_its_key_in_the_configuration() {
        let routes = vec![Rule {
            routing_key: Some("{".to_owned()),
            ..Rule::default()
        }];
        let error = Router::new(RoutingRules { routes, ..rules() }).unwrap_err();
        assert_eq!(error.key(), "routing.routes.0.routing_key");
        let exchange = "x".repeat(256);
        let error = Router::new(RoutingRules {
            exchange,
            ..rules()
        })
        .unwrap_err();
        assert_eq!(error.key(), "routing.exchange");
        assert_eq!(
            error.to_string(),
            "routing.exchange: an exchange's name has more than 255 bytes"
        );
    }

    #[test]
    fn a_refused_exchange_says_which_list_would_allow_it() {
        let detail = |exchange: &str, rules| {
            let mut message = Message {
                exchange: Some(exchange.to_owned()),
                ..sample()
            };
            let router = Router::new(rules).unwrap();
            router.route(&mut message).unwrap_err().detail
        };
        let allowed_exchanges = Some(Vec::new());
        let nothing_allowed = RoutingRules {
            allowed_exchanges,
            ..rules()
        };
        let other = detail("other", nothing_allowed);
        assert!(
            other.contains("not in routing.allowed_exchanges"),
            "{other}"
        );
        let default = detail("", rules());
        assert!(default.contains("list \"\" in"), "{default}");
    }

    #[test]
    fn a_pattern_may_be_as_long_as_a_routing_key_and_end_in_text() {
        let with = |routing_key: String| {
            Router::new(RoutingRules {
                routing_key,
                ..rules()
            })
        };
        assert!(with("k".repeat(255)).is_ok());
        assert!(with("k".repeat(256)).is_err());
        let router = with("a.{event_type}.z".to_owned()).unwrap();
        let routed = router.route(&mut sample()).unwrap();
        assert_eq!(routed.routing_key, "a.created.z");
    }
}
