//! A claim as plain data: lanes that are held, and their next messages. No I/O.

use std::collections::HashMap;

use crate::{
    circuit::Destination,
    low_water::Mark,
    message::{Lane, Message, Position},
};

/// How much one claim may read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// New messages, shared among the lanes.
    pub fresh: usize,
    /// Messages in all.
    pub batch_size: usize,
    /// Bytes of bodies in all. The first message is taken whatever its size.
    pub batch_bytes: u64,
    /// A body above this is refused without being fetched.
    pub max_payload_bytes: u64,
}

impl Limits {
    /// As many bodies of this size as a batch has messages fit into a batch's bytes.
    pub fn small_body(&self) -> u64 {
        let fair = self.batch_bytes / self.batch_size.max(1) as u64;
        fair.min(self.max_payload_bytes)
    }
}

/// A lane held by this claim until it commits.
#[derive(Debug, Clone, Copy)]
pub struct HeldLane {
    pub lane: Lane,
    pub mark: Mark,
    /// New messages that this claim reads of it, at most.
    pub share: usize,
}

/// Where a row's version lies: PostgreSQL's `ctid`.
/// <https://www.postgresql.org/docs/current/ddl-system-columns.html>
///
/// It finds a row without its index, for as long as nobody writes another version of it. So it is never believed alone:
/// the position is compared as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ctid {
    pub block: u32,
    /// Within the block, from 1.
    pub line: u16,
}

/// A message of a held lane.
#[derive(Debug)]
pub struct Candidate {
    pub message: Message,
    pub ctid: Ctid,
    /// The transaction that wrote what is published of it.
    pub tx: u64,
    pub key_hash: Option<i64>,
    /// Came from `outbox.waiting`.
    pub filed: bool,
    /// Its `available_at` lies ahead: to be filed, not published.
    pub scheduled: bool,
    /// Nearest earlier message of its key that waits and holds it back.
    pub after: Option<i64>,
    pub waited: Waited,
}

/// What `outbox.waiting` says of a message that matters for its next attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// Chosen to probe its destination.
    pub probe: bool,
    /// The last attempt to mark it failed.
    pub unmarkable: bool,
    /// It was held for this destination.
    pub destination: Option<Destination>,
}

/// A filed message that is in `outbox.message` no more.
#[derive(Debug, Clone, Copy)]
pub struct Orphan {
    pub position: Position,
    pub key_hash: Option<i64>,
}

/// What a claim holds. Open until a settle commits, or until the session rolls back or dies.
#[derive(Debug)]
pub struct Claim {
    pub lanes: Vec<HeldLane>,
    pub candidates: Vec<Candidate>,
    /// Filed, but the message itself is gone (deleted by hand): to be forgotten.
    pub orphans: Vec<Orphan>,
    pub own_tx: i64,
    pub xmin: i64,
    /// The last position of all lanes that was drawn before `own_tx` was assigned.
    pub drawn: i64,
    /// The database's clock when the claim began, microseconds since the Unix epoch.
    pub now_us: i64,
    pub limits: Limits,
    /// Messages were read and left out: their bodies would not fit, or were gone. So the numbers of those that are left
    /// do not tell whether the read stopped at a limit, and the mark must not pass the last of them.
    pub cut_short: bool,
}

/// How many of the first messages fit into a batch; one always does. A body above the limit is never fetched.
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
    /// For each held lane: true when the read ended before its limits, so nothing more is there.
    pub fn exhausted(&self) -> HashMap<Lane, bool> {
        let cut =
            self.cut_short || self.candidates.len() + self.orphans.len() >= self.limits.batch_size;
        let mut fresh: HashMap<Lane, usize> = HashMap::new();
        let mut due: HashMap<Lane, usize> = HashMap::new();
        for c in &self.candidates {
            *(if c.filed { &mut due } else { &mut fresh })
                .entry(c.message.position.lane)
                .or_default() += 1;
        }
        let full = |n: Option<&usize>, limit: usize| n.is_some_and(|n| *n >= limit);
        let due_limit = self.limits.batch_size.div_ceil(2);
        let due_cut = self.candidates.iter().filter(|c| c.filed).count() >= due_limit;
        self.lanes
            .iter()
            .map(|l| {
                (
                    l.lane,
                    !cut && !due_cut && !full(fresh.get(&l.lane), l.share),
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::sample;

    const LIMITS: Limits = Limits {
        fresh: 10,
        batch_size: 10,
        batch_bytes: 100,
        max_payload_bytes: 60,
    };

    fn candidate(lane: Lane, body_size: u64) -> Candidate {
        let mut message = Message {
            body_size,
            ..sample()
        };
        message.position.lane = lane;
        Candidate {
            message,
            ctid: Ctid::default(),
            tx: 0,
            key_hash: None,
            filed: false,
            scheduled: false,
            after: None,
            waited: Waited::default(),
        }
    }

    fn fits(sizes: &[u64]) -> usize {
        let candidates: Vec<Candidate> = sizes.iter().map(|size| candidate(1, *size)).collect();
        fitting(&candidates, LIMITS)
    }

    /// Lane 1 may read eight new messages, lane 2 three: rounded up, one more than the batch may have.
    fn exhausted(of_one: usize, of_two: usize, cut_short: bool) -> [bool; 2] {
        let lane = |lane, share| HeldLane {
            lane,
            mark: Mark {
                low_water: 0,
                candidate: None,
            },
            share,
        };
        let lanes = [vec![1; of_one], vec![2; of_two]].concat();
        let claim = Claim {
            lanes: vec![lane(1, 8), lane(2, 3)],
            candidates: lanes.into_iter().map(|lane| candidate(lane, 1)).collect(),
            orphans: Vec::new(),
            cut_short,
            own_tx: 0,
            xmin: 0,
            drawn: 0,
            now_us: 0,
            limits: LIMITS,
        };
        let exhausted = claim.exhausted();
        [exhausted[&1], exhausted[&2]]
    }

    #[test]
    fn a_lane_is_exhausted_when_it_had_less_than_its_share() {
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
    fn a_batch_ends_before_the_body_that_does_not_fit_and_never_before_the_first() {
        assert_eq!(fits(&[40, 60, 0, 0]), 4);
        assert_eq!(fits(&[40, 60, 1, 0]), 2);
        assert_eq!(fits(&[50, 60, 10]), 1);
        // Too large for anybody: refused, and never fetched.
        assert_eq!(fits(&[1000, 50, 1000, 50]), 4);
    }

    #[test]
    fn bodies_that_come_along_fit_a_batch_and_are_never_above_the_limit() {
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

    /// Lane 1 may read eight new messages; a batch has ten, and five of them at most were filed.
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
        let mark = Mark {
            low_water: 0,
            candidate: None,
        };
        let claim = Claim {
            lanes: vec![HeldLane {
                lane: 1,
                mark,
                share: 8,
            }],
            candidates: of_lane(filed, true).chain(of_lane(fresh, false)).collect(),
            orphans: vec![orphan; orphans],
            own_tx: 0,
            xmin: 0,
            drawn: 0,
            now_us: 0,
            limits: LIMITS,
            cut_short: false,
        };
        claim.exhausted()[&1]
    }

    #[test]
    fn filed_messages_fill_their_half_of_a_batch_and_no_share_of_a_lane() {
        assert!(exhausted_with(4, 5, 0));
        assert!(!exhausted_with(5, 0, 0), "more may be due");
        assert!(!exhausted_with(0, 8, 0), "more may be new");
    }

    #[test]
    fn messages_that_are_gone_were_read_all_the_same() {
        assert!(exhausted_with(1, 7, 1));
        assert!(!exhausted_with(2, 7, 1));
        assert!(!exhausted_with(0, 0, 10));
    }
}
