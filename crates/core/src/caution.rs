//! Caution after a failed settle: how many messages a claim may publish. No I/O.
//!
//! **Why.** A claim publishes its messages and then writes their outcomes. If it cannot write them (a privilege was
//! revoked, a trigger refuses, another session holds a row's lock), its publishes become duplicates, and the next claim
//! repeats them. So after a failed settle each claim first *rehearses*: before it publishes anything, it settles its
//! messages and takes that back, in its own transaction. The first claim publishes one message, because some errors
//! show only at COMMIT: such an error costs one duplicate for each attempt. Each claim that commits doubles the number.
//!
//! **Other lanes.** Marks in other lanes end the caution, but prove nothing about the messages of the failed claim: it
//! was rolled back, and any later claim may read them. So these messages stay *suspects* until they are settled. A
//! claim rehearses suspects even after the caution has ended.
//!
//! **What is rehearsed.** A message that the broker took needs its mark. A message with another outcome needs a record in
//! `outbox.waiting` or `outbox.dead`, so these writes are rehearsed for it too. They are not rehearsed for every
//! message: while nothing can be filed, all messages that are delivered can still flow.
//!
//! **Set aside.** A message whose rehearsal fails waits in `outbox.waiting`. If that write is refused as well, the claim
//! leaves the message as it is, and settles the others.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, seq::SliceRandom};

use crate::message::{Lane, Position};

/// Maximum number of suspects in memory. The oldest are forgotten first: another relay has settled them, or somebody
/// has deleted them, and this relay will not settle them.
const MOST: usize = 100_000;
/// Claims meet a message again that was left as it is: a new one each time, a filed one in its turn. A message that none met
/// for so long is settled by another relay, or deleted.
const MET_WITHIN: Duration = Duration::from_secs(60);

/// Messages set aside that a claim reads again, at most.
const READ_AGAIN: usize = 16;

/// Shared by all workers of a source: an obstacle to the settle of one worker affects the others too.
#[derive(Debug, Default)]
pub struct Caution {
    /// `None`: no caution.
    allowed: Option<usize>,
    /// Messages of a claim whose settle failed, and not yet settled. `true`: the outcome must be filed.
    suspects: HashMap<Position, bool>,
    /// In the order in which they became suspects; may contain positions that are no longer suspects.
    order: VecDeque<Position>,
    /// Messages that can be neither published nor filed, each with the time when a claim last met it.
    aside: HashMap<Position, Instant>,
}

impl Caution {
    /// A claim failed. `published`: the messages that it had published and could not mark; none if its rehearsal failed.
    pub fn failed(&mut self, published: impl IntoIterator<Item = Position>) {
        self.allowed = Some(1);
        for position in published {
            self.suspect(position, false);
        }
    }

    /// The claim that failed would have filed these messages as waiting or dead.
    pub fn not_filed(&mut self, messages: impl IntoIterator<Item = Position>) {
        for position in messages {
            self.suspect(position, true);
        }
    }

    fn suspect(&mut self, position: Position, filing: bool) {
        match self.suspects.entry(position) {
            Entry::Occupied(mut known) => *known.get_mut() |= filing,
            Entry::Vacant(new) => {
                new.insert(filing);
                self.order.push_back(position);
            }
        }
        while self.order.len() > MOST {
            let oldest = self.order.pop_front();
            oldest.map(|position| self.suspects.remove(&position));
        }
    }

    /// The message is left as it is. Returns true if it was not left before.
    pub fn set_aside(&mut self, position: Position, now: Instant) -> bool {
        if let Some(met) = self.aside.get_mut(&position) {
            *met = now;
            return false;
        }
        self.aside.len() < MOST && self.aside.insert(position, now).is_none()
    }

    /// Forgets messages that are set aside and that no claim met for a while.
    pub fn forget(&mut self, now: Instant) {
        self.aside
            .retain(|_, met| now.saturating_duration_since(*met) < MET_WITHIN);
    }

    /// Number of messages that are set aside.
    pub fn aside(&self) -> usize {
        self.aside.len()
    }

    /// Positions of filed messages that a claim of these lanes does not read: most of those that are set aside. They stay
    /// due, and would keep those that fell due after them from ever being read. The few that no claim met for longest are
    /// read and rehearsed again; sometimes none, because one may be all that a claim reads.
    pub fn passed_over(&self, lanes: &[Lane], rng: &mut impl Rng) -> Vec<i64> {
        if self.aside.is_empty() {
            return Vec::new();
        }
        let of_lanes = self.aside.iter().filter(|(p, _)| lanes.contains(&p.lane));
        let mut met: Vec<_> = of_lanes
            .map(|(position, met)| (*met, position.id))
            .collect();
        met.sort_unstable();
        let again = rng.random_range(0..=READ_AGAIN);
        met.into_iter().skip(again).map(|(_, id)| id).collect()
    }

    /// Of the new messages that a claim read, those that it leaves without another rehearsal: most of those that are set aside.
    pub fn left_again(
        &mut self,
        read: impl IntoIterator<Item = Position>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> HashSet<Position> {
        let mut met = Vec::new();
        for position in read {
            if let Some(at) = self.aside.get_mut(&position) {
                *at = now;
                met.push(position);
            }
        }
        let again = rng.random_range(0..=READ_AGAIN);
        let (_, left) = met.partial_shuffle(rng, again);
        left.iter().copied().collect()
    }

    pub fn is_aside(&self, position: Position) -> bool {
        self.aside.contains_key(&position)
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
        if self.suspects.is_empty() && self.aside.is_empty() {
            return;
        }
        for position in positions {
            self.suspects.remove(&position);
            self.aside.remove(&position);
        }
        if self.suspects.is_empty() {
            self.order.clear();
        }
    }

    /// Maximum number of messages that a claim may publish. `None`: no limit, and only suspects are rehearsed.
    pub fn limit(&self) -> Option<usize> {
        self.allowed
    }

    /// A claim published the message and could not settle it, so it is rehearsed before it is published again.
    pub fn suspects(&self, position: Position) -> bool {
        self.suspects.contains_key(&position)
    }

    /// The message's outcome could not be filed.
    pub fn needs_filing(&self, position: Position) -> bool {
        self.suspects.get(&position) == Some(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "only now() makes an Instant; the tests move it themselves"
    )]
    fn now() -> Instant {
        Instant::now()
    }

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
    fn a_claim_passes_over_most_of_the_messages_of_its_lanes_that_are_set_aside() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        assert!(caution.passed_over(&[0], rng).is_empty());
        let mut now = now();
        for id in 0..100 {
            caution.set_aside(at(id), now);
        }
        caution.set_aside(Position { lane: 1, id: 100 }, now);
        let mut read = HashSet::new();
        let mut most = 0;
        for claim in 1..=1000 {
            now += Duration::from_millis(1);
            let passed_over: HashSet<i64> = caution.passed_over(&[0], rng).into_iter().collect();
            assert!(passed_over.iter().all(|id| (0..100).contains(id)));
            assert!(passed_over.len() >= 100 - READ_AGAIN);
            most = most.max(passed_over.len());
            for id in (0..100).filter(|id| !passed_over.contains(id)) {
                caution.set_aside(at(id), now);
                read.insert(id);
            }
            assert!(
                claim < 100 || read.len() == 100,
                "each within 100 claims: {}",
                read.len()
            );
        }
        assert_eq!(most, 100, "sometimes none is read");
    }

    #[test]
    fn a_message_that_could_not_be_filed_stays_one_until_it_is_settled() {
        let mut caution = Caution::default();
        caution.not_filed([at(1)]);
        assert_eq!(caution.limit(), None);
        caution.failed([at(1), at(2)]);
        assert!(caution.suspects(at(1)) && caution.needs_filing(at(1)));
        assert!(caution.suspects(at(2)) && !caution.needs_filing(at(2)));
        caution.not_filed([at(2)]);
        assert!(caution.needs_filing(at(2)));
        caution.settled([at(1), at(2)]);
        assert!(!caution.suspects(at(1)) && !caution.needs_filing(at(2)));
    }

    #[test]
    fn a_claim_leaves_most_of_the_new_messages_that_are_set_aside_and_forgets_none() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        let mut now = now();
        let read = || (0..100).map(at);
        assert!(caution.left_again(read(), now, rng).is_empty());
        for id in 0..50 {
            caution.set_aside(at(id), now);
        }
        let mut again = HashSet::new();
        for _ in 0..1000 {
            now += MET_WITHIN / 2;
            let left = caution.left_again(read(), now, rng);
            assert!(left.iter().all(|p| p.id < 50) && left.len() >= 50 - READ_AGAIN);
            again.extend((0..50).filter(|id| !left.contains(&at(*id))));
            caution.forget(now);
        }
        assert_eq!((again.len(), caution.aside()), (50, 50), "each in turn");
    }

    #[test]
    fn a_message_is_set_aside_once_and_until_it_is_settled() {
        let mut caution = Caution::default();
        let now = now();
        assert!(!caution.is_aside(at(1)));
        assert!(caution.set_aside(at(1), now) && !caution.set_aside(at(1), now));
        assert!(caution.is_aside(at(1)) && !caution.is_aside(at(2)));
        assert!(caution.set_aside(at(2), now));
        assert_eq!(caution.aside(), 2);
        caution.settled([at(1)]);
        assert_eq!(caution.aside(), 1);
        assert!(caution.set_aside(at(1), now));
    }

    /// Another relay settled it, or a person deleted it.
    #[test]
    fn a_message_that_is_set_aside_and_never_met_again_is_forgotten() {
        let mut caution = Caution::default();
        let began = now();
        caution.set_aside(at(1), began);
        caution.set_aside(at(2), began);
        let later = began + MET_WITHIN / 2;
        assert!(!caution.set_aside(at(2), later));
        caution.forget(later);
        assert_eq!(caution.aside(), 2);
        caution.forget(began + MET_WITHIN);
        assert_eq!(caution.aside(), 1);
        caution.forget(later + MET_WITHIN);
        assert_eq!(caution.aside(), 0);
    }

    #[test]
    fn messages_that_are_set_aside_are_bounded() {
        let mut caution = Caution::default();
        let most = i64::try_from(MOST).unwrap();
        let now = now();
        assert!((0..most).all(|id| caution.set_aside(at(id), now)));
        assert!(!caution.set_aside(at(most), now));
        assert_eq!(caution.aside(), MOST);
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
