//! What a scenario must come across, or it would show nothing.

use crate::{
    Machine,
    state::{Consumer, Due, Hold, Phase, Relay, State},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    MarkMoved,
    /// Sent while a transaction with an earlier position was open.
    LateCommit,
    TwoRelaysWork,
    FencedRelay,
    /// A publish that outlived its connection.
    LatePublish,
    Duplicate,
    Retry,
    Behind,
    Dead,
    /// The inbox has it already.
    Redelivered,
    /// Two consumers with one message.
    DeliveredTwiceAtOnce,
}

impl Sighting {
    pub const ALL: [Self; 11] = [
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
        }
    }
}

fn works(state: &State) -> impl Iterator<Item = Hold> {
    state.relays.iter().filter_map(|relay| match relay {
        Relay::Working(work) => Some(work.hold),
        Relay::Idle | Relay::Looked(_) | Relay::Locked(_) => None,
    })
}

fn waits(state: &State, due: Due) -> bool {
    let mut waiting = state.rows.iter().filter_map(|m| m.waiting);
    waiting.any(|w| w.due == due)
}

fn got(state: &State) -> impl Iterator<Item = usize> {
    state.consumers.iter().filter_map(|c| match c {
        Consumer::Got { row, .. } => Some(usize::from(*row)),
        Consumer::Idle | Consumer::Claimed { .. } | Consumer::Committed { .. } => None,
    })
}
