//! The low-water mark: a position in a lane below which nothing is pending and nothing can appear any more.
//!
//! **Why.** Every settled message leaves a dead index entry. While a long transaction, a backup or a replication
//! slot holds the vacuum horizon, those entries stay, and a scan from the lane's beginning pays for each of them
//! at every claim, without bound. A scan from the mark does not.
//!
//! **Authority.** `outbox.lane` holds the mark; only the holder of the lane's row lock moves it. Nothing about it
//! is kept in memory, so that a failover to a database that never saw some positions takes its marks back with it.
//!
//! **How it moves.** A claim writes down a candidate: a position that was drawn already, and a transaction id X that
//! was assigned *after* that, its own. Every transaction that can own a position at or below the candidate took its
//! id before it drew the position (`outbox.message.tx` stands before `id`), hence has an id below X. Once
//! `pg_snapshot_xmin` has reached X they have all ended, and a claim that reads with a snapshot that is no older sees
//! everything that will ever be at or below the candidate. What it settles there, the mark passes at once: the next
//! claim does not walk over it again. The candidate is the last position drawn of all lanes (the identity's
//! sequence), so in a backlog one of them serves many claims.
//!
//! **Failures.** A crash rolls the lane's row back with the claim. A long *writing* transaction holds the mark
//! where it is: that costs time, never a message. `pg_snapshot_xmax` would not do for X: it is the last
//! *completed* id plus one, and ids above it may be assigned and running.

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

/// What one claim learned about a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The claim's own transaction id.
    pub own_tx: i64,
    /// Oldest transaction id still running, in a snapshot no younger than the read's.
    pub xmin: i64,
    /// A position that was drawn before `own_tx` was assigned.
    pub drawn: i64,
    /// Every message the read could see at or below this position is settled once the claim commits.
    pub settled_through: i64,
}

/// Positions that are worth a write to the lane's row. A lane gets about every 64th position, so this is some 16 rows
/// of needless reading at most.
pub const STRIDE: i64 = 1024;

/// Where the mark goes, or `None` when it stays and nothing need be written.
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
        aims = next.candidate.is_some() && seen.drawn - next.low_water >= stride;
    }
    let moves = next.low_water - mark.low_water >= stride;
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
    fn the_mark_follows_what_is_settled_from_the_second_claim_on() {
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
    fn steps_that_are_not_worth_it_are_not_written() {
        let mark = candidate(20_000, 7);
        assert_eq!(advance(mark, seen(9, 8, STRIDE - 1), STRIDE), None);
        let near = Observation {
            drawn: STRIDE - 1,
            ..seen(9, 8, i64::MAX)
        };
        assert_eq!(advance(START, near, STRIDE), None);
    }

    /// What a mark has passed already is no reason to write it.
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
        assert_eq!(moved.candidate, aiming.candidate, "it still serves");
    }

    #[test]
    fn nothing_that_was_drawn_beyond_the_mark_is_nothing_to_aim_at() {
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

    /// A database in miniature: transactions take an id, then draw positions, and end in any order, while claims
    /// of one lane read, settle everything they see, and advance.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Draw(usize),
        End(usize, bool),
        /// Of at most so many messages.
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
