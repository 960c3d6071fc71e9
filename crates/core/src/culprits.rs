//! Culprits: which messages of a wave are published next, and which of them alone on a channel. A message that closes
//! its channel must not take the answers of other messages with it. No I/O.
//!
//! A refusal closes the channel, and every outstanding answer on the channel is lost. So each message that may be
//! refused goes alone: the first message to an exchange, and, once a topic permission has refused a routing key of an
//! exchange, the first message to each of its keys. Messages to a destination that has taken a message go together.
//!
//! A body that is larger than the broker's `max_message_size` is refused as well. The text names the limit, so after the
//! first such refusal each larger body goes alone.
//!
//! A 404 is about the exchange. A 403 is about the exchange ("access to exchange") or about one routing key ("access to
//! topic", <https://www.rabbitmq.com/docs/access-control#topic-authorisation>). Any other code is about one message.

use std::collections::{HashMap, HashSet};

use crate::{envelope::Envelope, outcome::Answer};

/// Maximum number of remembered keys of an exchange. Then the set is cleared, and each key is probed again.
const KEYS: usize = 10_000;

/// RabbitMQ truncates a text at the limit of AMQP's short string.
const CUT: usize = 250;

/// A message of a wave, together with its answer.
#[derive(Debug)]
pub struct Awaiting<T> {
    pub message: T,
    pub answer: Option<Answer>,
}

impl<T: AsRef<Envelope>> Awaiting<T> {
    pub fn new(message: T) -> Self {
        Self {
            message,
            answer: None,
        }
    }

    pub fn envelope(&self) -> &Envelope {
        self.message.as_ref()
    }
}

/// The broker's reason for closing a channel or a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub code: u16,
    pub text: String,
    /// The whole connection was closed, not only the channel.
    pub connection: bool,
}

/// The thing that a refusal refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit<'a> {
    Exchange(&'a str),
    Key(&'a str, &'a str),
    /// By its index in the wave.
    Message(usize),
}

#[derive(Debug, PartialEq, Eq)]
enum SpeaksOf {
    Exchange,
    Key,
    Message,
}

/// RabbitMQ 3.10 says "access to …", 3.13 and 4 say "write access to …".
fn speaks_of(code: u16, text: &str) -> SpeaksOf {
    let text = text.strip_prefix("ACCESS_REFUSED - ").unwrap_or(text);
    let text = text.strip_prefix("write ").unwrap_or(text);
    match code {
        404 => SpeaksOf::Exchange,
        403 if text.starts_with("access to topic '") => SpeaksOf::Key,
        403 if text.starts_with("access to exchange '")
            || text.starts_with("cannot publish to internal exchange '") =>
        {
            SpeaksOf::Exchange
        }
        _ => SpeaksOf::Message,
    }
}

/// The limit that a refused body exceeds: "message size 150000 is larger than configured max size 100000" (RabbitMQ 3.10 to
/// 4.2).
fn size_limit(closed: &Closed) -> Option<usize> {
    let (_, limit) = closed.text.split_once("larger than configured max size ")?;
    let digits = limit.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|_| closed.code == 406)
}

#[derive(Debug, Default)]
pub struct Destinations {
    /// The broker refuses larger bodies, in bytes.
    largest_body: Option<usize>,
    /// Exchanges that have answered for a message. `None`: the exchange has refused no routing key.
    exchanges: HashMap<String, Option<Keys>>,
}

/// Routing keys of an exchange that has refused one.
#[derive(Debug, Default)]
struct Keys {
    taken: HashSet<String>,
    refused: HashSet<String>,
}

impl Destinations {
    /// The unit that must be tried alone before this message can go together with others.
    fn unproven<'a>(&self, envelope: &'a Envelope) -> Option<Unit<'a>> {
        let (exchange, key) = (envelope.exchange.as_str(), envelope.routing_key.as_str());
        match self.exchanges.get(exchange) {
            None => Some(Unit::Exchange(exchange)),
            Some(Some(keys)) if !keys.taken.contains(key) => Some(Unit::Key(exchange, key)),
            Some(_) => None,
        }
    }

    fn refused_before(&self, envelope: &Envelope) -> bool {
        let keys = self.exchanges.get(&envelope.exchange);
        matches!(keys, Some(Some(keys)) if keys.refused.contains(&envelope.routing_key))
    }

    fn is_too_large(&self, envelope: &Envelope) -> bool {
        self.largest_body
            .is_some_and(|largest| envelope.body.len() > largest)
    }

    /// The broker answered for this message without closing its channel.
    pub fn took(&mut self, envelope: &Envelope) {
        if self.is_too_large(envelope) {
            // Somebody has raised the limit.
            self.largest_body = None;
        }
        let keys = self.exchanges.entry(envelope.exchange.clone()).or_default();
        if let Some(keys) = keys {
            keys.refused.remove(&envelope.routing_key);
            remember(&mut keys.taken, &envelope.routing_key);
        }
    }

    /// This message was alone on its channel, and the broker closed the channel.
    pub fn refused(&mut self, envelope: &Envelope, closed: &Closed) {
        match speaks_of(closed.code, &closed.text) {
            SpeaksOf::Exchange => {
                self.exchanges.remove(&envelope.exchange);
            }
            SpeaksOf::Key => {
                // The exchange exists, and the user may write to it.
                let keys = self.exchanges.entry(envelope.exchange.clone()).or_default();
                let keys = keys.get_or_insert_default();
                keys.taken.remove(&envelope.routing_key);
                remember(&mut keys.refused, &envelope.routing_key);
            }
            SpeaksOf::Message => self.learn(closed),
        }
    }

    fn learn(&mut self, closed: &Closed) {
        if let Some(limit) = size_limit(closed) {
            self.largest_body = Some(limit);
        }
    }

    /// One of these messages closed the channel that they shared. `false`: the refusal does not tell which.
    pub fn closed(&mut self, together: &[&Envelope], closed: &Closed) -> bool {
        let exchanges: HashSet<&str> = together.iter().map(|e| e.exchange.as_str()).collect();
        let named = |name: &&str| {
            let shown = if name.is_empty() { "amq.default" } else { name };
            closed.text.contains(&format!("exchange '{shown}'"))
        };
        // A routing key can contain the name of another exchange, so every named exchange counts.
        let mut meant: Vec<&str> = exchanges.iter().copied().filter(named).collect();
        if meant.is_empty() || closed.text.len() >= CUT {
            meant = exchanges.into_iter().collect();
        }
        match speaks_of(closed.code, &closed.text) {
            SpeaksOf::Exchange => {
                for exchange in meant {
                    self.exchanges.remove(exchange);
                }
                true
            }
            SpeaksOf::Key => {
                for exchange in meant {
                    // This also forgets keys that the broker took before: a permission may have changed.
                    self.exchanges
                        .insert(exchange.to_owned(), Some(Keys::default()));
                }
                true
            }
            SpeaksOf::Message => {
                self.learn(closed);
                together.iter().any(|envelope| self.is_too_large(envelope))
            }
        }
    }
}

/// Refusals of this wave. Other messages to the same exchange, or with the same routing key, get the same answer.
#[derive(Debug, Default)]
pub struct Refusals {
    exchanges: HashMap<String, Answer>,
    /// By exchange, then by routing key.
    keys: HashMap<String, HashMap<String, Answer>>,
}

impl Refusals {
    /// This message was alone on its channel, and the broker closed the channel.
    pub fn add(&mut self, envelope: &Envelope, closed: &Closed) {
        let exchange = || envelope.exchange.clone();
        match speaks_of(closed.code, &closed.text) {
            SpeaksOf::Exchange => {
                self.exchanges.insert(exchange(), refusal(closed));
            }
            SpeaksOf::Key => {
                let keys = self.keys.entry(exchange()).or_default();
                keys.insert(envelope.routing_key.clone(), refusal(closed));
            }
            SpeaksOf::Message => {}
        }
    }

    fn of(&self, envelope: &Envelope) -> Option<&Answer> {
        let keys = || self.keys.get(&envelope.exchange);
        let exchange = self.exchanges.get(&envelope.exchange);
        exchange.or_else(|| keys()?.get(&envelope.routing_key))
    }
}

pub fn refusal(closed: &Closed) -> Answer {
    Answer::Refused {
        code: closed.code,
        text: closed.text.clone(),
    }
}

fn remember(keys: &mut HashSet<String>, key: &str) {
    if keys.len() >= KEYS {
        keys.clear();
    }
    if !keys.contains(key) {
        keys.insert(key.to_owned());
    }
}

/// The messages of a wave that are published next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// On one channel, in this order.
    pub together: Vec<usize>,
    /// After those, each on its own channel.
    pub alone: Vec<usize>,
}

impl Step {
    /// Chooses among the messages without an answer, and gives a message its answer if its destination was refused in
    /// this wave. A message waits for earlier ones of its key. Two messages that a return could not tell apart do not
    /// go together. `singly`: no messages go together. At most `width` messages go alone; those whose key was never
    /// refused come first, so that many refused keys do not delay the others.
    pub fn next<T: AsRef<Envelope>>(
        wave: &mut [Awaiting<T>],
        known: &Destinations,
        refused: &Refusals,
        singly: bool,
        width: usize,
    ) -> Self {
        let mut step = Self::default();
        let mut behind: HashSet<&str> = HashSet::new();
        let mut asked: HashSet<Unit<'_>> = HashSet::new();
        let mut returnable: HashSet<(&str, &str, &str)> = HashSet::with_capacity(wave.len());
        for (i, Awaiting { message, answer }) in wave.iter_mut().enumerate() {
            let envelope: &Envelope = (*message).as_ref();
            let key = envelope.key();
            if answer.is_some() || key.is_some_and(|key| behind.contains(key)) {
                continue;
            }
            if let Some(refusal) = refused.of(envelope) {
                *answer = Some(refusal.clone());
                continue;
            }
            let unproven = known
                .unproven(envelope)
                .or_else(|| (singly || known.is_too_large(envelope)).then_some(Unit::Message(i)));
            let id = envelope.properties.message_id.as_str();
            let named = (
                id,
                envelope.exchange.as_str(),
                envelope.routing_key.as_str(),
            );
            match unproven {
                None if returnable.insert(named) => {
                    step.together.push(i);
                    continue;
                }
                Some(unit) if asked.insert(unit) => step.alone.push(i),
                _ => {}
            }
            behind.extend(key);
        }
        step.alone
            .sort_by_key(|i| known.refused_before(wave[*i].envelope()));
        step.alone.truncate(width);
        step
    }
}

#[cfg(test)]
mod tests;
