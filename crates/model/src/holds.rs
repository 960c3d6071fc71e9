//! Whether an invariant holds in a state.

use crate::{
    Machine,
    invariant::Invariant,
    state::{Audit, Consumer, Forbidden, Phase, Relay, Scout, State},
};

impl Invariant {
    pub(crate) fn holds(self) -> fn(&Machine, &State) -> bool {
        match self {
            Self::NoLoss => no_loss,
            Self::KeyOrder => key_order,
            Self::FewDuplicates => few_duplicates,
            Self::EffectOnce => effect_once,
            Self::NoGhost => no_ghost,
            Self::FiledOnce => filed_once,
            Self::FewProbes => few_probes,
            Self::Progress => progress,
        }
    }
}

fn no_loss(machine: &Machine, state: &State) -> bool {
    !(0..).zip(&state.rows).any(|(row, m)| {
        let mark = state.lanes[usize::from(machine.lane_of(m.key))];
        // The audit finds hidden messages in the end: `Progress` covers that.
        let unseen = m.is_pending() && m.waiting.is_none() && row < mark.low_water && !m.by_hand;
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
    let scenario = &machine.scenario;
    let (all, left) = (scenario.faults, state.left);
    let batch = scenario.batch as u32;
    let claims = u32::from(all.repeating() - left.repeating());
    let bans = u32::from(all.bans - left.bans);
    let failed = u32::from(all.refused_marks - left.refused_marks);
    // Each relay's first claim after a ban. After that nothing that the mark shows costs more; what only the COMMIT shows
    // costs one message an attempt.
    let first = bans * lives(machine, state);
    let unmarked = match scenario.ban {
        Some(Forbidden::AtCommit) => batch * failed.min(first) + failed.saturating_sub(first),
        Some(Forbidden::AtMark | Forbidden::Row(_)) | None => batch * first,
    };
    duplicates <= batch * claims + unmarked
}

/// Relays, each counted again after it died.
fn lives(machine: &Machine, state: &State) -> u32 {
    let crashes = machine.scenario.faults.crashes - state.left.crashes;
    machine.scenario.relays as u32 + u32::from(crashes)
}

fn filed_once(_: &Machine, state: &State) -> bool {
    !state
        .rows
        .iter()
        .any(|m| m.waiting.is_some() && (m.sent || m.dead))
}

fn few_probes(machine: &Machine, state: &State) -> bool {
    let scenario = &machine.scenario;
    if !scenario.circuits {
        return true;
    }
    let refused = u32::from(scenario.faults.refusals - state.left.refusals);
    let rounds = u32::from(scenario.faults.rounds - state.left.rounds);
    let first = scenario.batch as u32 + 1;
    refused <= lives(machine, state) * (first + 2 * rounds)
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
    state.unwritten.is_empty()
        && state.begun.is_empty()
        && state.wire.is_empty()
        && state.scout == Scout::Idle
        && state.audit == Audit::Idle
        && state.rows.iter().all(settled)
        && state.relays.iter().all(|relay| relay.task == Relay::Idle)
        && state.consumers.iter().all(|c| *c == Consumer::Idle)
}
