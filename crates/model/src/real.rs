//! The relay's own code in one place, and the conversions between the model's data and the relay's data.

use std::time::Duration;

pub use outbox_core::{
    backoff::RetryPolicy,
    caution::Caution,
    circuit,
    claim::{Candidate, Claim, Ctid, HeldLane, Item, Limits, Read, Snapshot, Waited},
    low_water,
    message::{Message, Position},
    outcome::{self, Answer, Outcome},
    plan::{Ordering, Plan},
    reason::Reason,
    scheduling::{Tuning, shares},
    settlement::{self, Cause, Settlement},
};
pub use std::time::Instant;
use uuid::Uuid;

use crate::{
    Machine,
    state::{self, Decided, Held, Reply, Row, Work, small},
};

/// The destination of all messages in a scenario with circuits.
pub const DESTINATION: circuit::Destination = circuit::Destination(1);

pub const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: 2,
    backoff_initial: Duration::from_secs(1),
    backoff_max: Duration::from_secs(1),
};

impl Machine {
    pub(crate) fn candidate(&self, c: &state::Candidate) -> Candidate {
        Candidate {
            message: Message {
                position: self.position(c.row, c.key),
                message_id: Uuid::from_u128(c.row.into()),
                aggregate_type: String::new(),
                aggregate_id: None,
                event_type: String::new(),
                content_type: String::new(),
                headers: None,
                headers_size: 0,
                exchange: None,
                routing_key: None,
                created_at_us: 0,
                attempts: c.attempts.into(),
                replay: false,
                body_size: 0,
                body: None,
                damage: None,
            },
            ctid: Ctid::default(),
            tx: 0,
            key_hash: Some(c.key.into()),
            filed: c.filed,
            scheduled: false,
            after: c.after.map(id),
            waited: Waited {
                probe: c.probe,
                unmarkable: c.unmarkable,
                destination: c.was_held.then_some(DESTINATION),
            },
        }
    }

    pub(crate) fn position(&self, row: Row, key: state::Key) -> Position {
        Position {
            lane: self.lane_of(key).into(),
            id: id(row),
        }
    }

    pub(crate) fn claim_of(
        &self,
        held: &Held,
        candidates: Vec<Candidate>,
        limits: Limits,
    ) -> Claim {
        let lanes = held.lanes.iter().zip(&held.marks).zip(held.shares(limits));
        let lanes: Vec<HeldLane> = lanes
            .map(|((lane, mark), share)| HeldLane {
                lane: (*lane).into(),
                mark: mark.real(),
                share,
            })
            .collect();
        let read = Read {
            candidates,
            ..Read::default()
        };
        Claim::new(&lanes, read, limits, snapshot(held))
    }

    /// The part of a claim that a plan uses: no lanes.
    pub(crate) fn messages_of(&self, work: &Work) -> Claim {
        let candidates = self.candidates(work).into_iter();
        Claim {
            lanes: Vec::new(),
            items: candidates.map(Item::new).collect(),
            orphans: Vec::new(),
            snapshot: snapshot(&work.held),
            cut_short: false,
        }
    }
}

fn snapshot(held: &Held) -> Snapshot {
    Snapshot {
        own_tx: held.own_tx.into(),
        xmin: held.xmin.into(),
        drawn: held.drawn.into(),
        now_us: 0,
    }
}

/// The position of a row.
pub fn id(row: Row) -> i64 {
    i64::from(row) + 1
}

pub fn limits(messages: usize) -> Limits {
    Limits {
        fresh: messages,
        batch_size: messages,
        batch_bytes: u64::MAX,
        max_payload_bytes: u64::MAX,
    }
}

pub fn answer(reply: Reply) -> Answer {
    match reply {
        Reply::Ack => Answer::Delivered,
        Reply::Return => Answer::Unroutable {
            code: 312,
            text: String::new(),
        },
        Reply::Nack => Answer::Nacked,
    }
}

pub fn decided(outcome: &Outcome) -> Decided {
    match outcome {
        Outcome::Sent => Decided::Sent,
        Outcome::Retry {
            attempts, reason, ..
        } => Decided::Retry {
            attempts: small((*attempts).into()),
            unmarkable: *reason == Reason::Unmarkable,
        },
        Outcome::Dead { attempts, .. } => Decided::Dead {
            attempts: small((*attempts).into()),
        },
        Outcome::Held { held, attempts } => Decided::Held {
            attempts: small((*attempts).into()),
            failures: small(held.failures.into()),
        },
        Outcome::Behind => Decided::Behind,
        Outcome::Untouched => Decided::Untouched,
    }
}

pub fn outcome(decided: Decided) -> Outcome {
    match decided {
        Decided::Sent => Outcome::Sent,
        Decided::Retry {
            attempts,
            unmarkable,
        } => Outcome::Retry {
            reason: if unmarkable {
                Reason::Unmarkable
            } else {
                Reason::Unroutable
            },
            attempts: attempts.into(),
            delay: Duration::ZERO,
            error: String::new(),
        },
        Decided::Dead { attempts } => Outcome::Dead {
            reason: Reason::Unroutable,
            attempts: attempts.into(),
            error: String::new(),
        },
        Decided::Held { attempts, failures } => Outcome::Held {
            held: circuit::Held {
                destination: DESTINATION,
                failures: failures.into(),
                why: why(Reason::Unroutable),
            },
            attempts: attempts.into(),
        },
        Decided::Behind => Outcome::Behind,
        Decided::Untouched => Outcome::Untouched,
    }
}

pub fn why(reason: Reason) -> circuit::Why {
    circuit::Why {
        reason,
        error: String::new(),
    }
}
