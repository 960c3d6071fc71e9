//! Converts the outcomes of a claim to writes, as plain data. No I/O.

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

/// All writes of one settle.
#[derive(Debug, Default, PartialEq)]
pub struct Settlement {
    /// Confirmed for the first time: the settle marks these messages.
    pub sent: Vec<Sent>,
    /// Rows to delete from `outbox.waiting`.
    pub delete_waiting: Vec<Position>,
    pub wait: Vec<Wait>,
    pub dead: Vec<DeadLetter>,
    /// Keys whose waiting head is settled: the settle releases the messages behind it.
    pub release: Vec<(Lane, i64)>,
    pub marks: Vec<(Lane, Mark)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub position: Position,
    pub ctid: Ctid,
    /// The transaction that wrote the published columns.
    pub tx: u64,
}

#[derive(Debug, PartialEq)]
pub struct Wait {
    pub position: Position,
    /// The transaction that wrote the message as the claim read it.
    pub tx: u64,
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
    /// The destination fails: the message is published as a probe, or after the destination works again.
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
    /// As in [`Wait`].
    pub tx: u64,
    pub reason: Reason,
    pub attempts: u32,
    pub error: String,
    pub replay: bool,
}

impl Settlement {
    /// Nothing to write, so the claim can be rolled back.
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `stride`: minimum distance by which a mark must be able to move to be written.
pub fn settlement(claim: &Claim, stride: i64) -> Settlement {
    let mut s = Settlement {
        delete_waiting: claim.orphans.iter().map(|o| o.position).collect(),
        ..Settlement::default()
    };
    // `resolved`: keys with a message that leaves outbox.waiting. `held_back`: keys with another message that is still
    // due there.
    let mut resolved: HashSet<(Lane, i64)> = HashSet::new();
    let mut held_back: HashSet<(Lane, i64)> = HashSet::new();
    // A deleted message may have messages behind it.
    let orphans = claim.orphans.iter();
    resolved.extend(orphans.filter_map(|o| o.key_hash.map(|hash| (o.position.lane, hash))));

    for item in &claim.items {
        let (candidate, outcome) = (&item.candidate, item.outcome());
        let message = &candidate.message;
        let position = message.position;
        let key = candidate.key_hash.map(|hash| (position.lane, hash));
        let wait = |cause, delay, attempts, reason, error| Wait {
            position,
            tx: candidate.tx,
            cause,
            delay,
            attempts,
            reason,
            error,
            held_for: None,
        };
        if candidate.scheduled && !item.is_left() {
            let attempts = message.attempts;
            s.wait
                .push(wait(Cause::Scheduled, Duration::ZERO, attempts, None, None));
            // Somebody postponed it while it waited for something else: it no longer holds its key back.
            if candidate.filed {
                resolved.extend(key);
            }
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
                tx: candidate.tx,
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
            // When this message is settled, the key is released. A message that is behind, or only read, releases
            // nothing: without the head, no settle would release the key.
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

/// The new mark of each claimed lane, from the messages that the claim settles. A message that the read passed over is
/// unsent, and must stay above the mark.
fn marks(claim: &Claim, stride: i64) -> Vec<(Lane, Mark)> {
    let mut by_lane: HashMap<Lane, Vec<&Item>> = HashMap::new();
    for item in &claim.items {
        // Filed messages are found through outbox.waiting, independently of the mark.
        if !item.candidate.filed {
            by_lane.entry(item.position().lane).or_default().push(item);
        }
    }
    claim
        .lanes
        .iter()
        .filter(|held| !held.passed_over)
        .filter_map(|held| {
            let read = by_lane
                .get(&held.lane)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let is_left = |item: &&&Item| {
                item.is_left() || !item.candidate.scheduled && *item.outcome() == Outcome::Untouched
            };
            let first_left = read.iter().find(is_left).map(|item| item.position().id);
            let last_read = read.last().map(|item| item.position().id);
            let settled_through = match (first_left, last_read) {
                (Some(left), _) => left.saturating_sub(1),
                // The claim settles every message of this lane that its snapshot shows.
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

/// Marks of lanes without work. `last` is the last position of each lane that was visible *before* the claim. A lane
/// without new messages gets no write, even if other lanes draw many positions.
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
        .filter(|held| !held.passed_over && !left.contains(&held.lane))
        .filter_map(|held| {
            let last = last.get(&held.lane).copied().flatten();
            let seen = Observation {
                own_tx: claim.snapshot.own_tx,
                xmin: claim.snapshot.xmin,
                // A copied row may have a position above every drawn one. The mark must stay below the drawn positions.
                drawn: last
                    .unwrap_or(held.mark.low_water)
                    .min(claim.snapshot.drawn),
                settled_through: i64::MAX,
            };
            low_water::advance(held.mark, seen, 1).map(|mark| (held.lane, mark))
        })
        .collect()
}

/// Characters of an error that a record keeps.
pub const ERROR_CHARS: usize = 1000;

/// Removes NUL, which PostgreSQL's `text` does not take, and limits the length.
fn stored(error: &str) -> String {
    let kept = error.chars().filter(|c| *c != '\0');
    kept.take(ERROR_CHARS).collect()
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

    /// A claim of these candidates with their outcomes.
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

    /// Message 2 is behind 1 and was not read; 3 is new and behind 2. When 1 is settled, only this settle can release
    /// 2.
    #[test]
    fn a_settled_head_releases_its_key() {
        assert!(released([
            (candidate(1, true, None), Outcome::Sent),
            (candidate(3, false, Some(2)), Outcome::Behind),
        ]));
    }

    #[test]
    fn an_unpublished_new_message_does_not_keep_its_key_waiting() {
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

    /// The mark's candidate is 100. A late commit at 1 was read, and the read was cut before the messages in between.
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

    /// One is due at a later time, one is new. Both stay as they are, and the mark stays below them.
    #[test]
    fn a_message_that_is_left_is_not_written_and_the_mark_does_not_pass_it() {
        for scheduled in [true, false] {
            let mut left = candidate(2, false, None);
            left.scheduled = scheduled;
            let mut claim = claim([
                (candidate(1, false, None), Outcome::Sent),
                (left, retry()),
                (candidate(3, false, None), Outcome::Sent),
            ]);
            claim.items[1].leave();
            claim.lanes[0].mark.candidate = Some(low_water::Candidate {
                position: 100,
                tx: 5,
            });
            let written = settlement(&claim, 1);
            assert_eq!(written.wait, []);
            assert_eq!(written.sent.len(), 2);
            assert_eq!(written.marks[0].1.low_water, 1);
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
    fn a_waiting_replay_blocks_no_other() {
        for outcome in [retry(), Outcome::Untouched] {
            let mut replay = candidate(2, true, None);
            replay.message.replay = true;
            let head = (candidate(1, true, None), Outcome::Sent);
            assert!(released([head, (replay, outcome)]));
        }
    }

    #[test]
    fn a_held_message_is_filed_with_its_destination_and_the_cause() {
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
            tx: 0,
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
    fn a_stored_error_is_readable_text() {
        assert_eq!(stored("a\0b"), "ab");
        assert_eq!(stored(&"é".repeat(1001)), "é".repeat(1000));
    }

    #[test]
    fn causes_are_the_words_of_the_table() {
        let causes = [Cause::Retry, Cause::Scheduled, Cause::Behind, Cause::Held];
        let words = ["retry", "scheduled", "behind", "held"];
        assert_eq!(causes.map(Cause::as_str), words);
    }

    /// The mark is at 0 and may move to 100.
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
    fn the_mark_stops_below_the_first_unsettled_message() {
        let three = || [3, 5, 9].map(|id| (candidate(id, false, None), Outcome::Sent));
        assert_eq!(moved_to(three(), true), Some(100));
        assert_eq!(moved_to(three(), false), Some(9), "more may be there");
        let mut left = three();
        left[1].1 = Outcome::Untouched;
        assert_eq!(moved_to(left, true), Some(4));
    }

    #[test]
    fn filed_and_scheduled_messages_do_not_stop_the_mark() {
        let mut scheduled = candidate(3, false, None);
        scheduled.scheduled = true;
        let filed = candidate(2, true, None);
        let both = [filed, scheduled].map(|candidate| (candidate, Outcome::Untouched));
        assert_eq!(moved_to(both, true), Some(100));
    }

    #[test]
    fn a_message_that_is_postponed_while_it_waits_keeps_its_attempts_and_lets_its_key_go_on() {
        let postponed = |filed| {
            let mut postponed = candidate(3, filed, None);
            postponed.scheduled = true;
            postponed.message.attempts = 4;
            settlement(&claim([(postponed, Outcome::Untouched)]), 1)
        };
        let (filed, new) = (postponed(true), postponed(false));
        assert_eq!(
            (filed.wait[0].cause, filed.wait[0].attempts),
            (Cause::Scheduled, 4)
        );
        assert_eq!(filed.delete_waiting, []);
        assert_eq!(filed.release, [(sample().position.lane, KEY)]);
        assert_eq!(new.release, [], "it is new, so nothing waits behind it");
    }

    #[test]
    fn a_message_at_the_first_position_overflows_nothing() {
        let left = [(candidate(i64::MIN, false, None), Outcome::Untouched)];
        assert_eq!(moved_to(left, true), None);
    }

    #[test]
    fn the_mark_of_a_lane_that_was_not_read_to_its_end_stays() {
        let mut other_lane = candidate(50, false, None);
        other_lane.message.position.lane += 1;
        assert_eq!(moved_to([(other_lane, Outcome::Sent)], false), None);
    }

    #[test]
    fn the_mark_of_an_empty_lane_moves_to_its_last_visible_position() {
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
