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
mod tests;
