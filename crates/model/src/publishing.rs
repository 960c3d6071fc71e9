//! From a claim to its outcomes: src/relay/publishing.rs.

use crate::{
    Machine, Safeguard,
    real::{self, Answer, Item, Ordering, Outcome, POLICY, Plan, decided, id, outcome},
    state::{Candidate, Memory, Work, small},
};

impl Machine {
    pub(crate) fn decide(&self, memory: &mut Memory, work: &mut Work, answers: Vec<Answer>) {
        for (i, answer) in work.wave.iter().zip(&answers) {
            let candidate = &mut work.read[usize::from(*i)];
            let outcome =
                outcome::decide(answer, candidate.attempts.into(), &POLICY, &mut rand::rng());
            candidate.decided = Some(decided(&outcome));
        }
        self.watch_destination(memory, work, &answers);
        work.wave.clear();
        work.answered.clear();
    }

    /// Starts the next wave, or ends the claim.
    pub(crate) fn go_on(&self, memory: &mut Memory, work: &mut Work, ends: bool) {
        loop {
            let (wave, outcomes) = self.replay(work, ends);
            if wave.is_empty() {
                finish(work, outcomes);
                return;
            }
            work.wave = self.admitted(memory, work, wave);
            if !work.wave.is_empty() {
                return;
            }
        }
    }

    /// No further wave.
    pub(crate) fn end_claim(&self, work: &mut Work) {
        let (_, outcomes) = self.replay(work, true);
        finish(work, outcomes);
    }

    /// Runs the real plan from its beginning up to the first wave without outcomes. With `ends` the plan is not asked
    /// for a further wave.
    fn replay(&self, work: &Work, ends: bool) -> (Vec<u8>, Vec<Outcome>) {
        let ordering = if self.has(Safeguard::StrictWaves) {
            Ordering::Strict
        } else {
            Ordering::Pipelined
        };
        let mut plan = Plan::new(self.messages_of(work), ordering);
        for item in plan.publishable() {
            let candidate = read(work, item);
            if candidate.refused {
                item.record(known(candidate));
            }
        }
        let begun = work.read.iter().any(|c| c.decided.is_some());
        loop {
            let before = outcomes(&plan);
            let wave = plan.next_wave();
            if wave.is_empty() {
                return (Vec::new(), outcomes(&plan));
            }
            if !wave.iter().all(|item| read(work, item).decided.is_some()) {
                if ends && begun {
                    return (Vec::new(), before);
                }
                let wave = wave.iter().map(|item| place(work, item)).collect();
                return (wave, outcomes(&plan));
            }
            for item in wave {
                item.record(known(read(work, item)));
            }
        }
    }

    pub(crate) fn candidates(&self, work: &Work) -> Vec<real::Candidate> {
        work.read.iter().map(|c| self.candidate(c)).collect()
    }
}

/// Index of an item among the messages that were read.
fn place(work: &Work, item: &Item) -> u8 {
    let here = |c: &Candidate| id(c.row) == item.position().id;
    let place = work.read.iter().position(here);
    small(place.map_or(-1, |place| place as i64))
}

fn read<'w>(work: &'w Work, item: &Item) -> &'w Candidate {
    &work.read[usize::from(place(work, item))]
}

fn known(candidate: &Candidate) -> Outcome {
    candidate.decided.map_or(Outcome::Untouched, real::outcome)
}

fn outcomes(plan: &Plan) -> Vec<Outcome> {
    let items = plan.claim().items.iter();
    items.map(|item| item.outcome().clone()).collect()
}

fn finish(work: &mut Work, outcomes: Vec<Outcome>) {
    for (candidate, outcome) in work.read.iter_mut().zip(&outcomes) {
        candidate.decided = Some(decided(outcome));
    }
    work.over = true;
}
