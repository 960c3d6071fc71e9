//! The sizes and the faults of each scenario.

use crate::state::{Act, Faults, Forbidden, Key, Lane, Reply};

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// The key of each message. Each message is written by its own transaction. The keys of messages that are not
    /// `written` are sorted.
    pub messages: Vec<Key>,
    /// The lane of each key.
    pub lanes: Vec<Lane>,
    pub relays: usize,
    /// Number of consumers. Without consumers a message ends in the queue.
    pub consumers: usize,
    /// `relay.batch_size`.
    pub batch: usize,
    pub faults: Faults,
    /// Whether the scout moves marks between the claims.
    pub scout: bool,
    /// Number of messages that are committed at the start.
    pub written: usize,
    /// Minimum distance of a mark's move; see `low_water::STRIDE`.
    pub stride: i64,
    /// Manual changes that hide messages, so that the audit has to find them.
    pub acts: &'static [Act],
    /// The way in which somebody makes marks impossible.
    pub ban: Option<Forbidden>,
    /// Whether all messages share one destination with a circuit. Otherwise each message has its own destination.
    pub circuits: bool,
    /// The broker's answer while the destination fails.
    pub refusal: Reply,
}

const NONE: Faults = Faults {
    crashes: 0,
    losses: 0,
    refusals: 0,
    rollbacks: 0,
    consumers: 0,
    acts: 0,
    bans: 0,
    refused_marks: 0,
    outages: 0,
    rounds: 0,
};

const SMALLEST: Scenario = Scenario {
    name: "",
    messages: Vec::new(),
    lanes: Vec::new(),
    relays: 1,
    consumers: 0,
    batch: 2,
    faults: NONE,
    scout: false,
    written: 0,
    stride: 1,
    acts: &[],
    ban: None,
    circuits: false,
    refusal: Reply::Nack,
};

/// Marks move while transactions end in any order.
pub fn late_commits() -> Scenario {
    Scenario {
        name: "late commits",
        messages: vec![0, 0, 0],
        lanes: vec![0],
        faults: Faults {
            crashes: 1,
            rollbacks: 1,
            ..NONE
        },
        scout: true,
        ..SMALLEST
    }
}

/// Two relays and two lanes; one relay may die or stall.
pub fn two_relays() -> Scenario {
    Scenario {
        name: "two relays",
        messages: vec![0, 1],
        lanes: vec![0, 1],
        relays: 2,
        faults: Faults {
            crashes: 1,
            refusals: 1,
            ..NONE
        },
        ..SMALLEST
    }
}

/// A broker that refuses messages and loses connections; two keys in one lane.
pub fn refusals() -> Scenario {
    Scenario {
        name: "refusals",
        messages: vec![0, 0, 1],
        lanes: vec![0, 0],
        faults: Faults {
            losses: 1,
            refusals: 2,
            ..NONE
        },
        ..SMALLEST
    }
}

/// One key; its transactions end in any order, and the broker refuses messages.
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
        consumers: 2,
        faults: Faults {
            crashes: 1,
            consumers: 1,
            ..NONE
        },
        ..SMALLEST
    }
}

/// Somebody hides messages: resets `sent_at`, or deletes rows of `outbox.waiting` and `outbox.dead`.
pub fn hidden_rows() -> Scenario {
    Scenario {
        name: "hidden rows",
        messages: vec![0, 0],
        lanes: vec![0],
        faults: Faults {
            crashes: 1,
            refusals: 2,
            acts: 2,
            ..NONE
        },
        written: 2,
        acts: &[Act::TakeBack, Act::DeleteWaiting, Act::DeleteDead],
        ..SMALLEST
    }
}

/// Somebody writes at a position that was drawn and left empty, where the mark may already have passed.
pub fn copied_back() -> Scenario {
    Scenario {
        name: "copied back",
        messages: vec![0, 0, 0],
        faults: Faults {
            rollbacks: 1,
            acts: 1,
            ..NONE
        },
        scout: true,
        written: 0,
        acts: &[Act::CopyBack],
        ..hidden_rows()
    }
}

/// Somebody revokes the privilege to mark, and grants it again.
pub fn marks_that_fail() -> Scenario {
    Scenario {
        name: "marks that fail",
        messages: vec![0, 1, 2],
        lanes: vec![0, 1, 1],
        relays: 2,
        faults: Faults {
            bans: 1,
            refused_marks: 4,
            ..NONE
        },
        written: 3,
        stride: 100,
        ban: Some(Forbidden::AtMark),
        ..SMALLEST
    }
}

/// The same, but only the COMMIT shows it.
pub fn commits_that_fail() -> Scenario {
    Scenario {
        name: "commits that fail",
        ban: Some(Forbidden::AtCommit),
        ..marks_that_fail()
    }
}

/// Somebody holds the lock of one row.
pub fn a_locked_row() -> Scenario {
    Scenario {
        name: "a locked row",
        messages: vec![0, 0, 1],
        lanes: vec![0, 0, 0],
        ban: Some(Forbidden::Row(0)),
        ..marks_that_fail()
    }
}

/// The same, while other lanes continue: their marks end the caution before the row is read again. The message stays a
/// suspect.
pub fn a_locked_row_beside_other_lanes() -> Scenario {
    Scenario {
        name: "a locked row beside other lanes",
        messages: vec![0, 1],
        lanes: vec![0, 1],
        relays: 1,
        written: 2,
        ..a_locked_row()
    }
}

/// A destination that refuses everything for a while, and three keys with messages for it.
pub fn an_outage() -> Scenario {
    Scenario {
        name: "an outage",
        messages: vec![0, 1, 2],
        lanes: vec![0, 0, 0],
        faults: Faults {
            refusals: 8,
            outages: 1,
            rounds: 2,
            ..NONE
        },
        written: 3,
        stride: 100,
        circuits: true,
        ..SMALLEST
    }
}

/// Two relays, each with its own view of the destination, and a key with two messages.
pub fn two_views() -> Scenario {
    Scenario {
        name: "two views",
        messages: vec![0, 0, 1],
        lanes: vec![0, 0],
        relays: 2,
        faults: Faults {
            refusals: 4,
            outages: 1,
            rounds: 1,
            ..NONE
        },
        ..an_outage()
    }
}

/// During the outage a relay dies, and a message is written.
pub fn a_restart() -> Scenario {
    Scenario {
        name: "a restart",
        messages: vec![0, 1, 0],
        lanes: vec![0, 0],
        written: 2,
        faults: Faults {
            crashes: 1,
            refusals: 5,
            outages: 1,
            rounds: 1,
            ..NONE
        },
        ..an_outage()
    }
}

/// A destination that returns messages, so that they die; the relay dies too.
pub fn returns() -> Scenario {
    Scenario {
        name: "returns",
        faults: Faults {
            crashes: 1,
            refusals: 6,
            outages: 1,
            rounds: 2,
            ..NONE
        },
        refusal: Reply::Return,
        ..an_outage()
    }
}

/// The scenarios of every test run.
pub fn small() -> Vec<Scenario> {
    vec![
        late_commits(),
        two_relays(),
        refusals(),
        one_key(),
        end_to_end(),
        hidden_rows(),
        copied_back(),
        marks_that_fail(),
        commits_that_fail(),
        a_locked_row(),
        a_locked_row_beside_other_lanes(),
        an_outage(),
        two_views(),
        a_restart(),
        returns(),
    ]
}

/// The additional scenarios of `cargo xtask model --large`.
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
        Scenario {
            name: "two views, large",
            lanes: vec![0, 1],
            faults: Faults {
                refusals: 5,
                outages: 1,
                rounds: 1,
                ..NONE
            },
            ..two_views()
        },
        Scenario {
            name: "two views, one dies",
            messages: vec![0, 1],
            written: 2,
            faults: Faults {
                crashes: 1,
                refusals: 4,
                outages: 1,
                rounds: 1,
                ..NONE
            },
            ..two_views()
        },
    ]
}
