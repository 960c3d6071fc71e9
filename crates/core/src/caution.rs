//! After a settle that failed: how many messages a claim may publish. No I/O.
//!
//! **Why.** A claim publishes and then marks. When it cannot mark (a privilege was revoked, a trigger refuses, somebody holds
//! a row's lock), it has published in vain, and so has its next one. So after such a failure each claim first *rehearses*:
//! it marks its messages and takes that back, in its own transaction, before it publishes any of them. And it begins with
//! one message: what shows only at COMMIT costs one duplicate an attempt. Each claim that commits doubles the number.

//!
//! **Other lanes.** Marks elsewhere end the caution, and prove nothing about the messages of the failed claim: it was rolled
//! back, and any later claim may read them. So they stay *suspects*, which are rehearsed alone, until they are settled.

use std::collections::{HashSet, VecDeque};

use crate::message::Position;

/// Suspects that are remembered at most. The oldest are forgotten first: they were settled by another relay, or deleted,
/// and nobody will settle them here.
const MOST: usize = 100_000;

/// Of all workers of a source: what stops the mark of one stops those of the others.
#[derive(Debug, Default)]
pub struct Caution {
    /// `None`: nothing is wrong.
    allowed: Option<usize>,
    /// Published by a claim whose settle failed, and not settled since.
    suspects: HashSet<Position>,
    /// In the order in which they became suspects; some are none any more.
    order: VecDeque<Position>,
}

impl Caution {
    /// A claim's settle failed, and it had published these; or its rehearsal failed, and it had published none.
    pub fn failed(&mut self, published: impl IntoIterator<Item = Position>) {
        self.allowed = Some(1);
        for position in published {
            if self.suspects.insert(position) {
                self.order.push_back(position);
            }
        }
        while self.order.len() > MOST {
            let oldest = self.order.pop_front();
            oldest.map(|position| self.suspects.remove(&position));
        }
    }

    /// A claim committed with this many messages marked.
    pub fn marked(&mut self, messages: usize, batch_size: usize) {
        if let Some(allowed) = self.allowed
            && messages >= allowed
        {
            let next = allowed.saturating_mul(2);
            self.allowed = (next < batch_size).then_some(next);
        }
    }

    /// A claim committed what becomes of these: marked, dead, or waiting with what is known of them.
    pub fn settled(&mut self, positions: impl IntoIterator<Item = Position>) {
        if self.suspects.is_empty() {
            return;
        }
        for position in positions {
            self.suspects.remove(&position);
        }
        if self.suspects.is_empty() {
            self.order.clear();
        }
    }

    /// Messages that a claim may read; `None`: as many as it likes, without a rehearsal of all.
    pub fn limit(&self) -> Option<usize> {
        self.allowed
    }

    /// It was published by a claim that could not mark: it is rehearsed before it is published again.
    pub fn suspects(&self, position: Position) -> bool {
        self.suspects.contains(&position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_message_then_twice_as_many_each_time() {
        let mut caution = Caution::default();
        caution.marked(500, 500);
        assert_eq!(caution.limit(), None);
        caution.failed([]);
        let mut allowed = Vec::new();
        for _ in 0..20 {
            let Some(n) = caution.limit() else { break };
            allowed.push(n);
            caution.marked(n, 500);
        }
        assert_eq!(allowed, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn a_claim_that_had_less_proves_nothing_about_more() {
        let mut caution = Caution::default();
        caution.failed([]);
        caution.marked(1, 500);
        caution.marked(1, 500);
        assert_eq!(caution.limit(), Some(2));
        caution.marked(0, 500);
        assert_eq!(caution.limit(), Some(2));
        caution.failed([]);
        assert_eq!(caution.limit(), Some(1));
    }

    #[test]
    fn batches_of_one_end_it_with_the_first() {
        let mut caution = Caution::default();
        caution.failed([]);
        caution.marked(1, 1);
        assert_eq!(caution.limit(), None);
    }

    #[test]
    fn a_claim_that_proved_a_whole_batch_ends_it() {
        let mut caution = Caution::default();
        caution.failed([]);
        caution.marked(1, 4);
        assert_eq!(caution.limit(), Some(2));
        caution.marked(2, 4);
        assert_eq!(caution.limit(), None, "4 are a batch");
    }

    fn at(id: i64) -> Position {
        Position { lane: 0, id }
    }

    #[test]
    fn what_was_published_in_vain_stays_suspect_until_it_is_settled_whatever_is_marked_elsewhere() {
        let mut caution = Caution::default();
        caution.failed([at(1), at(2)]);
        caution.settled([at(7)]);
        caution.marked(1, 1);
        assert_eq!(caution.limit(), None);
        assert!(caution.suspects(at(1)) && caution.suspects(at(2)) && !caution.suspects(at(7)));
        caution.settled([at(1)]);
        assert!(!caution.suspects(at(1)) && caution.suspects(at(2)));
        caution.settled([at(2)]);
        assert!(!caution.suspects(at(2)));
        assert!(caution.order.is_empty());
    }

    #[test]
    fn suspects_are_bounded_and_the_oldest_are_forgotten() {
        let mut caution = Caution::default();
        let most = i64::try_from(MOST).unwrap();
        caution.failed((0..most).map(at));
        assert!(caution.suspects(at(0)));
        caution.failed([at(0), at(most)]);
        assert!(!caution.suspects(at(0)) && caution.suspects(at(1)) && caution.suspects(at(most)));
        assert_eq!(caution.suspects.len(), MOST);
        assert_eq!(caution.order.len(), MOST);
    }
}
