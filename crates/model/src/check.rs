//! Runs the checker, and says what it found.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use stateright::{Checker, Model};

use crate::{Action, Invariant, Machine, State};

#[derive(Debug)]
pub struct Checked {
    pub states: usize,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    pub time: Duration,
    /// Empty: nothing is broken.
    pub violations: Vec<Violation>,
}

/// The shortest way into a state that breaks an invariant.
#[derive(Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub steps: Vec<Action>,
    pub end: State,
}

/// Every state that can be reached, against every invariant.
pub fn check(machine: &Machine) -> Checked {
    let begun = Instant::now();
    let checker = machine.clone().checker().spawn_bfs().join();
    let mut violations: Vec<Violation> = Invariant::ALL
        .into_iter()
        .filter_map(|invariant| {
            let path = checker.discovery(invariant.name())?;
            let end = path.last_state().clone();
            Some(Violation {
                invariant,
                steps: path.into_actions(),
                end,
            })
        })
        .collect();
    if violations.is_empty() {
        violations.extend(endless(machine));
    }
    Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: begun.elapsed(),
        violations,
    }
}

/// Faults are counted down, so a run without an end would have to come through one state twice; there must be none.
fn endless(machine: &Machine) -> Option<Violation> {
    let hasher = RandomState::new();
    // Whether the walk still stands on it. Two hashes of 64 bits that are equal are taken for one state, as in stateright.
    let mut open: HashMap<u64, bool> = HashMap::new();
    let mut way: Vec<(u64, Vec<(Action, State)>)> = Vec::new();
    let mut steps: Vec<Action> = Vec::new();
    for first in machine.init_states() {
        let id = hasher.hash_one(&first);
        open.insert(id, true);
        way.push((id, machine.next_steps(&first)));
        while let Some((id, next)) = way.last_mut() {
            let Some((action, state)) = next.pop() else {
                open.insert(*id, false);
                way.pop();
                steps.pop();
                continue;
            };
            let id = hasher.hash_one(&state);
            match open.get(&id) {
                Some(false) => {}
                Some(true) => {
                    steps.push(action);
                    return Some(Violation {
                        invariant: Invariant::Progress,
                        steps,
                        end: state,
                    });
                }
                None => {
                    open.insert(id, true);
                    steps.push(action);
                    way.push((id, machine.next_steps(&state)));
                }
            }
        }
    }
    None
}
