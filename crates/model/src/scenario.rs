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
pub fn late_commits() -> Scenario {
    Scenario {
        name: "late commits",
        messages: vec![0, 0, 0],
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

/// Two relays and two lanes; one relay may die, or stand still.
pub fn two_relays() -> Scenario {
    Scenario {
        name: "two relays",
        messages: vec![0, 1],
        lanes: vec![0, 1],
        relays: 2,
        consumers: 0,
        batch: 2,
        faults: Faults {
            crashes: 1,
            refusals: 1,
            ..NONE
        },
        scout: false,
    }
}

/// A broker that refuses, and that is lost; two keys in one lane.
pub fn refusals() -> Scenario {
    Scenario {
        name: "refusals",
        messages: vec![0, 0, 1],
        lanes: vec![0, 0],
        relays: 1,
        consumers: 0,
        batch: 2,
        faults: Faults {
            losses: 1,
            refusals: 2,
            ..NONE
        },
        scout: false,
    }
}

/// One key, whose transactions end in any order, behind a broker that refuses.
pub fn one_key() -> Scenario {
    Scenario {
        name: "one key",
        messages: vec![0, 0, 0],
        lanes: vec![0],
        faults: Faults {
            losses: 1,
            refusals: 1,
            ..NONE
        },
        ..refusals()
    }
}

/// From the row to its effect.
pub fn end_to_end() -> Scenario {
    Scenario {
        name: "end to end",
        messages: vec![0, 0],
        lanes: vec![0],
        relays: 1,
        consumers: 2,
        batch: 2,
        faults: Faults {
            crashes: 1,
            consumers: 1,
            ..NONE
        },
        scout: false,
    }
}

/// What every test run checks.
pub fn small() -> Vec<Scenario> {
    vec![
        late_commits(),
        two_relays(),
        refusals(),
        one_key(),
        end_to_end(),
    ]
}

/// What `cargo xtask model --large` checks besides.
pub fn large() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "late commits, large",
            messages: vec![0, 0, 0, 1],
            lanes: vec![0, 0],
            relays: 2,
            ..late_commits()
        },
        Scenario {
            name: "two relays, large",
            faults: Faults {
                crashes: 2,
                refusals: 1,
                ..NONE
            },
            ..two_relays()
        },
        Scenario {
            name: "refusals, large",
            faults: Faults {
                crashes: 1,
                losses: 1,
                refusals: 2,
                ..NONE
            },
            ..refusals()
        },
        Scenario {
            name: "end to end, large",
            faults: Faults {
                crashes: 1,
                losses: 1,
                consumers: 2,
                ..NONE
            },
            ..end_to_end()
        },
    ]
}
