//! How many of everything.

use crate::state::{Faults, Key, Lane};

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// The key of each message; each is written by a transaction of its own. Sorted.
    pub messages: Vec<Key>,
    /// The lane of each key.
    pub lanes: Vec<Lane>,
    pub relays: usize,
    /// Without consumers the queue is where a message ends.
    pub consumers: usize,
    /// `relay.batch_size`.
    pub batch: usize,
    pub faults: Faults,
    /// Whether the scout tidies marks between the claims.
    pub scout: bool,
}

const NONE: Faults = Faults {
    crashes: 0,
    losses: 0,
    refusals: 0,
    rollbacks: 0,
    consumers: 0,
};

/// Marks move while transactions end in any order.
pub fn late_commit() -> Scenario {
    Scenario {
        name: "late commits",
        messages: vec![0, 0],
        lanes: vec![0],
        relays: 1,
        consumers: 0,
        batch: 2,
        faults: Faults {
            crashes: 1,
            rollbacks: 1,
            ..NONE
        },
        scout: true,
    }
}

/// Two relays, two keys.
pub fn peers() -> Scenario {
    Scenario {
        name: "two relays",
        messages: vec![0, 1],
        lanes: vec![0, 1],
        relays: 2,
        consumers: 0,
        batch: 2,
        faults: Faults { crashes: 1, ..NONE },
        scout: false,
    }
}

/// One relay and a broker that refuses, and that is lost.
pub fn refusals() -> Scenario {
    Scenario {
        name: "refusals",
        messages: vec![0, 0, 1],
        lanes: vec![0, 0],
        relays: 1,
        consumers: 0,
        batch: 2,
        faults: Faults {
            crashes: 1,
            losses: 1,
            refusals: 1,
            rollbacks: 1,
            ..NONE
        },
        scout: false,
    }
}

/// From the row to its effect.
pub fn end_to_end() -> Scenario {
    Scenario {
        name: "end to end",
        messages: vec![0],
        lanes: vec![0],
        relays: 1,
        consumers: 2,
        batch: 1,
        faults: Faults {
            crashes: 1,
            losses: 1,
            consumers: 1,
            ..NONE
        },
        scout: false,
    }
}

/// What every test run checks.
pub fn small() -> Vec<Scenario> {
    vec![late_commit(), peers(), refusals(), end_to_end()]
}
