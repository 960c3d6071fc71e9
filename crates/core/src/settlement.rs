//! What a claim's outcomes write, as plain data. No I/O.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    circuit::Destination,
    claim::{Claim, Ctid, Item},
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
    pub delete_waiting: Vec<Position>,
    pub wait: Vec<Wait>,
    pub dead: Vec<DeadLetter>,
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
pub struct DeadLetter {
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

/// `stride` is how far a mark must be able to move to be worth a write.
pub fn settlement(claim: &Claim, stride: i64) -> Settlement {
    let mut s = Settlement {
        delete_waiting: claim.orphans.iter().map(|o| o.position).collect(),
        ..Settlement::default()
    };
    // Keys of which a message was settled out of outbox.waiting, and keys with another one that is still due there.
    let mut resolved: HashSet<(Lane, i64)> = HashSet::new();
    let mut held_back: HashSet<(Lane, i64)> = HashSet::new();
    // Somebody may stand behind a message that was deleted by hand.
    let orphans = claim.orphans.iter();
    resolved.extend(orphans.filter_map(|o| o.key_hash.map(|hash| (o.position.lane, hash))));

    for item in &claim.items {
        let (candidate, outcome) = (&item.candidate, item.outcome());
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
            } => s.dead.push(DeadLetter {
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
                    s.delete_waiting.push(position);
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
    s.marks = marks(claim, stride);
    s
}

/// How far each held lane is settled, and what that does to its mark.
fn marks(claim: &Claim, stride: i64) -> Vec<(Lane, Mark)> {
    let mut by_lane: HashMap<Lane, Vec<&Item>> = HashMap::new();
    for item in &claim.items {
        // A filed message is found through outbox.waiting, wherever the mark stands.
        if !item.candidate.filed {
            by_lane.entry(item.position().lane).or_default().push(item);
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
            let is_left =
                |item: &&&Item| !item.candidate.scheduled && *item.outcome() == Outcome::Untouched;
            let first_left = read.iter().find(is_left).map(|item| item.position().id);
            let last_read = read.last().map(|item| item.position().id);
            let settled_through = match (first_left, last_read) {
                (Some(left), _) => left - 1,
                // Everything that the snapshot showed of this lane is settled.
                (None, _) if held.exhausted => i64::MAX,
                (None, Some(last)) => last,
                (None, None) => held.mark.low_water,
            };
            let seen = Observation {
                own_tx: claim.snapshot.own_tx,
                xmin: claim.snapshot.xmin,
                drawn: claim.snapshot.drawn,
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
        .items
        .iter()
        .filter(|item| !item.candidate.filed)
        .map(|item| item.position().lane)
        .collect();
    claim
        .lanes
        .iter()
        .filter(|held| !left.contains(&held.lane))
        .filter_map(|held| {
            let last = last.get(&held.lane).copied().flatten();
            let seen = Observation {
                own_tx: claim.snapshot.own_tx,
                xmin: claim.snapshot.xmin,
                // A row that was copied here may stand above everything that was drawn; a mark must not.
                drawn: last
                    .unwrap_or(held.mark.low_water)
                    .min(claim.snapshot.drawn),
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
        claim::{self, Candidate, Orphan, sample_claim},
        message::sample,
    };

    const KEY: i64 = 7;

    fn candidate(id: i64, filed: bool, after: Option<i64>) -> Candidate {
        Candidate {
            filed,
            after,
            ..claim::sample(id, Some(KEY))
        }
    }

    /// Each candidate with its outcome.
    fn claim<const N: usize>(decided: [(Candidate, Outcome); N]) -> Claim {
        let (candidates, outcomes): (Vec<_>, Vec<_>) = decided.into_iter().unzip();
        let mut claim = sample_claim(candidates, vec![]);
        for (item, outcome) in claim.items.iter_mut().zip(outcomes) {
            item.record(outcome);
        }
        claim
    }

    fn retry() -> Outcome {
        Outcome::Retry {
            reason: Reason::Unroutable,
            attempts: 1,
            delay: Duration::ZERO,
            error: String::new(),
        }
    }

    fn released<const N: usize>(decided: [(Candidate, Outcome); N]) -> bool {
        let key = (sample().position.lane, KEY);
        settlement(&claim(decided), 1).release == [key]
    }

    /// 2 stands behind 1 and was not read; 3 is new and stands behind 2. With 1 gone nobody else is left to release.
    #[test]
    fn a_settled_head_releases_its_key_whatever_else_stands_behind() {
        assert!(released([
            (candidate(1, true, None), Outcome::Sent),
            (candidate(3, false, Some(2)), Outcome::Behind),
        ]));
    }

    #[test]
    fn a_new_message_that_was_not_reached_does_not_keep_its_key_waiting() {
        assert!(released([
            (candidate(1, true, None), Outcome::Sent),
            (candidate(2, false, None), Outcome::Untouched),
        ]));
    }

    #[test]
    fn a_key_waits_while_another_of_its_messages_is_due_or_will_be() {
        for outcome in [retry(), Outcome::Untouched] {
            assert!(!released([
                (candidate(1, true, None), Outcome::Sent),
                (candidate(2, true, None), outcome),
            ]));
        }
    }

    /// The mark's candidate is 100; a late commit at 1 was read, and the read was cut before whoever stands between.
    #[test]
    fn a_claim_that_was_cut_short_moves_the_mark_no_further_than_it_read() {
        for (exhausted, moved_to) in [(true, 100), (false, 1)] {
            let mut claim = claim([(candidate(1, false, None), Outcome::Sent)]);
            claim.lanes[0].exhausted = exhausted;
            claim.lanes[0].mark.candidate = Some(low_water::Candidate {
                position: 100,
                tx: 5,
            });
            let marks = settlement(&claim, 1).marks;
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
        let written = settlement(&sample_claim(vec![], vec![orphan]), 1);
        assert_eq!(written.delete_waiting, [position]);
        assert_eq!(written.release, [(position.lane, KEY)]);
    }

    #[test]
    fn a_replay_keeps_its_first_mark_and_leaves_the_waiting() {
        let mut replay = candidate(1, true, None);
        replay.message.replay = true;
        let written = settlement(&claim([(replay, Outcome::Sent)]), 1);
        assert_eq!(written.sent, []);
        assert_eq!(written.delete_waiting.len(), 1);
    }

    #[test]
    fn a_replay_that_waits_holds_nobody_back() {
        for outcome in [retry(), Outcome::Untouched] {
            let mut replay = candidate(2, true, None);
            replay.message.replay = true;
            let head = (candidate(1, true, None), Outcome::Sent);
            assert!(released([head, (replay, outcome)]));
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
        let written = settlement(&claim([(candidate(1, false, None), outcome)]), 1);
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
    fn moved_to<const N: usize>(
        decided: [(Candidate, Outcome); N],
        exhausted: bool,
    ) -> Option<i64> {
        let mut claim = claim(decided);
        claim.lanes[0].exhausted = exhausted;
        claim.lanes[0].mark.candidate = Some(low_water::Candidate {
            position: 100,
            tx: 5,
        });
        let marks = settlement(&claim, 1).marks;
        marks.first().map(|(_, mark)| mark.low_water)
    }

    #[test]
    fn the_mark_stops_right_below_the_first_message_that_is_left() {
        let three = || [3, 5, 9].map(|id| (candidate(id, false, None), Outcome::Sent));
        assert_eq!(moved_to(three(), true), Some(100));
        assert_eq!(moved_to(three(), false), Some(9), "more may be there");
        let mut left = three();
        left[1].1 = Outcome::Untouched;
        assert_eq!(moved_to(left, true), Some(4));
    }

    #[test]
    fn a_filed_message_does_not_stop_the_mark_nor_a_scheduled_one() {
        let mut scheduled = candidate(3, false, None);
        scheduled.scheduled = true;
        let filed = candidate(2, true, None);
        let both = [filed, scheduled].map(|candidate| (candidate, Outcome::Untouched));
        assert_eq!(moved_to(both, true), Some(100));
    }

    #[test]
    fn the_mark_of_a_lane_that_was_not_read_to_its_end_stays() {
        let mut other_lane = candidate(50, false, None);
        other_lane.message.position.lane += 1;
        assert_eq!(moved_to([(other_lane, Outcome::Sent)], false), None);
    }

    #[test]
    fn a_lane_with_nothing_left_is_tidied_to_what_was_seen_of_it() {
        let lane = sample().position.lane;
        let tidied_to = |candidates, last: Option<i64>, drawn| {
            let mut claim = sample_claim(candidates, vec![]);
            claim.snapshot.drawn = drawn;
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
