//! Which messages of a claim go out together. No I/O.
//!
//! Messages of one key form a chain. In strict order a wave holds at most one message of a chain, and the next one
//! goes only when the one before it was delivered. One that dies ends its chain for this claim: until the claim
//! commits a crash brings it back to life, and what followed it would have overtaken it. One that was refused before
//! it was published is refused again whatever happens, so nobody waits for it. In pipelined order all go at once, in
//! position order.

use std::collections::BTreeMap;

use crate::{
    claim::{Claim, Item},
    message::Lane,
    outcome::Outcome,
};

/// `relay.ordering`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    Strict,
    Pipelined,
}

/// Owns the claim while it is published, and lends its items, wave by wave.
#[derive(Debug)]
pub struct Plan {
    claim: Claim,
    chains: Vec<Chain>,
    ordering: Ordering,
    /// Indexes of the next wave's items. Kept for its memory: a hot key has a wave for each of its messages.
    wave: Vec<usize>,
}

#[derive(Debug)]
struct Chain {
    /// Indexes of items, in position order.
    members: Vec<usize>,
    next: usize,
}

impl Plan {
    /// Also decides who stands behind a message that is not in this claim: their outcome becomes `Behind`.
    pub fn new(mut claim: Claim, ordering: Ordering) -> Self {
        let items = &mut claim.items;
        let mut keyed: BTreeMap<(Lane, i64, bool), Vec<usize>> = BTreeMap::new();
        let mut chains = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let candidate = &item.candidate;
            if candidate.scheduled {
                continue;
            }
            match candidate.key_hash {
                // A replay never holds back, nor waits for, what is new.
                Some(hash) => keyed
                    .entry((
                        candidate.message.position.lane,
                        hash,
                        candidate.message.replay,
                    ))
                    .or_default()
                    .push(i),
                None => chains.push(vec![i]),
            }
        }
        for mut members in keyed.into_values() {
            members.sort_unstable_by_key(|i| items[*i].position().id);
            // Behind one that is not in this claim: it, and whatever follows it.
            let waits_elsewhere = |(n, i): (usize, &usize)| {
                let id = |i: &usize| items[*i].position().id;
                let after = items[*i].candidate.after;
                after.is_some_and(|after| members[..n].binary_search_by_key(&after, id).is_err())
            };
            let end = members.iter().enumerate().position(waits_elsewhere);
            let end = end.unwrap_or(members.len());
            for i in members.drain(end..) {
                items[i].record(Outcome::Behind);
            }
            if !members.is_empty() {
                chains.push(members);
            }
        }
        let chains = chains
            .into_iter()
            .map(|members| Chain { members, next: 0 })
            .collect();
        Self {
            claim,
            chains,
            ordering,
            wave: Vec::new(),
        }
    }

    /// Messages that this claim may publish: those that are not scheduled, and not decided.
    pub fn publishable(&mut self) -> impl Iterator<Item = &mut Item> {
        let items = self.claim.items.iter_mut();
        items.filter(|item| {
            !item.candidate.scheduled && matches!(item.outcome(), Outcome::Untouched)
        })
    }

    /// The next messages to publish, in position order; empty when there is nothing left. A chain ends at a message
    /// that waits, and the rest of it stands behind; or at one that died, and the rest of it stays pending.
    pub fn next_wave(&mut self) -> Vec<&mut Item> {
        let items = &mut self.claim.items;
        let wave = &mut self.wave;
        wave.clear();
        for chain in &mut self.chains {
            match self.ordering {
                Ordering::Strict => {
                    let previous = chain.next.checked_sub(1).map(|n| chain.members[n]);
                    if let Some(previous) = previous
                        && !matches!(items[previous].outcome(), Outcome::Sent)
                    {
                        stand_behind(chain, items);
                        continue;
                    }
                    // Refused before publishing: nobody waits for those.
                    while chain
                        .members
                        .get(chain.next)
                        .is_some_and(|i| settled(items[*i].outcome()))
                    {
                        chain.next += 1;
                    }
                    let Some(i) = chain.members.get(chain.next).copied() else {
                        continue;
                    };
                    chain.next += 1;
                    if matches!(items[i].outcome(), Outcome::Untouched) {
                        wave.push(i);
                    } else {
                        stand_behind(chain, items);
                    }
                }
                Ordering::Pipelined => {
                    while let Some(i) = chain.members.get(chain.next).copied() {
                        chain.next += 1;
                        match items[i].outcome() {
                            Outcome::Untouched => wave.push(i),
                            Outcome::Sent | Outcome::Dead { .. } => {}
                            // It was decided before the wave: it waits, and what follows it waits behind it.
                            Outcome::Retry { .. } | Outcome::Held { .. } | Outcome::Behind => {
                                stand_behind(chain, items);
                            }
                        }
                    }
                }
            }
        }
        wave.sort_unstable();
        let mut lent = lend(items, wave);
        lent.sort_unstable_by_key(|item| item.position());
        lent
    }

    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// After the last wave.
    pub fn into_claim(self) -> Claim {
        self.claim
    }
}

/// The items with these indexes, which ascend.
fn lend<'c>(items: &'c mut [Item], indexes: &[usize]) -> Vec<&'c mut Item> {
    let mut rest = items.iter_mut();
    let mut passed = 0;
    let mut lent = Vec::with_capacity(indexes.len());
    for i in indexes {
        lent.extend(rest.nth(i - passed));
        passed = i + 1;
    }
    lent
}

/// The rest of a chain, behind the message before it, which was not delivered.
fn stand_behind(chain: &mut Chain, items: &mut [Item]) {
    let Some(previous) = chain.next.checked_sub(1).map(|n| chain.members[n]) else {
        return;
    };
    for i in chain.members.drain(chain.next..) {
        // Nobody releases a replay: it keeps its own due time.
        let outcome = if items[i].candidate.message.replay {
            Outcome::Untouched
        } else {
            behind(items[previous].outcome())
        };
        items[i].record(outcome);
    }
}

fn settled(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Sent | Outcome::Dead { .. } => true,
        Outcome::Retry { .. } | Outcome::Held { .. } | Outcome::Behind | Outcome::Untouched => {
            false
        }
    }
}

/// Behind a message that waits is to wait; behind one that died, or that nobody answered for, is to stay pending.
fn behind(previous: &Outcome) -> Outcome {
    match previous {
        Outcome::Retry { .. } | Outcome::Held { .. } | Outcome::Behind => Outcome::Behind,
        Outcome::Sent | Outcome::Dead { .. } | Outcome::Untouched => Outcome::Untouched,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        claim::{Candidate, sample, sample_claim},
        reason::Reason,
    };

    fn candidate(id: i64, key: Option<i64>, after: Option<i64>) -> Candidate {
        Candidate {
            after,
            ..sample(id, key)
        }
    }

    fn plan(candidates: impl Into<Vec<Candidate>>, ordering: Ordering) -> Plan {
        Plan::new(sample_claim(candidates.into(), vec![]), ordering)
    }

    /// Positions of the next wave.
    fn next(plan: &mut Plan) -> Vec<i64> {
        let wave = plan.next_wave();
        wave.iter().map(|item| item.position().id).collect()
    }

    fn outcome(plan: &Plan, i: usize) -> &Outcome {
        plan.claim().items[i].outcome()
    }

    impl Plan {
        fn record(&mut self, i: usize, outcome: Outcome) {
            self.claim.items[i].record(outcome);
        }
    }

    fn retry() -> Outcome {
        Outcome::Retry {
            reason: Reason::Unroutable,
            attempts: 1,
            delay: std::time::Duration::ZERO,
            error: String::new(),
        }
    }

    fn dead() -> Outcome {
        Outcome::Dead {
            reason: Reason::Unroutable,
            attempts: 20,
            error: String::new(),
        }
    }

    #[test]
    fn the_next_message_of_a_key_goes_only_after_the_one_before_it() {
        let candidates = [
            candidate(1, Some(7), None),
            candidate(2, Some(7), None),
            candidate(3, Some(8), None),
        ];
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [1, 3]);
        plan.record(0, Outcome::Sent);
        plan.record(2, Outcome::Sent);
        assert_eq!(next(&mut plan), [2]);
        plan.record(1, Outcome::Sent);
        assert_eq!(next(&mut plan), [0; 0]);
        let claim = plan.into_claim();
        assert!(claim.items.iter().all(|i| *i.outcome() == Outcome::Sent));
    }

    #[test]
    fn what_follows_a_failed_message_of_its_key_stands_behind_it() {
        let candidates = [1, 2, 3].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.next_wave();
        plan.record(0, retry());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
        assert_eq!(outcome(&plan, 2), &Outcome::Behind);
    }

    #[test]
    fn what_follows_a_message_that_just_died_waits_for_the_commit_of_its_death() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [1]);
        plan.record(0, dead());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 1), &Outcome::Untouched);
    }

    #[test]
    fn nobody_waits_for_a_message_that_was_refused_before_it_was_published() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.record(0, dead());
        assert_eq!(next(&mut plan), [2]);
    }

    #[test]
    fn a_message_behind_one_that_is_not_here_is_filed_behind() {
        let candidates = [5, 6].map(|id| candidate(id, Some(7), Some(1)));
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 0), &Outcome::Behind);
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
    }

    #[test]
    fn a_message_behind_one_that_is_here_follows_it() {
        let candidates = [
            candidate(3, Some(7), Some(2)),
            candidate(1, Some(7), None),
            candidate(2, Some(7), Some(1)),
            candidate(5, Some(7), Some(4)),
        ];
        let mut plan = plan(candidates, Ordering::Pipelined);
        assert_eq!(next(&mut plan), [1, 2, 3]);
        assert_eq!(outcome(&plan, 3), &Outcome::Behind);
    }

    #[test]
    fn in_pipelined_order_all_go_at_once_in_the_order_of_their_positions() {
        let candidates = [
            candidate(2, Some(7), None),
            candidate(1, Some(8), None),
            candidate(3, Some(7), None),
            candidate(4, None, None),
        ];
        let mut plan = plan(candidates, Ordering::Pipelined);
        plan.record(2, dead());
        assert_eq!(next(&mut plan), [1, 2, 4]);
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 2), &dead());
    }

    #[test]
    fn in_pipelined_order_too_nothing_overtakes_what_waits_already() {
        let candidates = [1, 2, 3].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Pipelined);
        plan.record(1, retry());
        assert_eq!(next(&mut plan), [1]);
        assert_eq!(outcome(&plan, 1), &retry());
        assert_eq!(outcome(&plan, 2), &Outcome::Behind);
    }

    #[test]
    fn what_follows_a_message_that_waits_already_stands_behind_it() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.record(0, retry());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 0), &retry());
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
    }

    #[test]
    fn a_replay_waits_for_nobody_and_a_scheduled_message_is_not_published() {
        let replay = |id| {
            let mut replay = candidate(id, Some(7), None);
            replay.message.replay = true;
            replay
        };
        let mut scheduled = candidate(5, Some(7), None);
        scheduled.scheduled = true;
        let candidates = [replay(1), replay(2), candidate(3, Some(7), None), scheduled];
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [1, 3]);
        plan.record(0, retry());
        plan.record(2, Outcome::Sent);
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(
            outcome(&plan, 1),
            &Outcome::Untouched,
            "it keeps its own due time"
        );
    }

    #[test]
    fn what_is_scheduled_behind_or_decided_is_not_publishable() {
        let mut scheduled = candidate(1, None, None);
        scheduled.scheduled = true;
        let candidates = [
            scheduled,
            candidate(3, Some(7), Some(2)),
            candidate(4, None, None),
            candidate(5, None, None),
        ];
        let mut plan = plan(candidates, Ordering::Strict);
        plan.record(2, dead());
        let publishable = plan.publishable().map(|item| item.position().id);
        assert_eq!(publishable.collect::<Vec<_>>(), [5]);
    }

    proptest! {
        /// Whatever fails when, no message of a key is published after an unsettled earlier one.
        #[test]
        fn no_key_is_overtaken(
            keys in proptest::collection::vec(proptest::option::of(0..4i64), 1..40),
            fails in proptest::collection::vec(0..4u8, 40),
        ) {
            let candidates: Vec<_> =
                keys.iter().zip(1..).map(|(key, id)| candidate(id, *key, None)).collect();
            let mut plan = plan(candidates, Ordering::Strict);
            loop {
                let wave = next(&mut plan);
                if wave.is_empty() {
                    break;
                }
                for i in wave.into_iter().map(|id| id as usize - 1) {
                    for earlier in 0..i {
                        if keys[i].is_some() && keys[earlier] == keys[i] {
                            prop_assert_eq!(outcome(&plan, earlier), &Outcome::Sent);
                        }
                    }
                    plan.record(i, match fails[i] {
                        0 => retry(),
                        1 => dead(),
                        _ => Outcome::Sent,
                    });
                }
            }
        }
    }
}
