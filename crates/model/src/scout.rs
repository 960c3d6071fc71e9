//! The scout moves marks in lanes without work: src/relay/scout.rs and settlement::tidied.

use std::collections::HashMap;

use crate::{
    Action, Machine,
    real::{Limits, Settlement, limits, settlement},
    state::{Lane, Row, Scout, State},
};

impl Machine {
    /// The scout looks only if it could move a mark now; looks that find nothing are not steps.
    pub(crate) fn scout_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.scenario.scout {
            return;
        }
        match &state.scout {
            Scout::Idle => {
                let mut then = state.clone();
                self.scout_look(&mut then);
                self.scout_lock(&mut then);
                self.scout_tidy(&mut then);
                if then.lanes != state.lanes {
                    actions.push(Action::ScoutLook);
                }
            }
            Scout::Looked(_) => actions.push(Action::ScoutLock),
            Scout::Locked(..) => actions.push(Action::ScoutTidy),
        }
    }

    /// sql/untidy.sql.
    pub(crate) fn scout_look(&self, state: &mut State) {
        let untidy = (0..).zip(&state.lanes).filter_map(|(lane, mark)| {
            let visible = self
                .of_lane(&state.rows, lane)
                .filter(|(_, m)| self.shows(m));
            let last = visible.map(|(row, _)| row + 1).max();
            let last = last.filter(|last| *last > mark.low_water);
            (last.is_some() || mark.candidate.is_some()).then_some((lane, last))
        });
        state.scout = Scout::Looked(untidy.collect());
    }

    pub(crate) fn scout_lock(&self, state: &mut State) {
        let Scout::Looked(untidy) = &state.scout else {
            return;
        };
        let untidy = untidy.clone();
        let lanes: Vec<Lane> = untidy
            .iter()
            .map(|(lane, _)| *lane)
            .filter(|lane| !state.is_locked(*lane))
            .collect();
        state.scout = if lanes.is_empty() {
            Scout::Idle
        } else {
            Scout::Locked(self.held(state, lanes, None), untidy)
        };
    }

    /// Read, settle and commit are one step: no other step in between could make a difference.
    pub(crate) fn scout_tidy(&self, state: &mut State) {
        let Scout::Locked(held, untidy) = std::mem::replace(&mut state.scout, Scout::Idle) else {
            return;
        };
        let due: Vec<Row> = held
            .lanes
            .iter()
            .flat_map(|lane| self.due(&state.rows, *lane))
            .collect();
        let limits = Limits {
            fresh: held.lanes.len(),
            batch_size: usize::MAX,
            ..limits(0)
        };
        let read = self.read(&state.rows, &due, &held, limits);
        let candidates = read.iter().map(|c| self.candidate(c)).collect();
        let claim = self.claim_of(&held, candidates, limits);
        let last: HashMap<_, _> = untidy
            .iter()
            .map(|(lane, last)| ((*lane).into(), last.map(i64::from)))
            .collect();
        let written = Settlement {
            marks: settlement::tidied(&claim, &last),
            ..Settlement::default()
        };
        self.write(state, &written);
    }
}
