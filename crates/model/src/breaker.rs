//! Queries the real circuits. Their state is private and contains clocks. So for each query a new circuit is brought,
//! only by calls, into the state that the model remembers. Its next state is then found by further calls.

use std::{cell::RefCell, collections::HashMap, convert::Infallible, time::Duration};

use rand::TryRng;

use crate::{
    real::{
        DESTINATION, Instant, POLICY, Position, Reason,
        circuit::{Admission, Arrival, Circuits, Destination, Held, Tally, Target, Task},
        id, why,
    },
    state::{Circuit, Open, Permits, Row, small},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Admit(Arrivals),
    Report {
        delivered: bool,
        had_been_held: bool,
        /// Number of failures, and the first failed message.
        failed: Option<(u8, Row)>,
        nacked: bool,
    },
    Found(u8),
    /// The back-off has ended. `chosen`: the held message that was found. `overdue`: the earlier look without a held
    /// message, during an unanswered probe, was long ago.
    Probe {
        chosen: Option<Row>,
        overdue: bool,
    },
    GiveUp,
    /// Number requested, number released.
    Released(u8, u8),
}

/// `Arrival`, as a key of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrivals {
    New,
    Again,
    Probe,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Nothing,
    /// Number of failed probes.
    Held(u8),
}

thread_local! {
    static ASKED: RefCell<HashMap<(Circuit, Op), (Circuit, Said)>> = RefCell::default();
}

/// No exchange of the model has enough destinations for a circuit.
const TARGET: Target = Target {
    destination: DESTINATION,
    exchange: Destination(-1),
    untried: Destination(-2),
};

/// Returns the circuit's next state and its answer.
pub fn ask(circuit: Circuit, op: Op) -> (Circuit, Said) {
    let known = ASKED.with_borrow(|asked| asked.get(&(circuit, op)).copied());
    known.unwrap_or_else(|| {
        let times = Times::new();
        let said = act(&mut bring(circuit, &times), op, &times);
        let then = find_out(
            || {
                let mut circuits = bring(circuit, &times);
                act(&mut circuits, op, &times);
                circuits
            },
            &times,
        );
        ASKED.with_borrow_mut(|asked| asked.insert((circuit, op), (then, said)));
        (then, said)
    })
}

/// Clocks that were set at `start` have all elapsed at `now` and at `later`, and none at `before`.
struct Times {
    before: Instant,
    start: Instant,
    now: Instant,
    later: Instant,
}

impl Times {
    fn new() -> Self {
        let before = Instant::now();
        let start = before + Duration::from_secs(100);
        Self {
            before,
            start,
            now: start + Duration::from_secs(10),
            later: start + Duration::from_secs(200),
        }
    }
}

fn act(circuits: &mut Circuits, op: Op, times: &Times) -> Said {
    let (now, rng) = (times.now, &mut Middle);
    match op {
        Op::Admit(arrival) => said(admit(circuits, arrival, now)),
        Op::Report {
            delivered,
            had_been_held,
            failed,
            nacked,
        } => {
            let reason = if nacked {
                Reason::Nacked
            } else {
                Reason::Unroutable
            };
            let tally = Tally {
                delivered: delivered.into(),
                failed: failed.map(|(n, first)| (n.into(), position(first), why(reason))),
                had_been_held,
            };
            said(circuits.report(DESTINATION, &tally, now, rng))
        }
        Op::Found(failures) => {
            circuits.found(held(failures), now, rng);
            Said::Nothing
        }
        Op::Probe { chosen, overdue } => {
            let now = if overdue { times.later } else { now };
            circuits.tasks(now, rng);
            circuits.probed(DESTINATION, chosen.map(id), now);
            Said::Nothing
        }
        Op::GiveUp => {
            circuits.tasks(times.before, rng);
            Said::Nothing
        }
        Op::Released(asked, released) => {
            circuits.released(DESTINATION, asked.into(), released.into());
            Said::Nothing
        }
    }
}

fn said(held: Option<Held>) -> Said {
    held.map_or(Said::Nothing, |held| {
        Said::Held(small(held.failures.into()))
    })
}

fn admit(circuits: &mut Circuits, arrival: Arrivals, now: Instant) -> Option<Held> {
    let arrival = match arrival {
        Arrivals::New => Arrival::New,
        Arrivals::Again => Arrival::Again(Some(DESTINATION)),
        Arrivals::Probe => Arrival::Probe(Some(DESTINATION)),
        Arrivals::Last => Arrival::Last,
    };
    match circuits.admit(TARGET, arrival, now, &mut Middle) {
        Admission::Publish => None,
        Admission::Hold(held) => Some(held),
    }
}

fn fail(circuits: &mut Circuits, row: Row, reason: Reason, now: Instant) -> Option<Held> {
    let tally = Tally {
        failed: Some((1, position(row), why(reason))),
        ..Tally::default()
    };
    circuits.report(DESTINATION, &tally, now, &mut Middle)
}

fn position(row: Row) -> Position {
    Position {
        lane: 0,
        id: id(row),
    }
}

fn held(failures: u8) -> Held {
    Held {
        destination: DESTINATION,
        failures: failures.into(),
        why: why(Reason::Unroutable),
    }
}

fn bring(circuit: Circuit, times: &Times) -> Circuits {
    let mut circuits = Circuits::new(POLICY);
    match circuit {
        Circuit::Works => {}
        Circuit::Failing(row) => drop(fail(&mut circuits, row, Reason::Unroutable, times.start)),
        Circuit::Open(open) => bring_open(&mut circuits, open, times),
        Circuit::Draining { window } => {
            let tally = Tally {
                delivered: 1,
                had_been_held: true,
                ..Tally::default()
            };
            circuits.report(DESTINATION, &tally, times.start, &mut Middle);
            let half = usize::from(window) / 2;
            circuits.released(DESTINATION, half, half);
        }
    }
    circuits
}

fn bring_open(circuits: &mut Circuits, open: Open, times: &Times) {
    let Times { start, now, .. } = *times;
    let (found_at, probed_at) = match open.permits {
        Permits::Both => (start, start),
        Permits::New => (start, now),
        Permits::Neither => (now, now),
    };
    // A clock between the two times was set by a probe.
    let answered = open.give_up || open.permits == Permits::New && !open.probing;
    let failures = open.failures.saturating_sub(answered.into());
    circuits.found(held(failures), found_at, &mut Middle);
    if answered {
        admit(circuits, Arrivals::Probe, probed_at);
        let reason = if open.give_up {
            Reason::Unroutable
        } else {
            Reason::Nacked
        };
        fail(circuits, 0, reason, probed_at);
    }
    if let Some(row) = open.chosen {
        circuits.probed(DESTINATION, Some(id(row)), probed_at);
    }
    if open.none_held {
        admit(circuits, Arrivals::Probe, start);
        let asked_at = match open.permits {
            Permits::Both => start + Duration::from_secs(2),
            Permits::New | Permits::Neither => now,
        };
        circuits.tasks(asked_at, &mut Middle);
        circuits.probed(DESTINATION, None, asked_at);
    } else if open.probing {
        admit(circuits, Arrivals::Probe, probed_at);
    }
}

fn find_out(again: impl Fn() -> Circuits, times: &Times) -> Circuit {
    let Times {
        before, now, later, ..
    } = *times;
    let mut circuits = again();
    if let [Task::Release(_, window)] = circuits.releases(1)[..] {
        let window = small(window as i64);
        return Circuit::Draining { window };
    }
    if circuits.is_empty() {
        return Circuit::Works;
    }
    if !circuits.is_open(DESTINATION) {
        let same = |row: &Row| {
            let mut circuits = again();
            fail(&mut circuits, *row, Reason::Nacked, now).is_none()
        };
        let row = (0..Row::MAX).find(same);
        return Circuit::Failing(row.expect("one message failed"));
    }
    let holds = |arrival, at| admit(&mut again(), arrival, at);
    let failures = holds(Arrivals::Again, before).map_or(0, |held| held.failures);
    let permits = if holds(Arrivals::Again, now).is_none() {
        Permits::Both
    } else if holds(Arrivals::New, now).is_none() {
        Permits::New
    } else {
        Permits::Neither
    };
    let after_failure = fail(&mut again(), 0, Reason::Nacked, now);
    let tasks = |at| again().tasks(at, &mut Middle);
    let chosen = tasks(later).into_iter().find_map(|task| match task {
        Task::Probe(_, after) => Some(after),
        Task::GiveUp(..) | Task::Release(..) | Task::ProbeNewest(_) | Task::ReleaseNewest(..) => {
            None
        }
    });
    let mut circuits = again();
    circuits.probed(DESTINATION, None, now);
    Circuit::Open(Open {
        failures: small(failures.into()),
        probing: after_failure.is_some_and(|held| held.failures > failures),
        permits,
        chosen: chosen
            .filter(|after| *after > 0)
            .map(|after| small(after - 1)),
        none_held: !circuits.is_empty(),
        give_up: matches!(tasks(before)[..], [Task::GiveUp(..)]),
    })
}

/// Every draw is the middle of its range, so a back-off has a constant length and is never zero.
struct Middle;

impl TryRng for Middle {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::MAX / 2)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::MAX / 2)
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        to.fill(0x7f);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bring` reaches each state that the model remembers, and `find_out` recognises it.
    #[test]
    fn every_state_can_be_reached_and_recognised() {
        let times = Times::new();
        let mut all = vec![Circuit::Works, Circuit::Failing(0), Circuit::Failing(3)];
        all.extend([1, 2, 4, 8].map(|window| Circuit::Draining { window }));
        for permits in [Permits::Neither, Permits::New, Permits::Both] {
            for bits in 0..8 {
                let (probing, none_held, give_up) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                // `none_held` is possible only during an unanswered probe; the same look also takes the last attempts.
                if none_held && (!probing || give_up) {
                    continue;
                }
                for chosen in [None, Some(0), Some(2)] {
                    all.push(Circuit::Open(Open {
                        failures: 2,
                        probing,
                        permits,
                        chosen,
                        none_held,
                        give_up,
                    }));
                }
            }
        }
        for circuit in all {
            assert_eq!(find_out(|| bring(circuit, &times), &times), circuit);
        }
    }
}
