//! Where messages go, why they fail there, and what a circuit says about it.

use sha2::{Digest, Sha256};

use crate::{message::Position, reason::Reason};

/// Hash of an exchange and a routing key, or of an exchange alone. Every relay computes the same number;
/// `outbox.waiting` stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(pub i64);

impl Destination {
    pub fn of(exchange: &str, routing_key: &str) -> Self {
        // The length keeps ('ab', 'c') and ('a', 'bc') apart.
        Self::hash(exchange.len() as u64, exchange, routing_key)
    }

    /// The failing destinations of an exchange, together.
    pub fn exchange(exchange: &str) -> Self {
        // No exchange has this length, so no routing key gives the same hash.
        Self::hash(u64::MAX, exchange, "")
    }

    /// The destinations of an exchange that were not tried, together.
    pub fn untried(exchange: &str) -> Self {
        Self::hash(u64::MAX - 1, exchange, "")
    }

    fn hash(length: u64, exchange: &str, routing_key: &str) -> Self {
        let hash = Sha256::new()
            .chain_update(length.to_be_bytes())
            .chain_update(exchange)
            .chain_update(routing_key)
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        Self(i64::from_be_bytes(first))
    }
}

/// The circuits of a message: of its destination, and of its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub destination: Destination,
    pub exchange: Destination,
    pub untried: Destination,
}

impl Target {
    pub fn of(exchange: &str, routing_key: &str) -> Self {
        Self {
            destination: Destination::of(exchange, routing_key),
            exchange: Destination::exchange(exchange),
            untried: Destination::untried(exchange),
        }
    }
}

/// Why messages to a destination fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub reason: Reason,
    pub error: String,
}

impl Why {
    /// Whether many destinations of an exchange may fail for this one cause.
    ///
    /// A nacked message may have reached other queues, so each retry may be a copy. A missing exchange is missing for
    /// all routing keys. A returned message reached no queue, so its retry copies nothing, and each routing key has
    /// its own binding: what one of them meets says nothing about another.
    pub fn is_shared(&self) -> bool {
        matches!(self.reason, Reason::Nacked | Reason::ExchangeMissing)
    }
}

/// The state in which a candidate arrives at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Not tried before.
    New,
    /// Due again, or released, after it was perhaps held.
    Again(Option<Destination>),
    /// Selected to probe the destination for which it was held.
    Probe(Option<Destination>),
    /// Selected for its last attempt.
    Last,
}

impl Arrival {
    /// The destination for which the message was held.
    pub fn held_for(self) -> Option<Destination> {
        match self {
            Self::Again(held_for) | Self::Probe(held_for) => held_for,
            Self::New | Self::Last => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    Publish,
    Hold(Held),
}

/// Data that is filed with a held message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The circuit that holds the message.
    pub destination: Destination,
    /// Failed probes of the destination at that time.
    pub failures: u32,
    pub why: Why,
}

/// The result of a wave for one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    pub delivered: usize,
    /// Failed messages: their number, the first one, and the cause.
    pub failed: Option<(usize, Position, Why)>,
    /// At least one delivered message was held before.
    pub had_been_held: bool,
}

/// The result of a wave for one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    pub exchange: Destination,
    pub untried: Destination,
    /// Destinations that took a message.
    pub delivered: Vec<Destination>,
    /// At least one delivered message was held for the exchange.
    pub had_been_held: bool,
    /// Destinations that failed, and a cause that they may share.
    pub failed: Vec<Destination>,
    pub why: Option<Why>,
}

impl Spread {
    pub fn of(to: Target) -> Self {
        Self {
            exchange: to.exchange,
            untried: to.untried,
            delivered: Vec::new(),
            had_been_held: false,
            failed: Vec::new(),
            why: None,
        }
    }
}

/// Due work on held messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Make one held message due: the next one after this position.
    Probe(Destination, i64),
    /// Make the held messages that reach their limit, with this number of failed probes, due for their last attempt.
    GiveUp(Destination, u32),
    /// Make this number of held messages due.
    Release(Destination, usize),
    /// The same for untried destinations, the newest first: messages that came after the destinations began to fail are
    /// more likely for others. No key has two of them, so the order of keys holds.
    ProbeNewest(Destination),
    ReleaseNewest(Destination, usize),
}
