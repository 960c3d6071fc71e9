//! Situations that a scenario must reach; otherwise it would prove nothing.

use crate::{
    Machine,
    real::POLICY,
    state::{Audit, Circuit, Consumer, Due, Hold, Phase, Relay, Row, State, Waiting, Work},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    MarkMoved,
    /// A message was sent while a transaction with an earlier position was open.
    LateCommit,
    TwoRelaysWork,
    FencedRelay,
    /// A publish that outlived its connection.
    LatePublish,
    Duplicate,
    Retry,
    Behind,
    Dead,
    /// The inbox already contains the message.
    Redelivered,
    /// Two consumers have the same message.
    DeliveredTwiceAtOnce,
    /// Only the audit looks there.
    Stranded,
    /// Somebody deleted the message that this one is behind.
    HeadGone,
    /// The audit remembers a message that is already settled or filed.
    AuditLate,
    /// A claim holds the lane.
    AuditWaits,
    /// The message waits because it cannot be marked.
    Unmarkable,
    /// After a failed settle, a claim reads fewer messages.
    Cautious,
    Held,
    /// A held message was chosen as a probe.
    Probe,
    /// A held message was chosen for its last attempt.
    Last,
    Draining,
    TwoOpen,
    /// One relay holds messages, and the other has no state of the destination.
    TwoViews,
    HeldByNobody,
}

impl Sighting {
    pub const ALL: [Self; 24] = [
        Self::MarkMoved,
        Self::LateCommit,
        Self::TwoRelaysWork,
        Self::FencedRelay,
        Self::LatePublish,
        Self::Duplicate,
        Self::Retry,
        Self::Behind,
        Self::Dead,
        Self::Redelivered,
        Self::DeliveredTwiceAtOnce,
        Self::Stranded,
        Self::HeadGone,
        Self::AuditLate,
        Self::AuditWaits,
        Self::Unmarkable,
        Self::Cautious,
        Self::Held,
        Self::Probe,
        Self::Last,
        Self::Draining,
        Self::TwoOpen,
        Self::TwoViews,
        Self::HeldByNobody,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::MarkMoved => "a mark moved",
            Self::LateCommit => "a late commit",
            Self::TwoRelaysWork => "two relays at work",
            Self::FencedRelay => "a fenced relay",
            Self::LatePublish => "a publish that outlived its connection",
            Self::Duplicate => "a duplicate",
            Self::Retry => "a retry",
            Self::Behind => "a message behind another",
            Self::Dead => "a dead message",
            Self::Redelivered => "a redelivery",
            Self::DeliveredTwiceAtOnce => "one message at two consumers",
            Self::Stranded => "a hidden message",
            Self::HeadGone => "a message whose head is gone",
            Self::AuditLate => "a message known to the audit and settled",
            Self::AuditWaits => "an audit beside a claim",
            Self::Unmarkable => "a message that cannot be marked",
            Self::Cautious => "a cautious claim with fewer messages",
            Self::Held => "a held message",
            Self::Probe => "a probe",
            Self::Last => "a last attempt",
            Self::Draining => "a destination that works again",
            Self::TwoOpen => "two open circuits",
            Self::TwoViews => "two views of a destination",
            Self::HeldByNobody => "a held message that no relay knows of",
        }
    }

    pub(crate) fn is(self) -> fn(&Machine, &State) -> bool {
        match self {
            Self::MarkMoved => |_, s| s.lanes.iter().any(|mark| mark.low_water > 0),
            Self::LateCommit => |_, s| {
                let open = |m: &crate::state::Message| matches!(m.phase, Phase::Open(_));
                s.rows.iter().skip_while(|m| !open(m)).any(|m| m.sent)
            },
            Self::TwoRelaysWork => |_, s| works(s).count() > 1,
            Self::FencedRelay => |_, s| works(s).any(|hold| hold == Hold::Fenced),
            Self::LatePublish => |_, s| !s.wire.is_empty(),
            Self::Duplicate => |_, s| s.rows.iter().any(|m| m.copies > 1),
            Self::Retry => |_, s| waits(s, Due::Later),
            Self::Behind => |_, s| waits(s, Due::Behind),
            Self::Dead => |_, s| s.rows.iter().any(|m| m.dead),
            Self::Redelivered => |_, s| got(s).any(|row| s.rows[row].in_inbox),
            Self::DeliveredTwiceAtOnce => |_, s| {
                let mut rows: Vec<usize> = got(s).collect();
                rows.dedup();
                rows.len() < got(s).count()
            },
            Self::Stranded => |m, s| !m.stranded(s).is_empty(),
            Self::HeadGone => |m, s| m.without_head(s).next().is_some(),
            Self::AuditLate => |_, s| {
                let settled = |row: &Row| {
                    let m = &s.rows[usize::from(*row)];
                    !m.is_pending() || m.waiting.is_some()
                };
                matches!(&s.audit, Audit::Holds(rows, _) if rows.iter().any(settled))
            },
            Self::AuditWaits => |m, s| {
                let held = |row: &Row| s.is_locked(m.lane_of(s.rows[usize::from(*row)].key));
                matches!(&s.audit, Audit::Knows(rows) if rows.iter().any(held))
            },
            Self::Unmarkable => |_, s| waiting(s).any(|w| w.unmarkable),
            Self::Cautious => |m, s| working(s).any(|w| usize::from(w.limit) < m.scenario.batch),
            Self::Held => |_, s| waiting(s).any(|w| matches!(w.due, Due::Held { .. })),
            Self::Probe => |_, s| waiting(s).any(|w| w.probe),
            Self::Last => |_, s| {
                let last = |w: Waiting| u32::from(w.attempts) + 1 >= POLICY.max_attempts;
                waiting(s).any(|w| w.probe && last(w))
            },
            Self::Draining => |_, s| views(s).any(|c| matches!(c, Circuit::Draining { .. })),
            Self::TwoOpen => |_, s| views(s).filter(is_open).count() > 1,
            Self::TwoViews => {
                |_, s| views(s).any(|c| is_open(&c)) && views(s).any(|c| c == Circuit::Works)
            }
            Self::HeldByNobody => |_, s| {
                let held = waiting(s).any(|w| matches!(w.due, Due::Held { .. }));
                held && views(s).all(|c| c == Circuit::Works)
            },
        }
    }
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
