//! What must hold.

use crate::{
    Machine,
    state::{Consumer, Phase, Relay, Scout, State},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// L0. Nothing is marked sent that the broker did not take, and nothing that is pending lies below the mark, where
    /// nobody looks. (That the rest is delivered, or dead, is `Progress`.)
    NoLoss,
    /// KEY. A first delivery never comes before one of its key that stood before it and could be seen.
    KeyOrder,
    /// D≤W. At most a batch of duplicates for each crash and each lost connection.
    FewDuplicates,
    /// With the inbox each operation is applied at most once, and at the end exactly once.
    EffectOnce,
    /// Nothing that was rolled back, or is not committed, is delivered.
    NoGhost,
    /// Whatever happened, when faults stop everything comes to its end: all is delivered or dead, and settled.
    Progress,
}

impl Invariant {
    pub const ALL: [Self; 6] = [
        Self::NoLoss,
        Self::KeyOrder,
        Self::FewDuplicates,
        Self::EffectOnce,
        Self::NoGhost,
        Self::Progress,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NoLoss => "L0",
            Self::KeyOrder => "KEY",
            Self::FewDuplicates => "D≤W",
            Self::EffectOnce => "effect once",
            Self::NoGhost => "no ghosts",
            Self::Progress => "progress",
        }
    }

    pub(crate) fn holds(self) -> fn(&Machine, &State) -> bool {
        match self {
            Self::NoLoss => no_loss,
            Self::KeyOrder => key_order,
            Self::FewDuplicates => few_duplicates,
            Self::EffectOnce => effect_once,
            Self::NoGhost => no_ghost,
            Self::Progress => progress,
        }
    }
}

fn no_loss(machine: &Machine, state: &State) -> bool {
    !(0..).zip(&state.rows).any(|(row, m)| {
        let mark = state.lanes[usize::from(machine.lane_of(m.key))];
        let unseen = m.phase == Phase::Committed
            && !m.sent
            && !m.dead
            && m.waiting.is_none()
            && row < mark.low_water;
        unseen || (m.sent && m.copies == 0)
    })
}

fn key_order(_: &Machine, state: &State) -> bool {
    !state.overtaken
}

fn few_duplicates(machine: &Machine, state: &State) -> bool {
    let duplicates: u32 = state
        .rows
        .iter()
        .map(|m| u32::from(m.copies.saturating_sub(1)))
        .sum();
    let happened = machine.scenario.faults.repeating() - state.left.repeating();
    duplicates <= u32::from(happened) * machine.scenario.batch as u32
}

fn effect_once(machine: &Machine, state: &State) -> bool {
    if state.rows.iter().any(|m| m.effects > 1) {
        return false;
    }
    let missing =
        machine.scenario.consumers > 0 && state.rows.iter().any(|m| m.copies > 0 && m.effects == 0);
    !missing || !machine.is_quiescent(state)
}

fn no_ghost(_: &Machine, state: &State) -> bool {
    !state
        .rows
        .iter()
        .any(|m| m.copies > 0 && m.phase != Phase::Committed)
}

/// Where no step is left but faults, all is done. That every run comes to such a place is `check`'s.
fn progress(machine: &Machine, state: &State) -> bool {
    !machine.is_quiescent(state) || is_done(state)
}

fn is_done(state: &State) -> bool {
    let settled = |m: &crate::state::Message| match m.phase {
        Phase::Committed => (m.sent || m.dead) && m.waiting.is_none() && m.ready == 0,
        Phase::RolledBack => true,
        Phase::Drawn | Phase::Open(_) => false,
    };
    state.unborn.is_empty()
        && state.begun.is_empty()
        && state.wire.is_empty()
        && state.scout == Scout::Idle
        && state.rows.iter().all(settled)
        && state.relays.iter().all(|relay| *relay == Relay::Idle)
        && state.consumers.iter().all(|c| *c == Consumer::Idle)
}
