//! What a claim's outcomes write, as plain data. No I/O.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    circuit::Destination,
    claim::{Candidate, Claim, Ctid},
    low_water::{self, Mark, Observation},
    message::{Lane, Position},
    outcome::Outcome,
    reason::Reason,
};

/// Everything one settle writes.
#[derive(Debug, Default, PartialEq)]
pub struct Settlement {
    /// Confirmed, and marked for the first time.
    pub sent: Vec<Sent>,
    /// To leave `outbox.waiting`.
    pub unfile: Vec<Position>,
    pub wait: Vec<Wait>,
    pub dead: Vec<Death>,
    /// Keys whose waiting head is settled: what stands behind it may go.
    pub release: Vec<(Lane, i64)>,
    pub marks: Vec<(Lane, Mark)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub position: Position,
    pub ctid: Ctid,
    /// The transaction that wrote what was published.
    pub tx: u64,
}

#[derive(Debug, PartialEq)]
pub struct Wait {
    pub position: Position,
    pub cause: Cause,
    pub delay: Duration,
    pub attempts: u32,
    pub reason: Option<Reason>,
    pub error: Option<String>,
    /// The destination that fails, and its failed probes so far.
    pub held_for: Option<(Destination, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Retry,
    Scheduled,
    Behind,
    /// Its destination fails: it is published when the destination is probed with it, or works again.
    Held,
}

impl Cause {
    #[inline]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Scheduled => "scheduled",
            Self::Behind => "behind",
            Self::Held => "held",
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
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `outcomes[i]` belongs to `claim.candidates[i]`; a scheduled candidate's is ignored. `stride` is how far a mark
/// must be able to move to be worth a write.
pub fn settlement(claim: &Claim, outcomes: &[Outcome], stride: i64) -> Settlement {
    debug_assert_eq!(claim.candidates.len(), outcomes.len());
    let mut s = Settlement {
        unfile: claim.orphans.iter().map(|o| o.position).collect(),
        ..Settlement::default()
    };
    // Keys of which a message was settled out of outbox.waiting, and keys with another one that is still due there.
    let mut resolved: HashSet<(Lane, i64)> = HashSet::new();
    let mut held_back: HashSet<(Lane, i64)> = HashSet::new();
    // Somebody may stand behind a message that was deleted by hand.
    let orphans = claim.orphans.iter();
    resolved.extend(orphans.filter_map(|o| o.key_hash.map(|hash| (o.position.lane, hash))));

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
            held_for: None,
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
                    s.sent.push(Sent {
                        position,
                        ctid: candidate.ctid,
                        tx: candidate.tx,
                    });
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
            Outcome::Held { held, attempts } => s.wait.push(Wait {
                held_for: Some((held.destination, held.failures)),
                ..wait(
                    Cause::Held,
                    Duration::ZERO,
                    *attempts,
                    Some(held.why.reason),
                    Some(stored(&held.why.error)),
                )
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
            // Its own settling will release the key. One that is behind, or was only read, will not: with the head gone
            // nobody would be left to do it.
            Outcome::Retry { .. } | Outcome::Held { .. } => {
                if !message.replay {
                    held_back.extend(key);
                }
            }
            Outcome::Untouched => {
                if candidate.filed && !message.replay {
                    held_back.extend(key);
                }
            }
            Outcome::Behind => {}
        }
    }
    s.release = resolved.difference(&held_back).copied().collect();
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
                // Everything that the snapshot showed of this lane is settled.
                (None, _) if exhausted.get(&held.lane) == Some(&true) => i64::MAX,
                (None, Some(last)) => last,
                (None, None) => held.mark.low_water,
            };
            let seen = Observation {
                own_tx: claim.own_tx,
                xmin: claim.xmin,
                drawn: claim.drawn,
                settled_through,
            };
            low_water::advance(held.mark, seen, stride).map(|mark| (held.lane, mark))
        })
        .collect()
}

/// Marks of lanes in which nothing is left to do. `last` is each lane's last position that was visible *before* the
/// claim, so that a lane at rest is left alone, however many positions the others draw.
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
            let seen = Observation {
                own_tx: claim.own_tx,
                xmin: claim.xmin,
                // A row that was copied here may stand above everything that was drawn; a mark must not.
                drawn: last.unwrap_or(held.mark.low_water).min(claim.drawn),
                settled_through: i64::MAX,
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
    use super::*;
    use crate::{
        claim::{HeldLane, Limits, Orphan, Waited},
        message::sample,
    };

    const KEY: i64 = 7;

    fn candidate(id: i64, filed: bool, after: Option<i64>) -> Candidate {
        let mut message = sample();
        message.position.id = id;
        Candidate {
            message,
            ctid: Ctid::default(),
            tx: 0,
            key_hash: Some(KEY),
            filed,
            scheduled: false,
            after,
            waited: Waited::default(),
        }
    }

    fn claim(candidates: Vec<Candidate>, orphans: Vec<Orphan>) -> Claim {
        let mark = Mark {
            low_water: 0,
            candidate: None,
        };
        Claim {
            lanes: vec![HeldLane {
                lane: sample().position.lane,
                mark,
                share: 100,
            }],
            candidates,
            orphans,
            own_tx: 10,
            xmin: 10,
            drawn: 10,
            now_us: 0,
            limits: Limits {
                fresh: 100,
                batch_size: 100,
                batch_bytes: u64::MAX,
                max_payload_bytes: u64::MAX,
            },
            cut_short: false,
        }
    }

    fn retry() -> Outcome {
        Outcome::Retry {
            reason: Reason::Unroutable,
            attempts: 1,
            delay: Duration::ZERO,
            error: String::new(),
        }
    }

    fn released(candidates: Vec<Candidate>, outcomes: &[Outcome]) -> bool {
        let key = (sample().position.lane, KEY);
        settlement(&claim(candidates, vec![]), outcomes, 1).release == [key]
    }

    /// 2 stands behind 1 and was not read; 3 is new and stands behind 2. With 1 gone nobody else is left to release.
    #[test]
    fn a_settled_head_releases_its_key_whatever_else_stands_behind() {
        let both = || vec![candidate(1, true, None), candidate(3, false, Some(2))];
        assert!(released(both(), &[Outcome::Sent, Outcome::Behind]));
    }

    #[test]
    fn a_new_message_that_was_not_reached_does_not_keep_its_key_waiting() {
        let both = || vec![candidate(1, true, None), candidate(2, false, None)];
        assert!(released(both(), &[Outcome::Sent, Outcome::Untouched]));
    }

    #[test]
    fn a_key_waits_while_another_of_its_messages_is_due_or_will_be() {
        let both = || vec![candidate(1, true, None), candidate(2, true, None)];
        assert!(!released(both(), &[Outcome::Sent, retry()]));
        assert!(!released(both(), &[Outcome::Sent, Outcome::Untouched]));
    }

    /// The mark's candidate is 100; a late commit at 1 was read, and whoever stands between was left out.
    #[test]
    fn a_claim_that_was_cut_short_moves_the_mark_no_further_than_it_read() {
        for (cut_short, moved_to) in [(false, 100), (true, 1)] {
            let mut claim = claim(vec![candidate(1, false, None)], vec![]);
            claim.cut_short = cut_short;
            claim.lanes[0].mark.candidate = Some(low_water::Candidate {
                position: 100,
                tx: 5,
            });
            let marks = settlement(&claim, &[Outcome::Sent], 1).marks;
            assert_eq!(marks[0].1.low_water, moved_to);
        }
    }

    #[test]
    fn a_head_that_was_deleted_by_hand_releases_its_key() {
        let position = sample().position;
        let orphan = Orphan {
            position,
            key_hash: Some(KEY),
        };
        let written = settlement(&claim(vec![], vec![orphan]), &[], 1);
        assert_eq!(written.unfile, [position]);
        assert_eq!(written.release, [(position.lane, KEY)]);
    }

    #[test]
    fn a_replay_keeps_its_first_mark_and_leaves_the_waiting() {
        let mut replay = candidate(1, true, None);
        replay.message.replay = true;
        let written = settlement(&claim(vec![replay], vec![]), &[Outcome::Sent], 1);
        assert_eq!(written.sent, []);
        assert_eq!(written.unfile.len(), 1);
    }

    #[test]
    fn a_replay_that_waits_holds_nobody_back() {
        for outcome in [retry(), Outcome::Untouched] {
            let mut replay = candidate(2, true, None);
            replay.message.replay = true;
            let both = vec![candidate(1, true, None), replay];
            assert!(released(both, &[Outcome::Sent, outcome]));
        }
    }

    #[test]
    fn a_held_message_is_filed_with_its_destination_and_why_it_fails() {
        let held = crate::circuit::Held {
            destination: Destination(9),
            failures: 3,
            why: crate::circuit::Why {
                reason: Reason::Nacked,
                error: "full\0".to_owned(),
            },
        };
        let outcome = Outcome::Held { held, attempts: 2 };
        let one = vec![candidate(1, false, None)];
        let written = settlement(&claim(one, vec![]), &[outcome], 1);
        let expected = Wait {
            position: Position {
                lane: sample().position.lane,
                id: 1,
            },
            cause: Cause::Held,
            delay: Duration::ZERO,
            attempts: 2,
            reason: Some(Reason::Nacked),
            error: Some("full".to_owned()),
            held_for: Some((Destination(9), 3)),
        };
        assert_eq!(written.wait, [expected]);
        assert!(!written.is_empty());
        assert!(Settlement::default().is_empty());
    }

    #[test]
    fn what_is_stored_of_an_error_is_text_that_a_person_can_read() {
        assert_eq!(stored("a\0b"), "ab");
        assert_eq!(stored(&"é".repeat(1001)), "é".repeat(1000));
    }

    #[test]
    fn causes_are_the_words_of_the_table() {
        let causes = [Cause::Retry, Cause::Scheduled, Cause::Behind, Cause::Held];
        let words = ["retry", "scheduled", "behind", "held"];
        assert_eq!(causes.map(Cause::as_str), words);
    }

    /// The mark stands at 0 and may go to 100.
    fn moved_to(
        candidates: Vec<Candidate>,
        outcomes: &[Outcome],
        batch_size: usize,
    ) -> Option<i64> {
        let mut claim = claim(candidates, vec![]);
        claim.limits.batch_size = batch_size;
        claim.lanes[0].mark.candidate = Some(low_water::Candidate {
            position: 100,
            tx: 5,
        });
        let marks = settlement(&claim, outcomes, 1).marks;
        marks.first().map(|(_, mark)| mark.low_water)
    }

    #[test]
    fn the_mark_stops_right_below_the_first_message_that_is_left() {
        let three = || [3, 5, 9].map(|id| candidate(id, false, None)).into();
        let sent = || vec![Outcome::Sent; 3];
        assert_eq!(moved_to(three(), &sent(), 100), Some(100));
        assert_eq!(moved_to(three(), &sent(), 3), Some(9), "more may be there");
        let mut left = sent();
        left[1] = Outcome::Untouched;
        assert_eq!(moved_to(three(), &left, 100), Some(4));
    }

    #[test]
    fn a_filed_message_does_not_stop_the_mark_nor_a_scheduled_one() {
        let mut scheduled = candidate(3, false, None);
        scheduled.scheduled = true;
        let filed = candidate(2, true, None);
        let outcomes = [Outcome::Untouched, Outcome::Untouched];
        assert_eq!(moved_to(vec![filed, scheduled], &outcomes, 100), Some(100));
    }

    #[test]
    fn the_mark_of_a_lane_that_was_not_read_to_its_end_stays() {
        let other_lane = || {
            let mut other = candidate(50, false, None);
            other.message.position.lane += 1;
            vec![other]
        };
        assert_eq!(moved_to(other_lane(), &[Outcome::Sent], 1), None);
    }

    #[test]
    fn a_lane_with_nothing_left_is_tidied_to_what_was_seen_of_it() {
        let lane = sample().position.lane;
        let tidied_to = |candidates, last: Option<i64>, drawn| {
            let mut claim = claim(candidates, vec![]);
            claim.drawn = drawn;
            let marks = tidied(&claim, &HashMap::from([(lane, last)]));
            marks.first().and_then(|(_, mark)| mark.candidate)
        };
        let aim = |position| Some(low_water::Candidate { position, tx: 10 });
        assert_eq!(tidied_to(vec![], Some(40), 90), aim(40));
        assert_eq!(tidied_to(vec![], Some(140), 90), aim(90), "a copied row");
        assert_eq!(tidied_to(vec![], None, 90), None, "at rest");
        let left = |filed| vec![candidate(7, filed, None)];
        assert_eq!(tidied_to(left(false), Some(40), 90), None);
        assert_eq!(tidied_to(left(true), Some(40), 90), aim(40));
    }
}
