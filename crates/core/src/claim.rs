//! A claim as plain data: its lanes, their next messages, and the outcome of each message. No I/O.

use std::collections::HashMap;

use rand::Rng;

use crate::{
    backoff::RetryPolicy,
    circuit::Destination,
    envelope::Envelope,
    low_water::Mark,
    message::{Lane, Message, Position},
    outcome::{self, Answer, Outcome},
};

/// Limits of one claim's read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// New messages, of all lanes together.
    pub fresh: usize,
    /// Messages, both new and filed.
    pub batch_size: usize,
    /// Bytes of all bodies. The first message is read even if its body is larger.
    pub batch_bytes: u64,
    /// A larger body is refused and not fetched.
    pub max_payload_bytes: u64,
}

impl Limits {
    /// Largest size of a body with which a full batch of messages keeps to `batch_bytes`.
    pub fn small_body(&self) -> u64 {
        let fair = self.batch_bytes / self.batch_size.max(1) as u64;
        fair.min(self.max_payload_bytes)
    }
}

/// A lane that a claim has locked and not yet read.
#[derive(Debug, Clone, Copy)]
pub struct HeldLane {
    pub lane: Lane,
    pub mark: Mark,
    /// Maximum number of new messages that the claim reads from this lane.
    pub share: usize,
}

/// A lane that a claim has locked and read.
#[derive(Debug, Clone, Copy)]
pub struct ReadLane {
    pub lane: Lane,
    pub mark: Mark,
    /// The read stopped at no limit, so it found every message of this lane that its snapshot shows, but for those that it
    /// passed over.
    pub exhausted: bool,
    /// The read passed over new messages of this lane, so its mark does not move.
    pub passed_over: bool,
}

/// Physical location of a row version: PostgreSQL's `ctid`.
/// <https://www.postgresql.org/docs/current/ddl-system-columns.html>
///
/// It finds a row without an index until another version of the row is written. A `ctid` alone proves nothing, so the
/// statements compare the position as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ctid {
    pub block: u32,
    /// Within the block; starts at 1.
    pub line: u16,
}

/// A message of a claimed lane.
#[derive(Debug)]
pub struct Candidate {
    pub message: Message,
    pub ctid: Ctid,
    /// The transaction that last wrote the columns that are published.
    pub tx: u64,
    pub key_hash: Option<i64>,
    /// Came from `outbox.waiting`.
    pub filed: bool,
    /// `available_at` is in the future: the message is filed and not published.
    pub scheduled: bool,
    /// Nearest earlier message of the same key that waits and blocks this one.
    pub after: Option<i64>,
    pub waited: Waited,
}

/// The columns of `outbox.waiting` that affect the next attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// Selected to probe its destination.
    pub probe: bool,
    /// The last attempt to mark it failed.
    pub unmarkable: bool,
    /// The destination for which the message was held.
    pub destination: Option<Destination>,
}

/// A filed message that was deleted from `outbox.message`.
#[derive(Debug, Clone, Copy)]
pub struct Orphan {
    pub position: Position,
    pub key_hash: Option<i64>,
}

/// State of the database when the claim began.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    pub own_tx: i64,
    pub xmin: i64,
    /// The last position of all lanes drawn before `own_tx` was assigned.
    pub drawn: i64,
    /// The database's clock, microseconds since the Unix epoch.
    pub now_us: i64,
}

/// The result of a claim's read.
#[derive(Debug, Default)]
pub struct Read {
    pub candidates: Vec<Candidate>,
    pub orphans: Vec<Orphan>,
    /// Messages that were read were left out, because their bodies do not fit or are gone. The number of candidates
    /// then does not tell whether the read stopped at a limit, and the mark must not pass the last candidate.
    pub cut_short: bool,
    /// Lanes of which it passed over new messages.
    pub passed_over: Vec<Lane>,
}

/// A message of a claim and its outcome so far. Only the item can change the outcome, so an outcome cannot reach
/// another message.
#[derive(Debug)]
pub struct Item {
    pub candidate: Candidate,
    /// Built and not yet sent. A refused message has no envelope, so it cannot be sent.
    pub(crate) envelope: Option<Envelope>,
    outcome: Outcome,
    left: bool,
}

impl Item {
    pub fn new(candidate: Candidate) -> Self {
        Self {
            candidate,
            envelope: None,
            outcome: Outcome::Untouched,
            left: false,
        }
    }

    /// This claim neither publishes nor files the message, nor the later messages of its key.
    pub fn leave(&mut self) {
        self.outcome = Outcome::Untouched;
        self.left = true;
    }

    #[inline]
    pub fn is_left(&self) -> bool {
        self.left
    }

    #[inline]
    pub fn position(&self) -> Position {
        self.candidate.message.position
    }

    #[inline]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Records the outcome that follows from this message's answer.
    #[inline]
    pub fn decide(&mut self, answer: &Answer, policy: &RetryPolicy, rng: &mut impl Rng) {
        self.outcome = outcome::decide(answer, self.candidate.message.attempts, policy, rng);
    }

    /// Records an outcome that needs no answer: the message waits behind another one, or is held.
    #[inline]
    pub fn record(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

/// The contents of a claim. The claim stays open until its settle commits, or until the session rolls back or dies.
#[derive(Debug)]
pub struct Claim {
    pub lanes: Vec<ReadLane>,
    pub items: Vec<Item>,
    /// Filed messages that were deleted by hand: their rows in `outbox.waiting` are deleted.
    pub orphans: Vec<Orphan>,
    pub snapshot: Snapshot,
    /// See [`Read::cut_short`].
    pub cut_short: bool,
}

/// Number of messages at the front that fit into a batch, at least one. A body above the limit is not fetched and takes
/// no room.
pub fn fitting(candidates: &[Candidate], limits: Limits) -> usize {
    let mut bytes: u64 = 0;
    let fits = |size: u64| {
        if size <= limits.max_payload_bytes {
            bytes = bytes.saturating_add(size);
        }
        bytes <= limits.batch_bytes
    };
    let sizes = candidates.iter().map(|c| c.message.body_size);
    sizes.map(fits).take_while(|fits| *fits).count().max(1)
}

impl Claim {
    /// `limits`: the limits of the `read`.
    pub fn new(held: &[HeldLane], read: Read, limits: Limits, snapshot: Snapshot) -> Self {
        Self {
            lanes: lanes(held, &read, limits),
            items: read.candidates.into_iter().map(Item::new).collect(),
            orphans: read.orphans,
            snapshot,
            cut_short: read.cut_short,
        }
    }

    /// These messages did not get their outcome.
    pub fn forget(&mut self, positions: &[Position]) {
        for item in &mut self.items {
            if positions.contains(&item.position()) {
                item.record(Outcome::Untouched);
            }
        }
    }

    /// The positions of the messages whose outcome satisfies `of`.
    pub fn positions(&self, of: impl Fn(&Outcome) -> bool) -> impl Iterator<Item = Position> {
        let with = self.items.iter().filter(move |item| of(&item.outcome));
        with.map(Item::position)
    }
}

/// Finds the exhausted lanes. A limit of the whole claim may have cut the read of any lane, so then no lane is
/// exhausted.
fn lanes(held: &[HeldLane], read: &Read, limits: Limits) -> Vec<ReadLane> {
    let mut fresh: HashMap<Lane, usize> = HashMap::new();
    let mut filed = 0;
    for candidate in &read.candidates {
        if candidate.filed {
            filed += 1;
        } else {
            *fresh.entry(candidate.message.position.lane).or_default() += 1;
        }
    }
    let batch_is_full = read.candidates.len() + read.orphans.len() >= limits.batch_size;
    let more_may_be_due = filed >= limits.batch_size.div_ceil(2);
    let cut = read.cut_short || batch_is_full || more_may_be_due;
    let share_is_full = |held: &HeldLane| fresh.get(&held.lane).is_some_and(|n| *n >= held.share);
    held.iter()
        .map(|held| ReadLane {
            lane: held.lane,
            mark: held.mark,
            exhausted: !cut && !share_is_full(held),
            passed_over: read.passed_over.contains(&held.lane),
        })
        .collect()
}

#[cfg(test)]
pub(crate) fn sample(id: i64, key_hash: Option<i64>) -> Candidate {
    let mut message = crate::message::sample();
    message.position.id = id;
    Candidate {
        message,
        ctid: Ctid::default(),
        tx: 0,
        key_hash,
        filed: false,
        scheduled: false,
        after: None,
        waited: Waited::default(),
    }
}

/// A claim of the lane of `message::sample`, read to its end.
#[cfg(test)]
pub(crate) fn sample_claim(candidates: Vec<Candidate>, orphans: Vec<Orphan>) -> Claim {
    let mark = Mark {
        low_water: 0,
        candidate: None,
    };
    let lane = ReadLane {
        lane: crate::message::sample().position.lane,
        mark,
        exhausted: true,
        passed_over: false,
    };
    Claim {
        lanes: vec![lane],
        items: candidates.into_iter().map(Item::new).collect(),
        orphans,
        snapshot: Snapshot {
            own_tx: 10,
            xmin: 10,
            drawn: 10,
            now_us: 0,
        },
        cut_short: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: Snapshot = Snapshot {
        own_tx: 0,
        xmin: 0,
        drawn: 0,
        now_us: 0,
    };
    const LIMITS: Limits = Limits {
        fresh: 10,
        batch_size: 10,
        batch_bytes: 100,
        max_payload_bytes: 60,
    };

    fn candidate(lane: Lane, body_size: u64) -> Candidate {
        let mut candidate = sample(77, None);
        candidate.message.position.lane = lane;
        candidate.message.body_size = body_size;
        candidate
    }

    fn fits(sizes: &[u64]) -> usize {
        let candidates: Vec<Candidate> = sizes.iter().map(|size| candidate(1, *size)).collect();
        fitting(&candidates, LIMITS)
    }

    fn held(lane: Lane, share: usize) -> HeldLane {
        let mark = Mark {
            low_water: 0,
            candidate: None,
        };
        HeldLane { lane, mark, share }
    }

    /// Lane 1 may read eight new messages, lane 2 three. The shares are rounded up: their sum is one more than the
    /// batch.
    fn exhausted(of_one: usize, of_two: usize, cut_short: bool) -> [bool; 2] {
        let lanes = [vec![1; of_one], vec![2; of_two]].concat();
        let read = Read {
            candidates: lanes.into_iter().map(|lane| candidate(lane, 1)).collect(),
            cut_short,
            ..Read::default()
        };
        let claim = Claim::new(&[held(1, 8), held(2, 3)], read, LIMITS, SNAPSHOT);
        assert_eq!([claim.lanes[0].lane, claim.lanes[1].lane], [1, 2]);
        [claim.lanes[0].exhausted, claim.lanes[1].exhausted]
    }

    #[test]
    fn a_lane_with_less_than_its_share_is_exhausted() {
        assert_eq!(exhausted(0, 0, false), [true, true]);
        assert_eq!(exhausted(7, 2, false), [true, true]);
        assert_eq!(exhausted(6, 3, false), [true, false]);
        assert_eq!(exhausted(8, 0, false), [false, true]);
        assert_eq!(exhausted(8, 2, false), [false, false], "the batch is full");
        assert_eq!(
            exhausted(7, 2, true),
            [false, false],
            "large bodies are left"
        );
    }

    #[test]
    fn a_batch_ends_before_a_body_that_does_not_fit_but_has_at_least_one_message() {
        assert_eq!(fits(&[40, 60, 0, 0]), 4);
        assert_eq!(fits(&[40, 60, 1, 0]), 2);
        assert_eq!(fits(&[50, 60, 10]), 1);
        // A body that is too large for any batch is refused and not fetched.
        assert_eq!(fits(&[1000, 50, 1000, 50]), 4);
    }

    #[test]
    fn small_bodies_fit_a_batch_and_keep_to_the_limit() {
        assert_eq!(LIMITS.small_body(), 10);
        let large_batch = Limits {
            batch_bytes: u64::MAX,
            ..LIMITS
        };
        assert_eq!(large_batch.small_body(), 60);
        let no_messages = Limits {
            batch_size: 0,
            ..LIMITS
        };
        assert_eq!(no_messages.small_body(), 60);
    }

    /// Lane 1 may read eight new messages; a batch has ten messages, at most five of them filed.
    fn exhausted_with(filed: usize, fresh: usize, orphans: usize) -> bool {
        let of_lane = |n: usize, filed| {
            (0..n).map(move |_| Candidate {
                filed,
                ..candidate(1, 1)
            })
        };
        let orphan = Orphan {
            position: Position { lane: 1, id: 1 },
            key_hash: None,
        };
        let read = Read {
            candidates: of_lane(filed, true).chain(of_lane(fresh, false)).collect(),
            orphans: vec![orphan; orphans],
            ..Read::default()
        };
        Claim::new(&[held(1, 8)], read, LIMITS, SNAPSHOT).lanes[0].exhausted
    }

    #[test]
    fn filed_messages_use_half_of_a_batch_and_not_the_share_of_a_lane() {
        assert!(exhausted_with(4, 5, 0));
        assert!(!exhausted_with(5, 0, 0), "more may be due");
        assert!(!exhausted_with(0, 8, 0), "more may be new");
    }

    #[test]
    fn deleted_messages_count_as_read() {
        assert!(exhausted_with(1, 7, 1));
        assert!(!exhausted_with(2, 7, 1));
        assert!(!exhausted_with(0, 0, 10));
    }

    #[test]
    fn positions_are_selected_by_outcome() {
        let mut read = Read::default();
        for id in 1..=3 {
            let mut candidate = candidate(1, 1);
            candidate.message.position.id = id;
            read.candidates.push(candidate);
        }
        let mut claim = Claim::new(&[held(1, 8)], read, LIMITS, SNAPSHOT);
        claim.items[1].record(Outcome::Sent);
        let sent = claim.positions(|outcome| *outcome == Outcome::Sent);
        assert_eq!(sent.collect::<Vec<_>>(), [Position { lane: 1, id: 2 }]);
    }
}
