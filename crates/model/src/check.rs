//! Runs the checker, and reports its findings.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{Action, Invariant, Machine, Sighting, State};

#[derive(Debug)]
pub struct Checked {
    pub states: usize,
    /// Length of the longest among the shortest paths to a state.
    pub depth: usize,
    pub time: Duration,
    pub violation: Option<Violation>,
    pub seen: Vec<Sighting>,
}

/// A shortest path to a state that violates an invariant.
#[derive(Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub steps: Vec<Action>,
    pub end: State,
}

/// Checks every reachable state against every invariant, up to the first violation.
pub fn check(machine: &Machine) -> Checked {
    let begun = Instant::now();
    let checker = machine.clone().checker();
    let checker = checker
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    let broken = Invariant::ALL.iter().any(|i| found.contains_key(i.name()));
    let violation = if broken {
        // The checker reports the last violation that it found, not the first.
        shortest(machine)
    } else {
        endless(machine, checker.unique_state_count())
    };
    Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth() - 1,
        time: begun.elapsed(),
        violation,
        seen: Sighting::ALL
            .iter()
            .copied()
            .filter(|sighting| found.contains_key(sighting.name()))
            .collect(),
    }
}

// States are identified by 64-bit hashes, as in stateright.

fn shortest(machine: &Machine) -> Option<Violation> {
    let hasher = RandomState::new();
    let mut came_by: HashMap<u64, Option<(u64, Action)>> = HashMap::new();
    let mut next: VecDeque<(u64, State)> = VecDeque::new();
    for state in machine.init_states() {
        let id = hasher.hash_one(&state);
        came_by.insert(id, None);
        next.push_back((id, state));
    }
    while let Some((id, state)) = next.pop_front() {
        let broken = Invariant::ALL
            .into_iter()
            .find(|invariant| !invariant.holds()(machine, &state));
        if let Some(invariant) = broken {
            let mut steps = Vec::new();
            let mut at = id;
            while let Some(Some((before, action))) = came_by.get(&at) {
                steps.push(action.clone());
                at = *before;
            }
            steps.reverse();
            return Some(Violation {
                invariant,
                steps,
                end: state,
            });
        }
        for (action, then) in machine.next_steps(&state) {
            let then_id = hasher.hash_one(&then);
            came_by.entry(then_id).or_insert_with(|| {
                next.push_back((then_id, then));
                Some((id, action))
            });
        }
    }
    None
}

/// Looks for an endless run. Faults are limited, so an endless run would visit a state twice. This walk visits all
/// states by itself, and must find as many as the checker.
fn endless(machine: &Machine, states: usize) -> Option<Violation> {
    let hasher = RandomState::new();
    // Whether the state is on the current path.
    let mut open: HashMap<u64, bool> = HashMap::with_capacity(states);
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
    assert_eq!(open.len(), states, "two walks through one set of states");
    None
}
