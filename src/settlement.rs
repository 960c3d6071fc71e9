//! What a claim's outcomes write, as plain data. No I/O.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    message::{Lane, Position},
    outbox::{
        claim::{Candidate, Claim},
        low_water::{self, Mark, Observation},
    },
    outcome::Outcome,
    reason::Reason,
};

/// Everything one settle writes.
#[derive(Debug, Default, PartialEq)]
pub struct Settlement {
    /// Confirmed, and marked for the first time.
    pub sent: Vec<Position>,
    /// To leave `outbox.waiting`.
    pub unfile: Vec<Position>,
    pub wait: Vec<Wait>,
    pub dead: Vec<Death>,
    /// Keys whose waiting head is settled: what stands behind it may go.
    pub release: Vec<(Lane, i64)>,
    pub marks: Vec<(Lane, Mark)>,
}

#[derive(Debug, PartialEq)]
pub struct Wait {
    pub position: Position,
    pub cause: Cause,
    pub delay: Duration,
    pub attempts: u32,
    pub reason: Option<Reason>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Retry,
    Scheduled,
    Behind,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Scheduled => "scheduled",
            Self::Behind => "behind",
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct Death {
    pub position: Position,
    pub reason: Reason,
    pub attempts: u32,
    pub error: String,
    pub replay: bool,
}

impl Settlement {
    /// Nothing to write: the claim can be rolled back.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `outcomes[i]` belongs to `claim.candidates[i]`; a scheduled candidate's is ignored. `stride` is how far a mark
/// must be able to move to be worth a write.
pub fn settlement(claim: &Claim, outcomes: &[Outcome], stride: i64) -> Settlement {
    debug_assert_eq!(claim.candidates.len(), outcomes.len());
    let mut s = Settlement {
        unfile: claim.orphans.clone(),
        ..Settlement::default()
    };
    // Keys of which a message was settled out of outbox.waiting, and keys of which one is tried again: that one
    // releases the others. One that stands behind (it joined the end of the queue) will not: nobody would.
    let mut resolved: HashSet<(Lane, i64)> = HashSet::new();
    let mut tried_again: HashSet<(Lane, i64)> = HashSet::new();

    for (candidate, outcome) in claim.candidates.iter().zip(outcomes) {
        let message = &candidate.message;
        let position = message.position;
        let key = candidate.key_hash.map(|hash| (position.lane, hash));
        let wait = |cause, delay, attempts, reason, error| Wait {
            position,
            cause,
            delay,
            attempts,
            reason,
            error,
        };
        if candidate.scheduled {
            s.wait
                .push(wait(Cause::Scheduled, Duration::ZERO, 0, None, None));
            continue;
        }
        match outcome {
            Outcome::Sent => {
                // A replayed message keeps the time of its first confirm.
                if !message.replay {
                    s.sent.push(position);
                }
            }
            Outcome::Retry {
                reason,
                attempts,
                delay,
                error,
            } => {
                s.wait.push(wait(
                    Cause::Retry,
                    *delay,
                    *attempts,
                    Some(*reason),
                    Some(stored(error)),
                ));
            }
            Outcome::Dead {
                reason,
                attempts,
                error,
            } => s.dead.push(Death {
                position,
                reason: *reason,
                attempts: *attempts,
                error: stored(error),
                replay: message.replay,
            }),
            Outcome::Behind => s.wait.push(wait(
                Cause::Behind,
                Duration::ZERO,
                message.attempts,
                None,
                None,
            )),
            Outcome::Untouched => {}
        }
        match outcome {
            Outcome::Sent | Outcome::Dead { .. } => {
                if candidate.filed {
                    s.unfile.push(position);
                    resolved.extend(key);
                }
            }
            Outcome::Retry { .. } if !message.replay => tried_again.extend(key),
            // Left as it was, with its due time.
            Outcome::Untouched if candidate.filed && !message.replay => tried_again.extend(key),
            Outcome::Retry { .. } | Outcome::Behind | Outcome::Untouched => {}
        }
    }
    s.release = resolved.difference(&tried_again).copied().collect();
    s.release.sort_unstable();
    s.marks = marks(claim, outcomes, stride);
    s
}

/// How far each held lane is settled, and what that does to its mark.
fn marks(claim: &Claim, outcomes: &[Outcome], stride: i64) -> Vec<(Lane, Mark)> {
    let exhausted = claim.exhausted();
    let mut by_lane: HashMap<Lane, Vec<(&Candidate, &Outcome)>> = HashMap::new();
    for (candidate, outcome) in claim.candidates.iter().zip(outcomes) {
        // A filed message is found through outbox.waiting, wherever the mark stands.
        if !candidate.filed {
            by_lane
                .entry(candidate.message.position.lane)
                .or_default()
                .push((candidate, outcome));
        }
    }
    claim
        .lanes
        .iter()
        .filter_map(|held| {
            let read = by_lane
                .get(&held.lane)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let first_left = read
                .iter()
                .find(|(candidate, outcome)| {
                    !candidate.scheduled && **outcome == Outcome::Untouched
                })
                .map(|(candidate, _)| candidate.message.position.id);
            let last_read = read
                .last()
                .map(|(candidate, _)| candidate.message.position.id);
            let settled_through = match (first_left, last_read) {
                (Some(left), _) => left - 1,
                // Everything the snapshot showed of this lane is settled, a candidate seen earlier included.
                (None, last) if exhausted.get(&held.lane) == Some(&true) => {
                    let candidate = held.mark.candidate.map(|c| c.position);
                    last.or(candidate)
                        .max(candidate)
                        .unwrap_or(held.mark.low_water)
                }
                (None, Some(last)) => last,
                (None, None) => held.mark.low_water,
            };
            let seen = Observation {
                own_tx: claim.own_tx,
                xmin: claim.xmin,
                settled_through,
            };
            low_water::advance(held.mark, seen, stride).map(|mark| (held.lane, mark))
        })
        .collect()
}

/// Marks of lanes in which nothing is left to do. `last` is each lane's last position that was visible *before* the
/// claim: whatever the claim's read did not show at or below it is settled, or not committed yet.
pub fn tidied(claim: &Claim, last: &HashMap<Lane, Option<i64>>) -> Vec<(Lane, Mark)> {
    let left: HashSet<Lane> = claim
        .candidates
        .iter()
        .filter(|candidate| !candidate.filed)
        .map(|candidate| candidate.message.position.lane)
        .collect();
    claim
        .lanes
        .iter()
        .filter(|held| !left.contains(&held.lane))
        .filter_map(|held| {
            let last = last.get(&held.lane).copied().flatten();
            let candidate = held.mark.candidate.map(|c| c.position);
            let seen = Observation {
                own_tx: claim.own_tx,
                xmin: claim.xmin,
                settled_through: last.max(candidate).unwrap_or(held.mark.low_water),
            };
            low_water::advance(held.mark, seen, 1).map(|mark| (held.lane, mark))
        })
        .collect()
}

/// As PostgreSQL's `text` takes it, and short enough to be read.
fn stored(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(1000).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        message::Message,
        outbox::claim::{HeldLane, Limits},
    };

    const KEY: i64 = 7;

    /// Of the one key; `after` is the message that it follows among the waiting ones.
    fn candidate(id: i64, filed: bool, after: Option<i64>) -> Candidate {
        Candidate {
            message: Message {
                position: Position { lane: 0, id },
                message_id: Uuid::nil(),
                aggregate_type: String::new(),
                aggregate_id: None,
                event_type: String::new(),
                content_type: String::new(),
                headers: None,
                exchange: None,
                routing_key: None,
                created_at_us: 0,
                attempts: 0,
                replay: false,
                body_size: 0,
                body: None,
            },
            key_hash: Some(KEY),
            filed,
            scheduled: false,
            after,
        }
    }

    fn released(candidates: Vec<Candidate>, outcomes: &[Outcome]) -> bool {
        let claim = Claim {
            lanes: vec![HeldLane {
                lane: 0,
                mark: Mark {
                    low_water: 0,
                    candidate: None,
                },
            }],
            candidates,
            orphans: Vec::new(),
            own_tx: 1,
            xmin: 1,
            now_us: 0,
            limits: Limits {
                per_lane: 10,
                batch_size: 10,
                batch_bytes: 1,
                max_payload_bytes: 1,
            },
        };
        let settlement = settlement(&claim, outcomes, low_water::STRIDE);
        settlement.release == [(0, KEY)]
    }

    fn retry() -> Outcome {
        Outcome::Retry {
            reason: Reason::Nacked,
            attempts: 1,
            delay: Duration::ZERO,
            error: String::new(),
        }
    }

    #[test]
    fn a_settled_head_releases_its_key_whoever_joins_the_end_of_the_queue() {
        let head = || candidate(1, true, None);
        assert!(released(vec![head()], &[Outcome::Sent]));
        // 2 to 8 stand behind, and are not in this claim.
        let newcomer = || candidate(9, false, Some(8));
        let outcomes = [Outcome::Sent, Outcome::Behind];
        assert!(released(vec![head(), newcomer()], &outcomes));
        // Nobody answered for the newcomer that had nobody before it.
        let outcomes = [Outcome::Sent, Outcome::Untouched];
        assert!(released(
            vec![head(), candidate(9, false, Some(1))],
            &outcomes
        ));
    }

    #[test]
    fn a_key_of_which_a_message_is_tried_again_is_not_released() {
        let two = || vec![candidate(1, true, None), candidate(2, true, Some(1))];
        assert!(!released(two(), &[retry(), Outcome::Behind]));
        assert!(!released(two(), &[Outcome::Sent, retry()]));
        assert!(!released(two(), &[Outcome::Sent, Outcome::Untouched]));
        assert!(!released(two(), &[Outcome::Untouched, Outcome::Untouched]));
    }
}
