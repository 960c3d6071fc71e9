//! A circuit: the real crates/core/src/circuit.rs, src/outbox/held.rs, and its part of src/relay/circuits.rs.

use crate::{
    Action, Machine, Safeguard,
    breaker::{self, Arrivals, Op, Said},
    real::{self, Answer, Outcome, POLICY, decided},
    state::{
        Candidate, Circuit, Decided, Due, Memory, Permits, Reply, Row, State, Waiting, Work, small,
    },
};

impl Machine {
    pub(crate) fn circuit_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.scenario.circuits {
            return;
        }
        if state.outage {
            actions.push(Action::Recover);
        } else if state.left.outages > 0 {
            actions.push(Action::Fail);
        }
        if !state.outage || state.left.rounds > 0 {
            let mut then = state.clone();
            self.round(&mut then);
            if then.rows != state.rows || then.relays != state.relays {
                actions.push(Action::Round);
            }
        }
        for (n, relay) in state.relays.iter().enumerate() {
            match relay.memory.circuit {
                Circuit::Works | Circuit::Failing(_) => {
                    if self.may_find(relay.memory.circuit) && held(state).next().is_some() {
                        actions.push(Action::FindHeld(n));
                    }
                }
                Circuit::Open(open) if open.give_up => actions.push(Action::GiveUp(n)),
                Circuit::Open(open) if open.permits == Permits::Both => {
                    actions.push(Action::Probe(n));
                }
                Circuit::Open(_) => {}
                Circuit::Draining { .. } => {
                    if self.has(Safeguard::SuccessReleases) {
                        actions.push(Action::ReleaseHeld(n));
                    }
                }
            }
        }
    }

    fn may_find(&self, circuit: Circuit) -> bool {
        self.has(Safeguard::FindHeld)
            && (circuit == Circuit::Works || self.has(Safeguard::FoundWhateverFailed))
    }

    pub(crate) fn fail(&self, state: &mut State) {
        state.left.outages -= 1;
        state.outage = true;
    }

    /// A back-off ends: every message with a retry is due, and each open circuit may probe.
    pub(crate) fn round(&self, state: &mut State) {
        if state.outage {
            state.left.rounds = state.left.rounds.saturating_sub(1);
        }
        for waiting in state.rows.iter_mut().filter_map(|m| m.waiting.as_mut()) {
            if waiting.due == Due::Later {
                waiting.due = Due::Now;
            }
        }
        for relay in &mut state.relays {
            if let Circuit::Open(open) = &mut relay.memory.circuit {
                open.permits = Permits::Both;
            }
        }
    }

    /// sql/held_destinations.sql: the failed probes of the first held message.
    pub(crate) fn find_held(&self, state: &mut State, n: usize) {
        let first = held(state).next().map(|(_, failures)| failures);
        if let Some(failures) = first {
            self.ask(&mut state.relays[n].memory, Op::Found(failures));
        }
    }

    /// sql/held_probe.sql: the next held message, or the first.
    pub(crate) fn probe(&self, state: &mut State, n: usize) {
        let Circuit::Open(open) = state.relays[n].memory.circuit else {
            return;
        };
        let next = held(state).find(|(row, _)| open.chosen.is_none_or(|c| *row > c));
        let chosen = next.or_else(|| held(state).next()).map(|(row, _)| row);
        if let Some(waiting) = chosen.and_then(|row| waiting(state, row)) {
            (waiting.due, waiting.probe) = (Due::Now, true);
        }
        let overdue = open.none_held;
        self.ask(&mut state.relays[n].memory, Op::Probe { chosen, overdue });
    }

    /// sql/held_give_up.sql.
    pub(crate) fn give_up(&self, state: &mut State, n: usize) {
        let Circuit::Open(open) = state.relays[n].memory.circuit else {
            return;
        };
        let enough = small(POLICY.max_attempts.into());
        for waiting in state.rows.iter_mut().filter_map(|m| m.waiting.as_mut()) {
            if let Due::Held { failures } = waiting.due
                && waiting.attempts + open.failures.saturating_sub(failures) >= enough
            {
                (waiting.due, waiting.probe) = (Due::Now, true);
                waiting.attempts = waiting.attempts.max(enough - 1);
            }
        }
        self.ask(&mut state.relays[n].memory, Op::GiveUp);
    }

    /// sql/held_release.sql: the first held messages become due.
    pub(crate) fn release_held(&self, state: &mut State, n: usize) {
        let Circuit::Draining { window } = state.relays[n].memory.circuit else {
            return;
        };
        let rows: Vec<Row> = held(state)
            .map(|(row, _)| row)
            .take(window.into())
            .collect();
        for row in &rows {
            if let Some(waiting) = waiting(state, *row) {
                waiting.due = Due::Now;
            }
        }
        let released = small(rows.len() as i64);
        self.ask(&mut state.relays[n].memory, Op::Released(window, released));
    }

    /// The messages of a wave that are published now.
    pub(crate) fn admitted(&self, memory: &mut Memory, work: &mut Work, wave: Vec<u8>) -> Vec<u8> {
        if !self.scenario.circuits || !self.has(Safeguard::Circuit) {
            return wave;
        }
        let mut outgoing = Vec::with_capacity(wave.len());
        for i in wave {
            let candidate = &mut work.read[usize::from(i)];
            match self.ask(memory, Op::Admit(arrival(candidate))) {
                Said::Held(failures) => {
                    let outcome = Outcome::Held {
                        held: held_with(failures),
                        attempts: candidate.attempts.into(),
                    };
                    candidate.decided = Some(decided(&outcome));
                }
                Said::Nothing => outgoing.push(i),
            }
        }
        outgoing
    }

    /// Reports a wave to the circuit. If all its messages fail, they are held.
    pub(crate) fn watch_destination(&self, memory: &mut Memory, work: &mut Work, to: &[Answer]) {
        if !self.scenario.circuits || !self.has(Safeguard::Circuit) {
            return;
        }
        let answered = || {
            work.wave
                .iter()
                .map(|i| &work.read[usize::from(*i)])
                .zip(to)
        };
        let fails = |a: &Answer| matches!(a, Answer::Nacked | Answer::Unroutable { .. });
        let failed: Vec<Row> = answered()
            .filter(|(_, a)| fails(a))
            .map(|(c, _)| c.row)
            .collect();
        let had_been_held = answered().any(|(c, a)| *a == Answer::Delivered && c.was_held);
        let is_news = !failed.is_empty() || answered().any(|(c, _)| c.was_held);
        if memory.circuit == Circuit::Works && !is_news {
            return;
        }
        let op = Op::Report {
            delivered: answered().any(|(_, a)| *a == Answer::Delivered),
            had_been_held,
            failed: failed.first().map(|row| (small(failed.len() as i64), *row)),
            nacked: self.scenario.refusal == Reply::Nack,
        };
        let Said::Held(failures) = self.ask(memory, op) else {
            return;
        };
        for (i, answer) in work.wave.iter().zip(to) {
            let candidate = &mut work.read[usize::from(*i)];
            if fails(answer)
                && let Some(Decided::Retry { attempts, .. }) = candidate.decided
            {
                candidate.decided = Some(decided(&Outcome::Held {
                    held: held_with(failures),
                    attempts: attempts.into(),
                }));
            }
        }
    }

    fn ask(&self, memory: &mut Memory, op: Op) -> Said {
        let (mut then, mut said) = breaker::ask(memory.circuit, op);
        if self.scenario.refusal == Reply::Nack {
            // Nacked messages never die, so their failures are not counted.
            if let Circuit::Open(open) = &mut then {
                open.failures = 0;
            }
            if let Said::Held(failures) = &mut said {
                *failures = 0;
            }
        }
        memory.circuit = then;
        said
    }
}

fn arrival(candidate: &Candidate) -> Arrivals {
    let last = u32::from(candidate.attempts) + 1 >= POLICY.max_attempts;
    match candidate.probe {
        true if last => Arrivals::Last,
        true => Arrivals::Probe,
        false if candidate.filed => Arrivals::Again,
        false => Arrivals::New,
    }
}

fn held_with(failures: u8) -> real::circuit::Held {
    real::circuit::Held {
        destination: real::DESTINATION,
        failures: failures.into(),
        why: real::why(real::Reason::Unroutable),
    }
}

fn held(state: &State) -> impl Iterator<Item = (Row, u8)> {
    (0..)
        .zip(&state.rows)
        .filter_map(|(row, m)| match m.waiting?.due {
            Due::Held { failures } => Some((row, failures)),
            Due::Now | Due::Later | Due::Behind => None,
        })
}

fn waiting(state: &mut State, row: Row) -> Option<&mut Waiting> {
    state.rows[usize::from(row)].waiting.as_mut()
}
