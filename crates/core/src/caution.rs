//! Caution after a failed settle: how many messages a claim may publish. No I/O.
//!
//! **Why.** A claim publishes its messages and then writes their outcomes. If it cannot write them (a privilege was
//! revoked, a trigger refuses, another session holds a row's lock), its publishes become duplicates, and the next claim
//! repeats them. So after a failed settle each claim first *rehearses*: before it publishes anything, it settles its
//! messages and takes that back, in its own transaction. The first claim publishes one message, because some errors
//! show only at COMMIT: such an error costs one duplicate for each attempt. Each claim that commits doubles the number.
//!
//! **Refused at COMMIT.** Such a message is not published again at once: it waits in `outbox.waiting` first, longer each time.
//! And while no mark is committed at all, the pause between two attempts grows.
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
//! leaves the message as it is, and settles the others. Later claims pass over most of these messages and, to keep the
//! order, over all new messages of their keys. So however many there are, what stands behind them is read.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

use crate::message::{Lane, Position};

/// Maximum number of suspects in memory. The oldest are forgotten first: another relay has settled them, or somebody
/// has deleted them, and this relay will not settle them.
const MOST: usize = 100_000;
/// Claims of its lane pass over a message that was left as it is, and read it again in its turn. If none does so for so long,
/// or one that read its lane did not find it, it is settled by another relay, or deleted.
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
    /// Messages that were published, and whose marks the server refused at COMMIT.
    uncommitted: HashSet<Position>,
    /// Why, the last time.
    refusal: String,
    /// Refused COMMITs since a mark was last committed.
    refused_commits: u32,
    /// In the order in which they became suspects; may contain positions that are no longer suspects.
    order: VecDeque<Position>,
    /// Messages that can be neither published nor filed.
    aside: HashMap<Position, Aside>,
    /// Messages that could not be marked, each with the time until which that counts.
    unmarkable: HashMap<Position, Instant>,
}

/// A message that is set aside.
#[derive(Debug)]
struct Aside {
    kind: Kind,
    /// When its rehearsal last failed.
    met: Instant,
    /// When a claim of its lane last passed over it, or met it.
    seen: Instant,
    /// A claim was to read it again, and has not met it since.
    tried: Option<Instant>,
}

/// How a claim finds a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In `outbox.waiting`.
    Filed,
    /// Above the mark. No later message of its key may overtake it.
    New { key: Option<i64> },
}

/// What a claim does not read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Positions of filed messages.
    pub filed: Vec<i64>,
    /// Positions of new messages without a key.
    pub new: Vec<i64>,
    /// Hashes of keys: none of their new messages is read.
    pub keys: Vec<i64>,
    /// Lanes that have such new messages: their marks must not pass them.
    pub lanes: Vec<Lane>,
}

impl Caution {
    /// A claim failed. `published`: the messages that it had published and could not mark; none if its rehearsal failed.
    pub fn failed(&mut self, published: impl IntoIterator<Item = Position>) {
        self.allowed = Some(1);
        for position in published {
            self.suspect(position, false);
        }
    }

    /// The server refused the COMMIT of a claim that had published these messages.
    pub fn commit_refused(&mut self, published: impl IntoIterator<Item = Position>, why: String) {
        self.refused_commits = self.refused_commits.saturating_add(1);
        self.refusal = why;
        for position in published {
            if self.uncommitted.len() < MOST {
                self.uncommitted.insert(position);
            }
        }
    }

    pub fn refused_commits(&self) -> u32 {
        self.refused_commits
    }

    /// Why the message waits before it is published again, although its rehearsal passes: the server refused the COMMIT of its
    /// mark.
    pub fn uncommitted(&self, position: Position) -> Option<&str> {
        self.uncommitted
            .contains(&position)
            .then_some(self.refusal.as_str())
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
    pub fn set_aside(&mut self, position: Position, kind: Kind, now: Instant) -> bool {
        let left = Aside {
            kind,
            met: now,
            seen: now,
            tried: None,
        };
        match self.aside.get_mut(&position) {
            Some(known) => {
                *known = left;
                false
            }
            None => self.aside.len() < MOST && self.aside.insert(position, left).is_none(),
        }
    }

    /// Forgets messages that are set aside and no longer there, as far as claims can tell.
    pub fn forget(&mut self, now: Instant) {
        let within = |at: Instant| now.saturating_duration_since(at) < MET_WITHIN;
        self.aside
            .retain(|_, aside| within(aside.seen) && aside.tried.is_none_or(within));
        self.unmarkable.retain(|_, until| now < *until);
    }

    /// These messages could not be marked. If the relay does not settle one before `until`, another relay did, or somebody
    /// deleted it.
    pub fn not_marked(&mut self, messages: impl IntoIterator<Item = Position>, until: Instant) {
        for position in messages {
            if let Some(known) = self.unmarkable.get_mut(&position) {
                *known = until.max(*known);
            } else if self.unmarkable.len() < MOST {
                self.unmarkable.insert(position, until);
            }
        }
    }

    /// The marks of other messages prove nothing about those that cannot be marked: they are tried at other times.
    pub fn some_are_not_marked(&self) -> bool {
        !self.aside.is_empty() || !self.unmarkable.is_empty()
    }

    /// Number of messages that are set aside.
    pub fn aside(&self) -> usize {
        self.aside.len()
    }

    /// What a claim of these lanes does not read: most of the messages that are set aside, and what must not overtake them.
    /// They stay due, or new, and would keep those behind them from ever being read. The few that no claim met for longest
    /// are read and rehearsed again: at most half of what the claim reads, and sometimes none, because one may be all of that.
    pub fn passed_over(
        &mut self,
        lanes: &[Lane],
        reads: usize,
        now: Instant,
        rng: &mut impl Rng,
    ) -> PassedOver {
        let mut passed = PassedOver::default();
        if self.aside.is_empty() {
            return passed;
        }
        // The first message of each key stands for those after it: they are read with it.
        let mut heads: HashMap<(Lane, i64), Position> = HashMap::new();
        let mut turns = Vec::new();
        for (position, aside) in &mut self.aside {
            if !lanes.contains(&position.lane) {
                continue;
            }
            aside.seen = now;
            match aside.kind {
                Kind::New { key: Some(key) } => {
                    let head = heads.entry((position.lane, key)).or_insert(*position);
                    *head = (*head).min(*position);
                }
                Kind::New { key: None } | Kind::Filed => turns.push(*position),
            }
        }
        turns.extend(heads.into_values());
        turns.sort_unstable_by_key(|position| (self.aside[position].met, *position));
        let most = (reads / 2).clamp(1, READ_AGAIN);
        let again = rng.random_range(0..=most).min(turns.len());
        for position in turns.drain(..again) {
            if let Some(aside) = self.aside.get_mut(&position) {
                aside.tried.get_or_insert(now);
            }
        }
        for position in turns {
            match self.aside[&position].kind {
                Kind::Filed => passed.filed.push(position.id),
                Kind::New { key } => {
                    match key {
                        Some(key) => passed.keys.push(key),
                        None => passed.new.push(position.id),
                    }
                    passed.lanes.push(position.lane);
                }
            }
        }
        passed.lanes.sort_unstable();
        passed.lanes.dedup();
        passed
    }

    pub fn is_aside(&self, position: Position) -> bool {
        self.aside.contains_key(&position)
    }

    /// A claim committed with this number of marked messages.
    pub fn marked(&mut self, messages: usize, batch_size: usize) {
        self.refused_commits = 0;
        if let Some(allowed) = self.allowed
            && messages >= allowed
        {
            let next = allowed.saturating_mul(2);
            self.allowed = (next < batch_size).then_some(next);
        }
    }

    /// A claim committed the outcomes of these messages: sent, dead, or waiting.
    pub fn settled(&mut self, positions: impl IntoIterator<Item = Position>) {
        if self.suspects.is_empty() && self.uncommitted.is_empty() && !self.some_are_not_marked() {
            return;
        }
        for position in positions {
            self.unmarkable.remove(&position);
            self.suspects.remove(&position);
            self.uncommitted.remove(&position);
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

    const FILED: Kind = Kind::Filed;
    const NEW: Kind = Kind::New { key: None };

    fn of_key(key: i64) -> Kind {
        Kind::New { key: Some(key) }
    }

    /// Half of them are filed.
    #[test]
    fn a_claim_passes_over_most_of_the_messages_of_its_lanes_that_are_set_aside() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        let mut now = now();
        assert_eq!(
            caution.passed_over(&[0], 500, now, rng),
            PassedOver::default()
        );
        let kind = |id: i64| if id % 2 == 0 { FILED } else { NEW };
        for id in 0..100 {
            caution.set_aside(at(id), kind(id), now);
        }
        caution.set_aside(Position { lane: 1, id: 100 }, NEW, now);
        let mut read = HashSet::new();
        let mut most = 0;
        for claim in 1..=1000 {
            now += Duration::from_millis(1);
            let PassedOver {
                filed, new, lanes, ..
            } = caution.passed_over(&[0], 500, now, rng);
            assert!(filed.iter().all(|id| kind(*id) == FILED) && lanes == [0]);
            assert!(new.iter().all(|id| *id < 100 && kind(*id) == NEW));
            let passed_over: HashSet<i64> = filed.into_iter().chain(new).collect();
            assert!(passed_over.len() >= 100 - READ_AGAIN);
            most = most.max(passed_over.len());
            for id in (0..100).filter(|id| !passed_over.contains(id)) {
                assert!(!caution.set_aside(at(id), kind(id), now));
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
    fn at_most_half_of_what_a_claim_reads_is_read_again() {
        let mut caution = Caution::default();
        let now = now();
        for id in 0..100 {
            caution.set_aside(at(id), NEW, now);
        }
        for (reads, most) in [(1, 1), (2, 1), (4, 2), (10, 5), (500, READ_AGAIN)] {
            let claims = (0..1000).map(|_| {
                let passed = caution.passed_over(&[0], reads, now, &mut rand::rng());
                100 - passed.new.len()
            });
            let again: HashSet<usize> = claims.collect();
            assert_eq!(again, (0..=most).collect(), "{reads}");
        }
    }

    #[test]
    fn a_key_is_passed_over_as_a_whole_until_its_first_message_has_its_turn() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        let now = now();
        for id in 0..1000 {
            caution.set_aside(at(id), of_key(7), now);
        }
        let mut turns = HashSet::new();
        for _ in 0..1000 {
            let passed = caution.passed_over(&[0], 500, now, rng);
            assert!(passed.new.is_empty() && passed.filed.is_empty());
            let lane: &[Lane] = if passed.keys.is_empty() { &[] } else { &[0] };
            assert_eq!(passed.lanes, lane);
            turns.insert(passed.keys);
        }
        assert_eq!(turns, HashSet::from([vec![], vec![7]]));
    }

    #[test]
    fn a_message_whose_commit_was_refused_waits_until_it_is_filed() {
        let mut caution = Caution::default();
        assert_eq!(caution.uncommitted(at(1)), None);
        caution.failed([at(1)]);
        caution.commit_refused([at(1)], "no".to_owned());
        caution.commit_refused([at(2)], "still no".to_owned());
        assert_eq!(caution.uncommitted(at(1)), Some("still no"));
        assert_eq!(caution.refused_commits(), 2);
        caution.settled([at(1)]);
        assert_eq!(caution.uncommitted(at(1)), None);
        assert_eq!(caution.refused_commits(), 2, "it is filed, and not marked");
        caution.marked(1, 500);
        assert_eq!(caution.refused_commits(), 0);
        assert_eq!(caution.uncommitted(at(2)), Some("still no"));
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
    fn a_message_is_set_aside_once_and_until_it_is_settled() {
        let mut caution = Caution::default();
        let now = now();
        assert!(!caution.is_aside(at(1)));
        assert!(caution.set_aside(at(1), NEW, now) && !caution.set_aside(at(1), NEW, now));
        assert!(caution.is_aside(at(1)) && !caution.is_aside(at(2)));
        assert!(caution.set_aside(at(2), NEW, now));
        assert_eq!(caution.aside(), 2);
        caution.settled([at(1)]);
        assert_eq!(caution.aside(), 1);
        assert!(caution.set_aside(at(1), NEW, now));
    }

    #[test]
    fn a_message_that_was_not_marked_is_known_until_it_is_settled_or_its_retry_is_long_past() {
        let mut caution = Caution::default();
        let now = now();
        let later = now + Duration::from_secs(5);
        assert!(!caution.some_are_not_marked());
        caution.not_marked([at(1), at(2)], later);
        // An earlier time does not shorten it.
        caution.not_marked([at(2)], now);
        caution.settled([at(1), at(7)]);
        caution.forget(now);
        assert!(caution.some_are_not_marked());
        caution.settled([at(2)]);
        assert!(!caution.some_are_not_marked());
        caution.not_marked([at(3)], later);
        caution.forget(later);
        assert!(!caution.some_are_not_marked());
        caution.set_aside(at(4), NEW, now);
        assert!(caution.some_are_not_marked());
    }

    /// Another relay settled it, or a person deleted it.
    #[test]
    fn a_message_that_is_set_aside_and_never_met_again_is_forgotten() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        let began = now();
        caution.set_aside(at(1), NEW, began);
        caution.set_aside(at(2), NEW, began);
        caution.set_aside(Position { lane: 1, id: 3 }, NEW, began);
        let mut now = began;
        while now < began + MET_WITHIN {
            now += Duration::from_secs(1);
            caution.passed_over(&[0], 500, now, rng);
            // Claims read the other, and do not find it.
            caution.set_aside(at(2), NEW, now);
            caution.forget(now);
        }
        assert!(
            !caution.is_aside(Position { lane: 1, id: 3 }),
            "no claim of its lane"
        );
        for _ in 0..60 {
            now += Duration::from_secs(1);
            caution.passed_over(&[0], 500, now, rng);
            caution.set_aside(at(2), NEW, now);
            caution.forget(now);
        }
        assert!(!caution.is_aside(at(1)) && caution.is_aside(at(2)));
    }

    /// Each has its turn late.
    #[test]
    fn a_message_that_claims_pass_over_is_not_forgotten() {
        let mut caution = Caution::default();
        let rng = &mut rand::rng();
        let mut now = now();
        for id in 0..2_000 {
            caution.set_aside(at(id), NEW, now);
        }
        for _ in 0..120 {
            now += Duration::from_secs(1);
            let passed: HashSet<i64> = caution
                .passed_over(&[0], 500, now, rng)
                .new
                .into_iter()
                .collect();
            for id in (0..2_000).filter(|id| !passed.contains(id)) {
                caution.set_aside(at(id), NEW, now);
            }
            caution.forget(now);
        }
        assert_eq!(caution.aside(), 2_000);
    }

    #[test]
    fn messages_that_are_set_aside_are_bounded() {
        let mut caution = Caution::default();
        let most = i64::try_from(MOST).unwrap();
        let now = now();
        assert!((0..most).all(|id| caution.set_aside(at(id), NEW, now)));
        assert!(!caution.set_aside(at(most), NEW, now));
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
