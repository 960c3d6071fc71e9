//! How many of everything.

use crate::state::{Act, Faults, Forbidden, Key, Lane, Reply};

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// The key of each message; each is written by a transaction of its own. Those that are not `written`: sorted.
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
    /// So many of the messages are committed when it begins.
    pub written: usize,
    /// How far a mark must be able to move, see `low_water::STRIDE`.
    pub stride: i64,
    /// How somebody hides messages by hand, so that the audit has to find them.
    pub acts: &'static [Act],
    /// How somebody makes marks impossible.
    pub ban: Option<Forbidden>,
    /// Whether all messages have one destination, with a circuit. Without, each has one of its own.
    pub circuits: bool,
    /// What it says while it fails.
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

/// Two relays and two lanes; one relay may die, or stand still.
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

/// A broker that refuses, and that is lost; two keys in one lane.
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
        consumers: 2,
        faults: Faults {
            crashes: 1,
            consumers: 1,
            ..NONE
        },
        ..SMALLEST
    }
}

/// Somebody hides messages: takes back `sent_at`, deletes rows of `outbox.waiting` and `outbox.dead`.
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

/// Somebody writes a position that was drawn and left empty, where the mark may have passed it.
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

/// The same, and only the COMMIT shows it.
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

/// The same, and other lanes go on meanwhile: their marks end the caution before the row is read again. It stays a suspect.
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

/// A destination that takes nothing for a while, and three keys that go there.
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

/// Two relays, each with its own view of it, and a key with two messages.
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

/// A relay that dies meanwhile, and a message that is written meanwhile.
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

/// One that hands messages back, so that they die; the relay dies meanwhile, too.
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

/// What every test run checks.
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
