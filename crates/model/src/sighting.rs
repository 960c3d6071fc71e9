//! Situations that a scenario must reach; otherwise it would prove nothing.

use crate::{
    Machine,
    real::POLICY,
    state::{Audit, Circuit, Consumer, Due, Hold, Phase, Relay, Row, State, Waiting, Work},
};

macro_rules! sightings {
    ($($(#[$doc:meta])* $sighting:ident $name:literal: $is:expr;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Sighting {
            $($(#[$doc])* $sighting,)*
        }

        impl Sighting {
            pub const ALL: &[Self] = &[$(Self::$sighting),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$sighting => $name,)*
                }
            }

            pub(crate) fn is(self) -> fn(&Machine, &State) -> bool {
                match self {
                    $(Self::$sighting => $is,)*
                }
            }
        }
    };
}

sightings! {
    MarkMoved "a mark moved": |_, s| s.lanes.iter().any(|mark| mark.low_water > 0);
    /// Sent while a transaction with an earlier position was open.
    LateCommit "a late commit": |_, s| {
        let open = |m: &crate::state::Message| matches!(m.phase, Phase::Open(_));
        s.rows.iter().skip_while(|m| !open(m)).any(|m| m.sent)
    };
    TwoRelaysWork "two relays at work": |_, s| works(s).count() > 1;
    FencedRelay "a fenced relay": |_, s| works(s).any(|hold| hold == Hold::Fenced);
    LatePublish "a publish that outlived its connection": |_, s| !s.wire.is_empty();
    Duplicate "a duplicate": |_, s| s.rows.iter().any(|m| m.copies > 1);
    Retry "a retry": |_, s| waits(s, Due::Later);
    Behind "a message behind another": |_, s| waits(s, Due::Behind);
    Dead "a dead message": |_, s| s.rows.iter().any(|m| m.dead);
    /// The inbox has it already.
    Redelivered "a redelivery": |_, s| got(s).any(|row| s.rows[row].in_inbox);
    /// Two consumers with one message.
    DeliveredTwiceAtOnce "one message at two consumers": |_, s| {
        let mut rows: Vec<usize> = got(s).collect();
        rows.dedup();
        rows.len() < got(s).count()
    };
    /// Where nobody but the audit looks.
    Stranded "a hidden message": |m, s| !m.stranded(s).is_empty();
    /// Somebody deleted what it stands behind.
    HeadGone "a message behind nobody": |m, s| m.without_head(s).next().is_some();
    /// The audit knows of it, and it is settled or filed already.
    AuditLate "a message known to the audit and settled": |_, s| {
        let settled = |row: &Row| {
            let m = &s.rows[usize::from(*row)];
            !m.is_pending() || m.waiting.is_some()
        };
        matches!(&s.audit, Audit::Holds(rows, _) if rows.iter().any(settled))
    };
    /// Its lane is held by a claim.
    AuditWaits "an audit beside a claim": |m, s| {
        let held = |row: &Row| s.is_locked(m.lane_of(s.rows[usize::from(*row)].key));
        matches!(&s.audit, Audit::Knows(rows) if rows.iter().any(held))
    };
    /// It waits for its mark.
    Unmarkable "a message that cannot be marked": |_, s| waiting(s).any(|w| w.unmarkable);
    /// A claim reads fewer messages after a settle that failed.
    Cautious "a cautious claim with fewer messages": |m, s| working(s).any(|w| usize::from(w.limit) < m.scenario.batch);
    Held "a held message": |_, s| waiting(s).any(|w| matches!(w.due, Due::Held { .. }));
    /// A held message was chosen to probe.
    Probe "a probe": |_, s| waiting(s).any(|w| w.probe);
    /// Or for its last attempt.
    Last "a last attempt": |_, s| {
        let last = |w: Waiting| u32::from(w.attempts) + 1 >= POLICY.max_attempts;
        waiting(s).any(|w| w.probe && last(w))
    };
    Draining "a destination that works again": |_, s| views(s).any(|c| matches!(c, Circuit::Draining { .. }));
    TwoOpen "two open circuits": |_, s| views(s).filter(is_open).count() > 1;
    /// One relay holds, the other one knows nothing.
    TwoViews "two views of a destination": |_, s| views(s).any(|c| is_open(&c)) && views(s).any(|c| c == Circuit::Works);
    HeldByNobody "a held message that no relay knows of": |_, s| {
        let held = waiting(s).any(|w| matches!(w.due, Due::Held { .. }));
        held && views(s).all(|c| c == Circuit::Works)
    };
}

fn working(state: &State) -> impl Iterator<Item = &Work> {
    state.relays.iter().filter_map(|relay| match &relay.task {
        Relay::Working(work) => Some(work),
        Relay::Idle | Relay::Looked(_) | Relay::Locked(_) => None,
    })
}

fn works(state: &State) -> impl Iterator<Item = Hold> {
    working(state).map(|work| work.hold)
}

fn views(state: &State) -> impl Iterator<Item = Circuit> {
    state.relays.iter().map(|relay| relay.memory.circuit)
}

fn is_open(circuit: &Circuit) -> bool {
    matches!(circuit, Circuit::Open(_))
}

fn waiting(state: &State) -> impl Iterator<Item = Waiting> {
    state.rows.iter().filter_map(|m| m.waiting)
}

fn waits(state: &State, due: Due) -> bool {
    waiting(state).any(|w| w.due == due)
}

fn got(state: &State) -> impl Iterator<Item = usize> {
    state.consumers.iter().filter_map(|c| match c {
        Consumer::Got { row, .. } => Some(usize::from(*row)),
        Consumer::Idle | Consumer::Claimed { .. } | Consumer::Committed { .. } => None,
    })
}
