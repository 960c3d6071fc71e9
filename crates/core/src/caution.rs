//! Caution after a failed settle: how many messages a claim may publish. No I/O.
//!
//! **Why.** A claim publishes its messages and then marks them. If it cannot mark them (a privilege was revoked, a
//! trigger refuses, another session holds a row's lock), its publishes become duplicates, and the next claim repeats
//! them. So after a failed settle each claim first *rehearses*: before it publishes anything, it marks its messages and
//! takes the marks back, in its own transaction. The first claim has one message, because some errors show only at
//! COMMIT: such an error costs one duplicate for each attempt. Each claim that commits doubles the number.
//!
//! **Other lanes.** Marks in other lanes end the caution, but prove nothing about the messages of the failed claim: it
//! was rolled back, and any later claim may read them. So these messages stay *suspects* until they are settled. A
//! claim rehearses suspects even after the caution has ended.

use std::collections::{HashSet, VecDeque};

use crate::message::Position;

/// Maximum number of suspects in memory. The oldest are forgotten first: another relay has settled them, or somebody
/// has deleted them, and this relay will not settle them.
const MOST: usize = 100_000;

/// Shared by all workers of a source: an obstacle to the marks of one worker affects the others too.
#[derive(Debug, Default)]
pub struct Caution {
    /// `None`: no caution.
    allowed: Option<usize>,
    /// Published by a claim whose settle failed, and not yet settled.
    suspects: HashSet<Position>,
    /// In the order in which they became suspects; may contain positions that are no longer suspects.
    order: VecDeque<Position>,
}

impl Caution {
    /// A claim failed. `published`: the messages that it had published; none if its rehearsal failed.
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

    /// A claim committed with this number of marked messages.
    pub fn marked(&mut self, messages: usize, batch_size: usize) {
        if let Some(allowed) = self.allowed
            && messages >= allowed
        {
            let next = allowed.saturating_mul(2);
            self.allowed = (next < batch_size).then_some(next);
        }
    }

    /// A claim committed the outcomes of these messages: sent, dead, or waiting.
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

    /// Maximum number of messages that a claim may read. `None`: no limit, and only suspects are rehearsed.
    pub fn limit(&self) -> Option<usize> {
        self.allowed
    }

    /// A claim published the message and could not mark it, so it is rehearsed before it is published again.
    pub fn suspects(&self, position: Position) -> bool {
        self.suspects.contains(&position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_the_limit_starts_at_one_and_doubles() {
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
    fn a_smaller_claim_does_not_raise_the_limit() {
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
    fn the_first_batch_of_one_ends_the_caution() {
        let mut caution = Caution::default();
        caution.failed([]);
        caution.marked(1, 1);
        assert_eq!(caution.limit(), None);
    }

    #[test]
    fn a_whole_batch_ends_the_caution() {
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
    fn a_published_and_unmarked_message_stays_a_suspect_until_it_is_settled() {
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
