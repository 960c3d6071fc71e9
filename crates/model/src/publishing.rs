//! From a claim to its outcomes: src/relay/publishing.rs.

use crate::{
    Machine, Safeguard,
    real::{self, Answer, Ordering, Outcome, POLICY, Plan, decided, outcome},
    state::{Memory, Work, small},
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

    /// The next wave, or the end of the claim.
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

    /// Asks the real plan, from its beginning, for the first wave that is not decided. With `ends` it is not asked for
    /// a further one.
    fn replay(&self, work: &Work, ends: bool) -> (Vec<u8>, Vec<Outcome>) {
        let candidates = self.candidates(work);
        let mut outcomes = vec![Outcome::Untouched; candidates.len()];
        let ordering = if self.has(Safeguard::StrictWaves) {
            Ordering::Strict
        } else {
            Ordering::Pipelined
        };
        let mut plan = Plan::new(&candidates, &mut outcomes, ordering);
        for (candidate, outcome) in work.read.iter().zip(&mut outcomes) {
            if candidate.refused && *outcome != Outcome::Behind {
                *outcome = candidate.decided.map_or(Outcome::Untouched, real::outcome);
            }
        }
        loop {
            let all = work.read.iter().filter(|c| c.decided.is_some()).count();
            let known = |i: &usize| work.read[*i].decided.map(real::outcome);
            let before = outcomes.clone();
            let wave = plan.next_wave(&candidates, &mut outcomes);
            if wave.is_empty() {
                return (Vec::new(), outcomes);
            }
            if !wave.iter().all(|i| work.read[*i].decided.is_some()) {
                if ends && all > 0 {
                    return (Vec::new(), before);
                }
                let wave = wave.into_iter().map(|i| small(i as i64)).collect();
                return (wave, outcomes);
            }
            for i in &wave {
                outcomes[*i] = known(i).unwrap_or(Outcome::Untouched);
            }
        }
    }

    pub(crate) fn candidates(&self, work: &Work) -> Vec<real::Candidate> {
        work.read.iter().map(|c| self.candidate(c)).collect()
    }
}

fn finish(work: &mut Work, outcomes: Vec<Outcome>) {
    for (candidate, outcome) in work.read.iter_mut().zip(&outcomes) {
        candidate.decided = Some(decided(outcome));
    }
    work.over = true;
}
