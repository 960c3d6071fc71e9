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

    /// The server refused the COMMIT of a claim that had published these messages. If it was one, that one is to blame. Of
    /// several, the next claims tell, which publish one message each.
    pub fn commit_refused(&mut self, published: &[Position], why: String) {
        self.refused_commits = self.refused_commits.saturating_add(1);
        if let [culprit] = published
            && self.uncommitted.len() < MOST
        {
            self.refusal = why;
            self.uncommitted.insert(*culprit);
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
mod tests;
