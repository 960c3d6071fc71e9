//! Chooses the messages of a claim that are published together. No I/O.
//!
//! Messages of one key form a chain. In strict order a wave holds at most one message of a chain, and the next message
//! goes only after the one before it was delivered. A dead message ends its chain for this claim: a crash before the
//! COMMIT makes the dead message pending again, and the following messages would overtake it. A message that was
//! refused before its publish blocks no other message: it is refused again even after a crash. In pipelined order all
//! messages of a chain go at once, in position order.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    claim::{Claim, Item},
    message::{Lane, Position},
    outcome::Outcome,
};

/// `relay.ordering`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    Strict,
    Pipelined,
}

/// Owns the claim during the publishes, and lends its items to the waves.
#[derive(Debug)]
pub struct Plan {
    claim: Claim,
    chains: Vec<Chain>,
    ordering: Ordering,
    /// Indexes of the next wave's items. The buffer is reused: a hot key has one wave for each message.
    wave: Vec<usize>,
}

#[derive(Debug)]
struct Chain {
    /// Indexes of items, in position order.
    members: Vec<usize>,
    next: usize,
}

impl Plan {
    /// Also sets the outcome `Behind` for messages that wait for a message outside of this claim.
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
                // A replay neither blocks new messages nor waits for them.
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
            // The first member that waits for a message outside of this claim; it and all following members are behind.
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

    /// Messages that this claim may publish: not scheduled, and without an outcome.
    pub fn publishable(&mut self) -> impl Iterator<Item = &mut Item> {
        let items = self.claim.items.iter_mut();
        items.filter(|item| {
            !item.candidate.scheduled
                && !item.is_left()
                && matches!(item.outcome(), Outcome::Untouched)
        })
    }

    pub fn item(&mut self, position: Position) -> Option<&mut Item> {
        let mut items = self.claim.items.iter_mut();
        items.find(|item| item.position() == position)
    }

    /// Before the first wave. This claim neither publishes nor files these messages. The later messages of their keys are
    /// left as well, because they must not overtake them.
    pub fn leave(&mut self, left: &HashSet<Position>) {
        let mut keys: HashMap<(Lane, i64), i64> = HashMap::new();
        let key = |item: &Item| {
            let hash = item
                .candidate
                .key_hash
                .filter(|_| !item.candidate.message.replay);
            hash.map(|hash| (item.position().lane, hash))
        };
        for item in &mut self.claim.items {
            let position = item.position();
            if !left.contains(&position) {
                continue;
            }
            item.leave();
            if let Some(key) = key(item).filter(|_| !item.candidate.scheduled) {
                let first = keys.entry(key).or_insert(position.id);
                *first = position.id.min(*first);
            }
        }
        for item in &mut self.claim.items {
            let first = key(item).and_then(|key| keys.get(&key));
            let follows = first.is_some_and(|first| item.position().id > *first);
            // A message that is refused before its publish has no order.
            let ordered =
                !item.candidate.scheduled && !matches!(item.outcome(), Outcome::Dead { .. });
            if follows && ordered {
                item.leave();
            }
        }
        let orphans = &mut self.claim.orphans;
        orphans.retain(|orphan| !left.contains(&orphan.position));
        let items = &self.claim.items;
        for chain in &mut self.chains {
            let end = chain.members.iter().position(|i| items[*i].is_left());
            chain.members.truncate(end.unwrap_or(usize::MAX));
        }
    }

    /// The next messages to publish, in position order; empty if none is left. A chain ends at a message that waits:
    /// the rest of the chain is behind it. A chain also ends at a dead message: the rest stays pending.
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
                    // Refused before the publish: these block no other message.
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
                            // The message got its outcome before the wave: it waits, and the following members wait
                            // behind it.
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

/// The items with these indexes, in ascending order.
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

/// Ends a chain after a message that was not delivered, and sets the outcome of the rest.
fn stand_behind(chain: &mut Chain, items: &mut [Item]) {
    let Some(previous) = chain.next.checked_sub(1).map(|n| chain.members[n]) else {
        return;
    };
    for i in chain.members.drain(chain.next..) {
        // No settle releases a replay, so the replay keeps its own due time.
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

/// Outcome of the messages that follow: behind if the previous message waits; untouched if it is dead or has no answer.
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

    #[test]
    fn a_message_that_is_left_and_the_later_ones_of_its_key_are_not_published() {
        for ordering in [Ordering::Strict, Ordering::Pipelined] {
            let mut plan = plan(
                [
                    candidate(1, Some(7), None),
                    candidate(2, Some(7), None),
                    candidate(3, Some(8), None),
                    candidate(4, Some(7), None),
                    candidate(5, Some(9), Some(0)),
                    candidate(6, Some(9), Some(0)),
                ],
                ordering,
            );
            plan.leave(
                &[2, 5]
                    .map(|id| Position {
                        id,
                        ..sample(1, None).message.position
                    })
                    .into(),
            );
            assert_eq!(next(&mut plan), [1, 3]);
            plan.record(0, Outcome::Sent);
            plan.record(2, Outcome::Sent);
            assert!(next(&mut plan).is_empty());
            for left in [1, 3, 4, 5] {
                assert!(plan.claim().items[left].is_left());
                assert_eq!(*outcome(&plan, left), Outcome::Untouched);
            }
        }
    }

    /// A scheduled message, a replay and a message that is refused before its publish have no order.
    #[test]
    fn only_ordered_messages_are_left_with_an_earlier_one() {
        let mut replay = candidate(2, Some(7), None);
        replay.message.replay = true;
        let mut scheduled = candidate(3, Some(7), None);
        scheduled.scheduled = true;
        let claimed = [
            candidate(1, Some(7), None),
            replay,
            scheduled,
            candidate(4, Some(7), None),
        ];
        let mut plan = plan(claimed, Ordering::Strict);
        plan.record(3, dead());
        plan.leave(&[sample(1, None).message.position].into());
        let left = |i: usize| plan.claim().items[i].is_left();
        assert_eq!([0, 1, 2, 3].map(left), [true, false, false, false]);
        let mut plan = Plan::new(plan.into_claim(), Ordering::Strict);
        plan.leave(&[sample(3, None).message.position].into());
        assert_eq!(plan.claim().items.iter().filter(|i| i.is_left()).count(), 2);
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
    fn later_messages_of_a_key_wait_behind_a_failed_one() {
        let candidates = [1, 2, 3].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.next_wave();
        plan.record(0, retry());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
        assert_eq!(outcome(&plan, 2), &Outcome::Behind);
    }

    #[test]
    fn later_messages_of_a_key_stay_pending_until_a_death_is_committed() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [1]);
        plan.record(0, dead());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 1), &Outcome::Untouched);
    }

    #[test]
    fn a_message_refused_before_its_publish_blocks_no_other() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.record(0, dead());
        assert_eq!(next(&mut plan), [2]);
    }

    #[test]
    fn a_message_behind_one_of_another_claim_is_filed_behind() {
        let candidates = [5, 6].map(|id| candidate(id, Some(7), Some(1)));
        let mut plan = plan(candidates, Ordering::Strict);
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 0), &Outcome::Behind);
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
    }

    #[test]
    fn a_message_behind_one_of_this_claim_follows_it() {
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
    fn pipelined_order_does_not_overtake_waiting_messages_either() {
        let candidates = [1, 2, 3].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Pipelined);
        plan.record(1, retry());
        assert_eq!(next(&mut plan), [1]);
        assert_eq!(outcome(&plan, 1), &retry());
        assert_eq!(outcome(&plan, 2), &Outcome::Behind);
    }

    #[test]
    fn later_messages_of_a_key_wait_behind_one_that_already_waits() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut plan = plan(candidates, Ordering::Strict);
        plan.record(0, retry());
        assert_eq!(next(&mut plan), [0; 0]);
        assert_eq!(outcome(&plan, 0), &retry());
        assert_eq!(outcome(&plan, 1), &Outcome::Behind);
    }

    #[test]
    fn a_replay_waits_for_no_other_and_a_scheduled_message_is_not_published() {
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
            "the replay keeps its own due time"
        );
    }

    #[test]
    fn scheduled_behind_and_decided_messages_are_not_publishable() {
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
        /// Under any failures, no message of a key is published after an unsettled earlier one.
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
