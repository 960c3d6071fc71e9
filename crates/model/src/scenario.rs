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

/// Defines scenarios, each by its differences from another one, and the list of all of them.
macro_rules! scenarios {
    ($(#[$about:meta])* $all:ident:
    $($(#[$doc:meta])* $scenario:ident = $name:literal of $base:ident { $($field:ident: $value:expr),* };)*) => {
        $($(#[$doc])*
        pub fn $scenario() -> Scenario {
            Scenario {
                name: $name,
                $($field: $value,)*
                ..$base()
            }
        })*

        $(#[$about])*
        pub fn $all() -> Vec<Scenario> {
            vec![$($scenario()),*]
        }
    };
}

/// These faults alone.
macro_rules! faults {
    ($($kind:ident: $number:literal),*) => {
        Faults {
            $($kind: $number,)*
            ..Faults::default()
        }
    };
}

fn smallest() -> Scenario {
    Scenario {
        name: "",
        messages: Vec::new(),
        lanes: Vec::new(),
        relays: 1,
        consumers: 0,
        batch: 2,
        faults: Faults::default(),
        scout: false,
        written: 0,
        stride: 1,
        acts: &[],
        ban: None,
        circuits: false,
        refusal: Reply::Nack,
    }
}

scenarios! {
    /// Every test run checks these.
    small:

    /// Marks move while transactions end in any order.
    late_commits = "late commits" of smallest {
        messages: vec![0, 0, 0], lanes: vec![0], faults: faults!(crashes: 1, rollbacks: 1), scout: true
    };
    /// Two relays and two lanes; one relay may die, or stand still.
    two_relays = "two relays" of smallest {
        messages: vec![0, 1], lanes: vec![0, 1], relays: 2, faults: faults!(crashes: 1, refusals: 1)
    };
    /// A broker that refuses, and that is lost; two keys in one lane.
    refusals = "refusals" of smallest {
        messages: vec![0, 0, 1], lanes: vec![0, 0], faults: faults!(losses: 1, refusals: 2)
    };
    /// One key, whose transactions end in any order, behind a broker that refuses.
    one_key = "one key" of refusals {
        messages: vec![0, 0, 0], lanes: vec![0], faults: faults!(losses: 1, refusals: 1)
    };
    /// From the row to its effect.
    end_to_end = "end to end" of smallest {
        messages: vec![0, 0], lanes: vec![0], consumers: 2, faults: faults!(crashes: 1, consumers: 1)
    };
    /// Somebody hides messages: takes back `sent_at`, deletes rows of `outbox.waiting` and `outbox.dead`.
    hidden_rows = "hidden rows" of smallest {
        messages: vec![0, 0], lanes: vec![0], faults: faults!(crashes: 1, refusals: 2, acts: 2), written: 2,
        acts: &[Act::TakeBack, Act::DeleteWaiting, Act::DeleteDead]
    };
    /// Somebody writes a position that was drawn and left empty, where the mark may have passed it.
    copied_back = "copied back" of hidden_rows {
        messages: vec![0, 0, 0], faults: faults!(rollbacks: 1, acts: 1), scout: true, written: 0,
        acts: &[Act::CopyBack]
    };
    /// Somebody revokes the privilege to mark, and grants it again.
    marks_that_fail = "marks that fail" of smallest {
        messages: vec![0, 1, 2], lanes: vec![0, 1, 1], relays: 2, faults: faults!(bans: 1, refused_marks: 4),
        written: 3, stride: 100, ban: Some(Forbidden::AtMark)
    };
    /// The same, and only the COMMIT shows it.
    commits_that_fail = "commits that fail" of marks_that_fail {
        ban: Some(Forbidden::AtCommit)
    };
    /// Somebody holds the lock of one row.
    a_locked_row = "a locked row" of marks_that_fail {
        messages: vec![0, 0, 1], lanes: vec![0, 0, 0], ban: Some(Forbidden::Row(0))
    };
    /// The same, and other lanes go on meanwhile: their marks end the caution before the row is read again. It stays a suspect.
    a_locked_row_beside_other_lanes = "a locked row beside other lanes" of a_locked_row {
        messages: vec![0, 1], lanes: vec![0, 1], relays: 1, written: 2
    };
    /// A destination that takes nothing for a while, and three keys that go there.
    an_outage = "an outage" of smallest {
        messages: vec![0, 1, 2], lanes: vec![0, 0, 0], faults: faults!(refusals: 8, outages: 1, rounds: 2),
        written: 3, stride: 100, circuits: true
    };
    /// Two relays, each with its own view of it, and a key with two messages.
    two_views = "two views" of an_outage {
        messages: vec![0, 0, 1], lanes: vec![0, 0], relays: 2,
        faults: faults!(refusals: 4, outages: 1, rounds: 1)
    };
    /// A relay that dies meanwhile, and a message that is written meanwhile.
    a_restart = "a restart" of an_outage {
        messages: vec![0, 1, 0], lanes: vec![0, 0], written: 2,
        faults: faults!(crashes: 1, refusals: 5, outages: 1, rounds: 1)
    };
    /// One that hands messages back, so that they die; the relay dies meanwhile, too.
    returns = "returns" of an_outage {
        faults: faults!(crashes: 1, refusals: 6, outages: 1, rounds: 2), refusal: Reply::Return
    };
}

scenarios! {
    /// `cargo xtask model --large` checks these as well.
    large:

    late_commits_large = "late commits, large" of late_commits {
        messages: vec![0, 0, 0, 1], lanes: vec![0, 0], relays: 2
    };
    two_relays_large = "two relays, large" of two_relays {
        faults: faults!(crashes: 2, refusals: 1)
    };
    refusals_large = "refusals, large" of refusals {
        faults: faults!(crashes: 1, losses: 1, refusals: 2)
    };
    end_to_end_large = "end to end, large" of end_to_end {
        faults: faults!(crashes: 1, losses: 1, consumers: 2)
    };
    two_views_large = "two views, large" of two_views {
        lanes: vec![0, 1], faults: faults!(refusals: 5, outages: 1, rounds: 1)
    };
    two_views_one_dies = "two views, one dies" of two_views {
        messages: vec![0, 1], written: 2, faults: faults!(crashes: 1, refusals: 4, outages: 1, rounds: 1)
    };
}
