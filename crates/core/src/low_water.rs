//! The low-water mark: a position in a lane. Below the mark no message is pending, and none can appear.
//!
//! **Why.** Every settled message leaves a dead index entry. While a long transaction, a backup or a replication slot
//! holds the vacuum horizon, these entries stay. A scan from the beginning of the lane reads all of them at every
//! claim, without bound. A scan from the mark does not.
//!
//! **Authority.** `outbox.lane` holds the mark, and only the holder of the lane's row lock moves it. The relay keeps no
//! copy of the mark in memory. So after a failover to a database without the latest positions, the mark is an earlier
//! one as well.
//!
//! **How it moves.** A claim writes a candidate: a position that was already drawn, and a transaction id X that was
//! assigned *afterwards*, the claim's own. Every transaction that can own a position at or below the candidate took its
//! id before it drew the position (the column `outbox.message.tx` comes before `id`), so its id is below X. Once
//! `pg_snapshot_xmin` has reached X, all these transactions have ended. A claim that reads with a snapshot at least
//! that new sees every message that can exist at or below the candidate. The mark passes the messages that such a claim
//! settles at once, so the next claim does not scan them again. The candidate is the last position drawn in all lanes
//! (the identity's sequence), so in a backlog one candidate serves many claims.
//!
//! **Failures.** A crash rolls the lane's row back with the claim. A long *writing* transaction stops the mark; this
//! costs time, not messages. `pg_snapshot_xmax` cannot replace X: it is the last *completed* id plus one, and ids above
//! it may be assigned and running.

/// A lane's row in `outbox.lane`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub low_water: i64,
    pub candidate: Option<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub position: i64,
    /// Assigned after `position` was drawn.
    pub tx: i64,
}

/// The facts that one claim observed about a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The claim's own transaction id.
    pub own_tx: i64,
    /// Oldest transaction id still running, in a snapshot that is not newer than the read's.
    pub xmin: i64,
    /// A position that was drawn before `own_tx` was assigned.
    pub drawn: i64,
    /// When the claim commits, every message at or below this position that the read could see is settled.
    pub settled_through: i64,
}

/// Distance in positions that is worth a write to the lane's row. A lane gets about one position in 64, so the next
/// claim rereads at most about 16 rows.
pub const STRIDE: i64 = 1024;

/// Returns the new mark, or `None` if no write is needed.
pub(crate) fn advance(mark: Mark, seen: Observation, stride: i64) -> Option<Mark> {
    let mut next = mark;
    let mut spent = true;
    if let Some(candidate) = mark.candidate {
        if candidate.tx <= seen.xmin {
            let passed = candidate.position.min(seen.settled_through);
            next.low_water = mark.low_water.max(passed);
            spent = seen.settled_through >= candidate.position;
        } else {
            spent = false;
        }
    }
    let mut aims = false;
    if spent {
        next.candidate = (seen.drawn > next.low_water).then_some(Candidate {
            position: seen.drawn,
            tx: seen.own_tx,
        });
        aims = next.candidate.is_some() && seen.drawn.saturating_sub(next.low_water) >= stride;
    }
    let moves = next.low_water.saturating_sub(mark.low_water) >= stride;
    (aims || moves).then_some(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Mark = Mark {
        low_water: 0,
        candidate: None,
    };

    fn candidate(position: i64, tx: i64) -> Mark {
        Mark {
            candidate: Some(Candidate { position, tx }),
            ..START
        }
    }

    fn seen(own_tx: i64, xmin: i64, settled_through: i64) -> Observation {
        Observation {
            own_tx,
            xmin,
            drawn: 20_000,
            settled_through,
        }
    }

    #[test]
    fn the_mark_follows_settled_messages_from_the_second_claim_on() {
        let one = advance(START, seen(10, 10, 5000), STRIDE).unwrap();
        assert_eq!(one, candidate(20_000, 10));
        assert_eq!(
            advance(one, seen(20, 9, 9000), STRIDE),
            None,
            "a transaction below 10 still runs"
        );
        let two = advance(one, seen(20, 10, 9000), STRIDE).unwrap();
        assert_eq!((two.low_water, two.candidate), (9000, one.candidate));
        let three = advance(two, seen(30, 30, i64::MAX), STRIDE).unwrap();
        assert_eq!((three.low_water, three.candidate), (20_000, None));
    }

    #[test]
    fn a_late_commit_below_the_candidate_holds_the_mark_under_itself() {
        let mark = candidate(5000, 7);
        assert_eq!(advance(mark, seen(9, 8, 41), 1).unwrap().low_water, 41);
    }

    #[test]
    fn small_steps_are_not_written() {
        let mark = candidate(20_000, 7);
        assert_eq!(advance(mark, seen(9, 8, STRIDE - 1), STRIDE), None);
        let near = Observation {
            drawn: STRIDE - 1,
            ..seen(9, 8, i64::MAX)
        };
        assert_eq!(advance(START, near, STRIDE), None);
    }

    /// A position that the mark has already passed is no reason for a write.
    #[test]
    fn a_step_is_counted_from_where_the_mark_stands() {
        let far = |candidate| Mark {
            low_water: 10_000,
            candidate,
        };
        let drawn = |ahead| Observation {
            drawn: 10_000 + ahead,
            ..seen(9, 9, i64::MAX)
        };
        assert_eq!(advance(far(None), drawn(STRIDE - 1), STRIDE), None);
        let aimed = advance(far(None), drawn(STRIDE), STRIDE).unwrap();
        assert_eq!(aimed.candidate.unwrap().position, 10_000 + STRIDE);

        let aiming = far(Some(Candidate {
            position: 20_000,
            tx: 7,
        }));
        let settled = |ahead| seen(9, 9, 10_000 + ahead);
        assert_eq!(advance(aiming, settled(STRIDE - 1), STRIDE), None);
        let moved = advance(aiming, settled(STRIDE), STRIDE).unwrap();
        assert_eq!(moved.low_water, 10_000 + STRIDE);
        assert_eq!(
            moved.candidate, aiming.candidate,
            "the candidate is still in use"
        );
    }

    /// A person can write any number into `outbox.lane`, and a row of any position.
    #[test]
    fn no_mark_and_no_position_overflow() {
        for low_water in [i64::MIN, -1, 0, i64::MAX] {
            for position in [i64::MIN, 0, i64::MAX] {
                let mark = Mark {
                    low_water,
                    candidate: Some(Candidate { position, tx: 7 }),
                };
                for drawn in [i64::MIN, 0, i64::MAX] {
                    let seen = Observation {
                        drawn,
                        ..seen(9, 8, position)
                    };
                    for mark in [
                        mark,
                        Mark {
                            candidate: None,
                            ..mark
                        },
                    ] {
                        let next = advance(mark, seen, STRIDE);
                        assert!(next.is_none_or(|next| next.low_water >= low_water));
                    }
                }
            }
        }
    }

    #[test]
    fn without_positions_above_the_mark_there_is_no_candidate() {
        let caught_up = Mark {
            low_water: 20_000,
            candidate: None,
        };
        assert_eq!(
            advance(caught_up, seen(9, 9, i64::MAX), 0)
                .unwrap()
                .candidate,
            None
        );
    }

    /// A small model of a database: transactions take an id, then draw positions, and end in any order. Meanwhile
    /// claims of one lane read, settle everything they see, and move the mark.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Draw(usize),
        End(usize, bool),
        /// A claim of at most this number of messages.
        Claim(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => Just(Step::Begin),
            3 => (0..8usize).prop_map(Step::Draw),
            3 => (0..8usize, any::<bool>()).prop_map(|(n, commit)| Step::End(n, commit)),
            4 => (1..4usize).prop_map(Step::Claim),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

        #[test]
        fn no_interleaving_puts_a_message_below_the_mark(steps in steps()) {
            let mut next_tx = 1;
            let mut next_id = 1;
            let mut open: Vec<(i64, Vec<i64>)> = Vec::new();
            let mut unsettled: Vec<i64> = Vec::new();
            let mut mark = START;
            for step in steps {
                match step {
                    Step::Begin => {
                        open.push((next_tx, Vec::new()));
                        next_tx += 1;
                    }
                    Step::Draw(n) if !open.is_empty() => {
                        let n = n % open.len();
                        open[n].1.push(next_id);
                        next_id += 1;
                    }
                    Step::End(n, commit) if !open.is_empty() => {
                        let (_, ids) = open.remove(n % open.len());
                        if commit {
                            prop_assert!(ids.iter().all(|id| *id > mark.low_water), "{ids:?} came below {mark:?}");
                            unsettled.extend(ids);
                        }
                    }
                    Step::Claim(limit) => {
                        let own_tx = next_tx;
                        next_tx += 1;
                        let xmin = open.iter().map(|(tx, _)| *tx).min().unwrap_or(own_tx);
                        unsettled.sort_unstable();
                        let read: Vec<i64> = unsettled.drain(..limit.min(unsettled.len())).collect();
                        let settled_through = match read.last() {
                            Some(last) if read.len() == limit => *last,
                            _ => i64::MAX,
                        };
                        let now = Observation { own_tx, xmin, drawn: next_id - 1, settled_through };
                        if let Some(next) = advance(mark, now, 1) {
                            prop_assert!(next.low_water >= mark.low_water);
                            mark = next;
                        }
                        prop_assert!(unsettled.iter().all(|id| *id > mark.low_water), "{unsettled:?} lie below {mark:?}");
                    }
                    Step::Draw(_) | Step::End(..) => {}
                }
            }
        }
    }
}
