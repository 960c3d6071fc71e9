//! Marks that cannot be written: the real caution.rs of outbox-core, and src/outbox/rehearsal.rs.

use crate::{
    Action, Machine, Safeguard,
    real::{
        Answer, Caution, Ordering, Outcome, POLICY, Plan, Position, decided, id, limits, outcome,
    },
    state::{Decided, Forbidden, Held, Hold, Memory, Row, State, Work, small},
};

impl Machine {
    pub(crate) fn caution_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.forbidden.is_some() {
            actions.push(Action::Permit);
        } else if state.left.bans > 0
            && let Some(ban) = self.scenario.ban
        {
            actions.push(Action::Forbid(ban));
        }
    }

    pub(crate) fn forbid(&self, state: &mut State, ban: Forbidden) {
        state.left.bans -= 1;
        state.forbidden = Some(ban);
    }

    /// Messages that a claim may read.
    pub(crate) fn allowed(&self, memory: &Memory) -> usize {
        let batch = self.scenario.batch;
        match memory.allowed {
            Some(allowed) if self.has(Safeguard::CautionBeginsWithOne) => batch.min(allowed.into()),
            Some(_) | None => batch,
        }
    }

    fn suspects(&self, memory: &Memory, work: &Work) -> Vec<usize> {
        if !self.has(Safeguard::Rehearsal) {
            return Vec::new();
        }
        let plan = Plan::new(self.messages_of(work), Ordering::Strict);
        let items = &plan.claim().items;
        let cautious = memory.allowed.is_some();
        let kept = self.has(Safeguard::UnmarkableKept);
        let caution = brought(memory);
        let known = |i: usize| {
            self.has(Safeguard::SuspectsKept) && caution.suspects(position(work.read[i].row))
        };
        (0..work.read.len())
            .filter(|i| cautious || kept && work.read[*i].unmarkable || known(*i))
            .filter(|i| *items[*i].outcome() != Outcome::Behind)
            .collect()
    }

    /// Faults are limited: when none is left, a claim whose rehearsal would fail waits for the end of the ban.
    pub(crate) fn may_rehearse(&self, state: &State, n: usize, held: &Held, due: &[Row]) -> bool {
        if state.forbidden.is_none() || state.left.refused_marks > 0 {
            return true;
        }
        let memory = state.relays[n].memory;
        let read = self.read(&state.rows, due, held, limits(self.allowed(&memory)));
        let work = self.work(held.clone(), small(self.allowed(&memory) as i64), read);
        self.suspects(&memory, &work)
            .iter()
            .all(|i| !refuses(state.forbidden, work.read[*i].row))
    }

    pub(crate) fn may_settle(&self, state: &State, work: &Work) -> bool {
        let fails = || work.sent().any(|row| refuses_commit(state.forbidden, row));
        work.hold == Hold::Fenced || state.left.refused_marks > 0 || !fails()
    }

    /// In the claim's transaction, before the first wave.
    pub(crate) fn rehearse(&self, state: &mut State, n: usize, work: &mut Work) {
        let suspects = self.suspects(&state.relays[n].memory, work);
        let mut any = false;
        for i in suspects {
            let candidate = &mut work.read[i];
            if !refuses(state.forbidden, candidate.row) {
                continue;
            }
            let answer = Answer::Unmarkable {
                text: String::new(),
            };
            let attempts = candidate.attempts.into();
            let outcome = outcome::decide(&answer, attempts, &POLICY, &mut rand::rng());
            candidate.decided = Some(decided(&outcome));
            candidate.refused = true;
            any = true;
        }
        if any {
            state.left.refused_marks -= 1;
            self.be_cautious(&mut state.relays[n].memory, []);
        }
    }

    /// Returns true if the settle fails; everything is then rolled back.
    pub(crate) fn settle_fails(&self, state: &mut State, n: usize, work: &Work) -> bool {
        let refused = work.sent().any(|row| refuses_commit(state.forbidden, row));
        if work.hold == Hold::Fenced {
            if work.sent().next().is_some() {
                self.be_cautious(&mut state.relays[n].memory, work.sent());
            }
            return true;
        }
        if refused {
            state.left.refused_marks -= 1;
            self.be_cautious(&mut state.relays[n].memory, work.sent());
        }
        refused
    }

    fn be_cautious(&self, memory: &mut Memory, published: impl IntoIterator<Item = Row>) {
        if self.has(Safeguard::CautionKept) {
            let mut caution = brought(memory);
            caution.failed(published.into_iter().map(position));
            remember(memory, &caution);
        }
    }

    /// A settle was committed with this number of marked messages.
    pub(crate) fn marked(&self, memory: &mut Memory, work: &Work, messages: usize) {
        let mut caution = brought(memory);
        if messages > 0 {
            caution.marked(messages, self.scenario.batch);
        }
        let decided = work.read.iter().filter(|c| {
            c.decided
                .is_some_and(|decided| decided != Decided::Untouched)
        });
        caution.settled(decided.map(|c| position(c.row)));
        remember(memory, &caution);
    }
}

fn refuses(forbidden: Option<Forbidden>, row: Row) -> bool {
    match forbidden {
        Some(Forbidden::AtMark) => true,
        Some(Forbidden::Row(locked)) => locked == row,
        Some(Forbidden::AtCommit) | None => false,
    }
}

fn refuses_commit(forbidden: Option<Forbidden>, row: Row) -> bool {
    forbidden == Some(Forbidden::AtCommit) || refuses(forbidden, row)
}

fn brought(memory: &Memory) -> Caution {
    let mut caution = Caution::default();
    if memory.allowed.is_some() || memory.suspects != 0 {
        caution.failed(rows(memory.suspects).map(position));
        match memory.allowed {
            None => caution.marked(1, 1),
            Some(allowed) => {
                while let Some(limit) = caution.limit().filter(|limit| *limit < allowed.into()) {
                    caution.marked(limit, usize::MAX);
                }
            }
        }
    }
    caution
}

fn remember(memory: &mut Memory, caution: &Caution) {
    memory.allowed = caution.limit().map(|limit| small(limit as i64));
    memory.suspects = rows(u16::MAX)
        .filter(|row| caution.suspects(position(*row)))
        .fold(0, |bits, row| bits | 1 << row);
}

fn rows(bits: u16) -> impl Iterator<Item = Row> {
    (0..16).filter(move |row| bits & (1 << row) != 0)
}

/// Within a relay, an id alone identifies a row.
fn position(row: Row) -> Position {
    Position {
        lane: 0,
        id: id(row),
    }
}
