//! Which messages of a claim go out together. No I/O.
//!
//! Messages of one key form a chain. In strict order a wave holds at most one message of a chain, and the next one
//! goes only when the one before it was delivered. One that dies ends its chain for this claim: until the claim
//! commits a crash brings it back to life, and what followed it would have overtaken it. One that was refused before
//! it was published is refused again whatever happens, so nobody waits for it. In pipelined order all go at once, in
//! position order.

use std::collections::{BTreeMap, HashSet};

use crate::{claim::Candidate, message::Lane, outcome::Outcome};

/// `relay.ordering`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    Strict,
    Pipelined,
}

#[derive(Debug)]
pub struct Plan {
    chains: Vec<Chain>,
    ordering: Ordering,
}

#[derive(Debug)]
struct Chain {
    /// Indexes of candidates, in position order.
    members: Vec<usize>,
    next: usize,
}

impl Plan {
    /// Also decides who stands behind a message that is not in this claim: their outcome becomes `Behind`.
    pub fn new(candidates: &[Candidate], outcomes: &mut [Outcome], ordering: Ordering) -> Self {
        let mut keyed: BTreeMap<(Lane, i64, bool), Vec<usize>> = BTreeMap::new();
        let mut chains = Vec::new();
        for (i, candidate) in candidates.iter().enumerate() {
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
            members.sort_unstable_by_key(|i| candidates[*i].message.position.id);
            let mut here: HashSet<i64> = HashSet::new();
            let mut end = members.len();
            for (n, i) in members.iter().enumerate() {
                if candidates[*i]
                    .after
                    .is_some_and(|after| !here.contains(&after))
                {
                    end = n;
                    break;
                }
                here.insert(candidates[*i].message.position.id);
            }
            for i in members.drain(end..) {
                outcomes[i] = Outcome::Behind;
            }
            if !members.is_empty() {
                chains.push(members);
            }
        }
        let chains = chains
            .into_iter()
            .map(|members| Chain { members, next: 0 })
            .collect();
        Self { chains, ordering }
    }

    /// The next messages to publish, in position order; empty when there is nothing left. A chain ends at a message
    /// that waits, and the rest of it stands behind; or at one that died, and the rest of it stays pending.
    pub fn next_wave(&mut self, candidates: &[Candidate], outcomes: &mut [Outcome]) -> Vec<usize> {
        let mut wave = Vec::new();
        for chain in &mut self.chains {
            match self.ordering {
                Ordering::Strict => {
                    let previous = chain.next.checked_sub(1).map(|n| chain.members[n]);
                    if let Some(previous) = previous
                        && outcomes[previous] != Outcome::Sent
                    {
                        stand_behind(chain, candidates, outcomes);
                        continue;
                    }
                    // Refused before publishing: nobody waits for those.
                    while chain
                        .members
                        .get(chain.next)
                        .is_some_and(|i| settled(&outcomes[*i]))
                    {
                        chain.next += 1;
                    }
                    let Some(i) = chain.members.get(chain.next).copied() else {
                        continue;
                    };
                    chain.next += 1;
                    if outcomes[i] == Outcome::Untouched {
                        wave.push(i);
                    } else {
                        stand_behind(chain, candidates, outcomes);
                    }
                }
                Ordering::Pipelined => {
                    while let Some(i) = chain.members.get(chain.next).copied() {
                        chain.next += 1;
                        match outcomes[i] {
                            Outcome::Untouched => wave.push(i),
                            Outcome::Sent | Outcome::Dead { .. } => {}
                            // It was decided before the wave: it waits, and what follows it waits behind it.
                            Outcome::Retry { .. } | Outcome::Held { .. } | Outcome::Behind => {
                                stand_behind(chain, candidates, outcomes);
                            }
                        }
                    }
                }
            }
        }
        wave.sort_unstable_by_key(|i| candidates[*i].message.position);
        wave
    }
}

/// The rest of a chain, behind the message before it, which was not delivered.
fn stand_behind(chain: &mut Chain, candidates: &[Candidate], outcomes: &mut [Outcome]) {
    let Some(previous) = chain.next.checked_sub(1).map(|n| chain.members[n]) else {
        return;
    };
    for i in chain.members.drain(chain.next..) {
        // Nobody releases a replay: it keeps its own due time.
        outcomes[i] = if candidates[i].message.replay {
            Outcome::Untouched
        } else {
            behind(&outcomes[previous])
        };
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
    use uuid::Uuid;

    use super::*;
    use crate::{
        claim::{Ctid, Waited},
        message::{Message, Position},
        reason::Reason,
    };

    fn candidate(id: i64, key: Option<i64>, after: Option<i64>) -> Candidate {
        Candidate {
            message: Message {
                position: Position { lane: 0, id },
                message_id: Uuid::nil(),
                aggregate_type: String::new(),
                aggregate_id: None,
                event_type: String::new(),
                content_type: String::new(),
                headers: None,
                headers_size: 0,
                exchange: None,
                routing_key: None,
                created_at_us: 0,
                attempts: 0,
                replay: false,
                body_size: 0,
                body: None,
            },
            ctid: Ctid::default(),
            tx: 0,
            key_hash: key,
            filed: false,
            scheduled: false,
            after,
            waited: Waited::default(),
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
        let mut outcomes = vec![Outcome::Untouched; 3];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [0, 2]);
        outcomes[0] = Outcome::Sent;
        outcomes[2] = Outcome::Sent;
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [1]);
        outcomes[1] = Outcome::Sent;
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
    }

    #[test]
    fn what_follows_a_failed_message_of_its_key_stands_behind_it() {
        let candidates = [
            candidate(1, Some(7), None),
            candidate(2, Some(7), None),
            candidate(3, Some(7), None),
        ];
        let mut outcomes = vec![Outcome::Untouched; 3];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        plan.next_wave(&candidates, &mut outcomes);
        outcomes[0] = retry();
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes[1..], [Outcome::Behind, Outcome::Behind]);
    }

    #[test]
    fn what_follows_a_message_that_just_died_waits_for_the_commit_of_its_death() {
        let candidates = [candidate(1, Some(7), None), candidate(2, Some(7), None)];
        let mut outcomes = vec![Outcome::Untouched; 2];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [0]);
        outcomes[0] = dead();
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes[1], Outcome::Untouched);
    }

    #[test]
    fn nobody_waits_for_a_message_that_was_refused_before_it_was_published() {
        let candidates = [candidate(1, Some(7), None), candidate(2, Some(7), None)];
        let mut outcomes = vec![dead(), Outcome::Untouched];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [1]);
    }

    #[test]
    fn a_message_behind_one_that_is_not_here_is_filed_behind() {
        let candidates = [
            candidate(5, Some(7), Some(1)),
            candidate(6, Some(7), Some(1)),
        ];
        let mut outcomes = vec![Outcome::Untouched; 2];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes, [Outcome::Behind, Outcome::Behind]);
    }

    #[test]
    fn in_pipelined_order_all_go_at_once_in_the_order_of_their_positions() {
        let candidates = [
            candidate(2, Some(7), None),
            candidate(1, Some(8), None),
            candidate(3, Some(7), None),
            candidate(4, None, None),
        ];
        let mut outcomes = vec![Outcome::Untouched; 4];
        outcomes[2] = dead();
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Pipelined);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [1, 0, 3]);
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes[2], dead());
    }

    #[test]
    fn in_pipelined_order_too_nothing_overtakes_what_waits_already() {
        let candidates = [1, 2, 3].map(|id| candidate(id, Some(7), None));
        let mut outcomes = vec![Outcome::Untouched, retry(), Outcome::Untouched];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Pipelined);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [0]);
        assert_eq!(outcomes[1..], [retry(), Outcome::Behind]);
    }

    #[test]
    fn what_follows_a_message_that_waits_already_stands_behind_it() {
        let candidates = [1, 2].map(|id| candidate(id, Some(7), None));
        let mut outcomes = vec![retry(), Outcome::Untouched];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes, [retry(), Outcome::Behind]);
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
        let mut outcomes = vec![Outcome::Untouched; 4];
        let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
        assert_eq!(plan.next_wave(&candidates, &mut outcomes), [0, 2]);
        outcomes[0] = retry();
        outcomes[2] = Outcome::Sent;
        assert!(plan.next_wave(&candidates, &mut outcomes).is_empty());
        assert_eq!(outcomes[1], Outcome::Untouched, "it keeps its own due time");
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
            let mut outcomes = vec![Outcome::Untouched; candidates.len()];
            let mut plan = Plan::new(&candidates, &mut outcomes, Ordering::Strict);
            loop {
                let wave = plan.next_wave(&candidates, &mut outcomes);
                if wave.is_empty() {
                    break;
                }
                for i in wave {
                    for earlier in 0..i {
                        if keys[i].is_some() && keys[earlier] == keys[i] {
                            prop_assert_eq!(&outcomes[earlier], &Outcome::Sent);
                        }
                    }
                    outcomes[i] = match fails[i] {
                        0 => retry(),
                        1 => dead(),
                        _ => Outcome::Sent,
                    };
                }
            }
        }
    }
}
