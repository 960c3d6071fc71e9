//! The low-water mark: a position in a lane below which nothing is pending and nothing can appear any more.
//!
//! **Why.** Every settled message leaves a dead index entry. While a long transaction, a backup or a replication
//! slot holds the vacuum horizon, those entries stay, and a scan from the lane's beginning pays for each of them
//! at every claim, without bound. A scan from the mark does not.
//!
//! **Authority.** `outbox.lane` holds the mark; only the holder of the lane's row lock moves it. Nothing about it
//! is kept in memory, so that a failover to a database that never saw some positions takes its marks back with it.
//!
//! **States of a lane.** No candidate → candidate L without a transaction → candidate L with transaction X → the
//! mark moves to L. L is the last position of a read that left nothing unsettled below it. That is not enough: a
//! transaction that drew a position below L may still be uncommitted. So a transaction id X is awaited that was
//! assigned *after* L was seen; here, the id of a later claim of the lane. Every transaction that can own a
//! position at or below L took its id before it drew the position (`outbox.message.tx` stands before `id`), hence
//! has an id below X. Once `pg_snapshot_xmin` has reached X they have all ended, and a read with a snapshot that
//! is no older shows everything that will ever be at or below L.
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
    /// Assigned after `position` was seen; `None` until a later claim supplies its own.
    pub tx: Option<i64>,
}

/// What one claim learned about a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The claim's own transaction id.
    pub own_tx: i64,
    /// Oldest transaction id still running, in a snapshot no younger than the read's.
    pub xmin: i64,
    /// Every message the read could see at or below this position is settled once the claim commits.
    pub settled_through: i64,
}

/// Positions settled above the mark before it is worth a write to the lane's row. A lane gets about every 64th
/// position, so this is some 64 rows of needless reading at most.
pub const STRIDE: i64 = 4096;

/// Where the mark goes, or `None` when it stays and nothing need be written.
pub fn advance(mark: Mark, seen: Observation, stride: i64) -> Option<Mark> {
    let mut next = mark;
    match mark.candidate {
        Some(Candidate {
            position,
            tx: Some(tx),
        }) if tx <= seen.xmin => {
            next.low_water = mark.low_water.max(position.min(seen.settled_through));
            next.candidate = None;
        }
        Some(Candidate { position, tx: None }) => {
            next.candidate = Some(Candidate {
                position,
                tx: Some(seen.own_tx),
            });
        }
        Some(Candidate { tx: Some(_), .. }) | None => {}
    }
    if next.candidate.is_none() && seen.settled_through - next.low_water >= stride {
        next.candidate = Some(Candidate {
            position: seen.settled_through,
            tx: None,
        });
    }
    (next != mark).then_some(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(own_tx: i64, xmin: i64, settled_through: i64) -> Observation {
        Observation {
            own_tx,
            xmin,
            settled_through,
        }
    }

    #[test]
    fn the_mark_moves_in_three_claims_and_not_before() {
        let mark = Mark {
            low_water: 0,
            candidate: None,
        };
        let one = advance(mark, seen(10, 10, 5000), STRIDE).unwrap();
        assert_eq!(
            one,
            Mark {
                low_water: 0,
                candidate: Some(Candidate {
                    position: 5000,
                    tx: None
                })
            }
        );
        let two = advance(one, seen(20, 20, 9000), STRIDE).unwrap();
        assert_eq!(
            two.candidate,
            Some(Candidate {
                position: 5000,
                tx: Some(20)
            })
        );
        assert_eq!(
            advance(two, seen(30, 19, 12000), STRIDE),
            None,
            "a transaction below 20 still runs"
        );
        let three = advance(two, seen(31, 20, 12000), STRIDE).unwrap();
        assert_eq!(three.low_water, 5000);
        assert_eq!(
            three.candidate,
            Some(Candidate {
                position: 12000,
                tx: None
            })
        );
    }

    #[test]
    fn a_late_commit_below_the_candidate_holds_the_mark_under_itself() {
        let mark = Mark {
            low_water: 0,
            candidate: Some(Candidate {
                position: 5000,
                tx: Some(7),
            }),
        };
        assert_eq!(advance(mark, seen(9, 8, 41), STRIDE).unwrap().low_water, 41);
    }

    /// A database in miniature: transactions take an id, then draw positions, and end in any order, while claims
    /// of one lane read, settle everything they see, and advance.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Draw(usize),
        End(usize, bool),
        Claim,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => Just(Step::Begin),
            3 => (0..8usize).prop_map(Step::Draw),
            3 => (0..8usize, any::<bool>()).prop_map(|(n, commit)| Step::End(n, commit)),
            4 => Just(Step::Claim),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn no_interleaving_puts_a_message_below_the_mark(steps in steps()) {
            let mut next_tx = 1;
            let mut next_id = 1;
            let mut open: Vec<(i64, Vec<i64>)> = Vec::new();
            let mut unsettled: Vec<i64> = Vec::new();
            let mut mark = Mark { low_water: 0, candidate: None };
            let mut top_seen = 0;
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
                    Step::Claim => {
                        let own_tx = next_tx;
                        next_tx += 1;
                        let xmin = open.iter().map(|(tx, _)| *tx).min().unwrap_or(own_tx);
                        top_seen = unsettled.drain(..).max().unwrap_or(0).max(top_seen);
                        if let Some(next) = advance(mark, seen(own_tx, xmin, top_seen), 1) {
                            prop_assert!(next.low_water >= mark.low_water);
                            mark = next;
                        }
                    }
                    Step::Draw(_) | Step::End(..) => {}
                }
            }
        }
    }
}
