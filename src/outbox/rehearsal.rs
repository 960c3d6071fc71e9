//! Rehearsal: settles messages and takes that back, in the claim's own transaction and before the publish.
//!
//! **Why.** Some obstacles show only at the settle: a revoked privilege, a trigger that raises an error or swallows a write,
//! a publication with a row filter, a row that another session has locked, a deferred constraint. A claim that meets them
//! after its publishes would publish the same messages again at its next attempt.
//!
//! **How.** The rehearsal runs the settle's own statements (`settle::write`) for each outcome that a message may have, and
//! rolls back to a savepoint. So it proves every write of a settle, those of the future included.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use outbox_core::{
    claim::{Claim, Ctid},
    low_water::{Candidate, Mark},
    message::{Lane, Position},
    reason::Reason,
    settlement::{Cause, DeadLetter, Sent, Settlement, Wait},
};
use rand::{Rng, RngExt};
use tokio_postgres::types::Type;

use super::{
    OutboxError, blockers,
    row::get,
    session::{Params, Query, Session},
    settle::{self, Keep},
};

const LOCKS: Query = Query {
    action: "look for locked rows",
    sql: include_str!("sql/rehearse_locks.sql"),
    types: &[
        Type::INT2_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8_ARRAY,
        Type::INT8,
    ],
};

/// After this many refused messages the rehearsal stops.
const REFUSALS: usize = 3;

/// A message of a claim, and what its settle may write.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    pub position: Position,
    pub ctid: Ctid,
    pub tx: u64,
    pub key_hash: Option<i64>,
    pub attempts: u32,
    pub replay: bool,
    /// It has a record in `outbox.waiting`.
    pub filed: bool,
    /// It may be published, so it may be sent.
    pub publishes: bool,
    /// Its record is removed, and its key is released.
    pub removes: bool,
    /// It may be filed as waiting.
    pub waits: bool,
    /// It may be filed as dead.
    pub dies: bool,
}

#[derive(Debug)]
pub struct Refusal {
    pub why: String,
    /// It can be filed as waiting.
    pub fileable: bool,
}

/// Messages that are in neither were not rehearsed.
#[derive(Debug, Default)]
pub struct Rehearsed {
    pub passed: HashSet<Position>,
    pub refused: HashMap<Position, Refusal>,
}

pub struct Rehearsal<'s> {
    pub session: &'s Session,
    /// Of the lanes of the claim, as [`moved`] makes them.
    pub marks: Vec<(Lane, Mark)>,
    pub keep: Keep,
    pub released_at_once: usize,
}

/// The outcomes that are rehearsed apart: one message cannot have two of them.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Waits,
    Dies,
    Sent,
}

/// Marks that differ from those that the claim read in every column: a trigger may look at each.
pub fn moved(claim: &Claim) -> Vec<(Lane, Mark)> {
    let moved = |held: Mark| Mark {
        low_water: held.low_water.saturating_add(1),
        candidate: Some(Candidate {
            position: claim.snapshot.drawn,
            tx: claim.snapshot.own_tx,
        }),
    };
    let lanes = claim.lanes.iter();
    lanes.map(|read| (read.lane, moved(read.mark))).collect()
}

/// What another session has locked.
struct Locked {
    why: String,
    /// The message's own record: no outcome can be filed.
    record: bool,
}

impl Rehearsal<'_> {
    /// Rehearses messages until `room` of those that are to be published have passed. The transaction is unchanged afterwards.
    pub async fn run(
        &self,
        subjects: &[Subject],
        mut room: usize,
    ) -> Result<Rehearsed, OutboxError> {
        let mut done = Rehearsed::default();
        let locked = self.locked(subjects).await?;
        let mut free = Vec::with_capacity(subjects.len());
        for subject in subjects {
            match locked.get(&subject.position) {
                None => free.push(*subject),
                Some(locked) => {
                    // An attempt to file it would wait for the lock. Some of these would take the whole claim's time.
                    let fileable = !locked.record && self.is_fileable(subject).await?;
                    let why = locked.why.clone();
                    done.refused
                        .insert(subject.position, Refusal { why, fileable });
                }
            }
        }
        let free = in_turn(free, &mut rand::rng());
        let mut free = free.as_slice();
        let mut refusals = 0;
        while room > 0 && refusals < REFUSALS && !free.is_empty() {
            let (together, rest) = free.split_at(first(free, room));
            free = rest;
            if self.refusal(together).await?.is_none() {
                room = room.saturating_sub(publishes(together));
                done.passed.extend(together.iter().map(|s| s.position));
                continue;
            }
            // The server refuses one message or all. Single attempts show which.
            for alone in together.chunks(1) {
                if refusals >= REFUSALS {
                    break;
                }
                let Some((fate, error)) = self.refusal(alone).await? else {
                    room = room.saturating_sub(publishes(alone));
                    done.passed.extend(alone.iter().map(|s| s.position));
                    continue;
                };
                refusals += 1;
                for subject in alone {
                    // Filing was rehearsed first, if it was.
                    let fileable = match fate {
                        Fate::Waits => false,
                        Fate::Dies | Fate::Sent => {
                            subject.waits || self.is_fileable(subject).await?
                        }
                    };
                    let why = error.to_string();
                    done.refused
                        .insert(subject.position, Refusal { why, fileable });
                }
            }
        }
        Ok(done)
    }

    async fn is_fileable(&self, subject: &Subject) -> Result<bool, OutboxError> {
        // A message that only waits was refused for that.
        let may_wait = subject.publishes || subject.dies;
        Ok(may_wait && self.tried(Fate::Waits, &[*subject]).await?.is_none())
    }

    /// The first error of any outcome; `None` if all writes are possible.
    async fn refusal(
        &self,
        subjects: &[Subject],
    ) -> Result<Option<(Fate, OutboxError)>, OutboxError> {
        for fate in [Fate::Waits, Fate::Dies, Fate::Sent] {
            let with: Vec<Subject> = subjects
                .iter()
                .filter(|s| match fate {
                    Fate::Waits => s.waits,
                    Fate::Dies => s.dies,
                    Fate::Sent => s.publishes || s.removes,
                })
                .copied()
                .collect();
            if !with.is_empty()
                && let Some(error) = self.tried(fate, &with).await?
            {
                return Ok(Some((fate, error)));
            }
        }
        Ok(None)
    }

    async fn tried(
        &self,
        fate: Fate,
        subjects: &[Subject],
    ) -> Result<Option<OutboxError>, OutboxError> {
        let settlement = settlement(fate, subjects, &self.marks);
        let rehearsed = async {
            let (keep, at_once) = (self.keep, self.released_at_once);
            Box::pin(settle::write(self.session, &settlement, keep, at_once)).await?;
            // Run deferred triggers now instead of at COMMIT.
            self.session
                .batch("rehearse the commit", "SET CONSTRAINTS ALL IMMEDIATE")
                .await
        };
        match self.undone(rehearsed).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_statement_refused() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Runs statements and takes them back.
    async fn undone<T>(
        &self,
        statements: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        self.session
            .batch("begin a rehearsal", "SAVEPOINT rehearsal")
            .await?;
        let done = statements.await;
        if done
            .as_ref()
            .is_err_and(|error| !error.is_statement_refused())
        {
            return done;
        }
        let undo = "ROLLBACK TO SAVEPOINT rehearsal; RELEASE SAVEPOINT rehearsal";
        self.session.batch("end a rehearsal", undo).await?;
        done
    }

    /// Messages whose settle would wait for another session's lock, with the reason.
    async fn locked(&self, subjects: &[Subject]) -> Result<HashMap<Position, Locked>, OutboxError> {
        let (lanes, ids): (Vec<Lane>, Vec<i64>) = subjects
            .iter()
            .map(|s| (s.position.lane, s.position.id))
            .unzip();
        let keys: Vec<Option<i64>> = subjects.iter().map(released).collect();
        let at_once = self.released_at_once as i64;
        let params: Params<'_> = &[&lanes, &ids, &keys, &at_once];
        let rows = match self.undone(self.session.query(&LOCKS, params)).await {
            // A privilege is missing. The rehearsal itself shows for which messages that matters.
            Err(error) if error.is_statement_refused() => return Ok(HashMap::new()),
            rows => rows?,
        };
        let by_position: HashMap<Position, &Subject> =
            subjects.iter().map(|s| (s.position, s)).collect();
        let mut locked = HashMap::new();
        for row in &rows {
            let position = Position {
                lane: get(row, "lane")?,
                id: get(row, "id")?,
            };
            let Some(subject) = by_position.get(&position) else {
                continue;
            };
            let marks = subject.publishes && !subject.replay;
            let record: bool = get(row, "record")?;
            let what = if record {
                "its record in outbox.waiting"
            } else if marks && get(row, "message")? {
                "its row"
            } else if get(row, "behind")? {
                "a record behind it in outbox.waiting"
            } else {
                continue;
            };
            locked.insert(position, (what, record));
        }
        if locked.is_empty() {
            return Ok(HashMap::new());
        }
        let positions: Vec<Position> = locked.keys().copied().collect();
        let blockers = blockers::find(self.session, &positions).await?;
        let whom = match blockers.is_empty() {
            true => "another transaction".to_owned(),
            false => blockers::text(&blockers),
        };
        Ok(locked
            .into_iter()
            .map(|(position, (what, record))| {
                let why = format!("{what} is locked by {whom}");
                (position, Locked { why, record })
            })
            .collect())
    }
}

/// How many of these are rehearsed together: up to the last that has room.
fn first(subjects: &[Subject], room: usize) -> usize {
    let mut left = room;
    let fits = |s: &&Subject| match (s.publishes, left) {
        (true, 0) => false,
        (true, _) => {
            left -= 1;
            true
        }
        (false, _) => true,
    };
    subjects.iter().take_while(fits).count()
}

fn publishes(subjects: &[Subject]) -> usize {
    subjects.iter().filter(|s| s.publishes).count()
}

/// Only some are rehearsed, and those that are refused come again with the next claim. So waiting messages and new ones are the
/// first by turns, and each of the waiting ones. New ones keep their order: a message that is passed by holds its key back.
fn in_turn(subjects: Vec<Subject>, rng: &mut impl Rng) -> Vec<Subject> {
    let (mut waiting, new): (Vec<_>, Vec<_>) = subjects.into_iter().partition(|s| s.filed);
    if !waiting.is_empty() {
        let first = rng.random_range(0..waiting.len());
        waiting.rotate_left(first);
    }
    match rng.random() {
        true => [waiting, new].concat(),
        false => [new, waiting].concat(),
    }
}

/// The key that its settle releases.
fn released(subject: &Subject) -> Option<i64> {
    subject.key_hash.filter(|_| subject.filed)
}

/// What a claim of these messages would settle if all of them had this outcome. `marks`: of the claim's lanes; each settle may
/// move the marks of its messages' lanes.
fn settlement(fate: Fate, subjects: &[Subject], marks: &[(Lane, Mark)]) -> Settlement {
    let lanes: HashSet<Lane> = subjects.iter().map(|s| s.position.lane).collect();
    let marks = marks.iter().filter(|(lane, _)| lanes.contains(lane));
    let mut settlement = Settlement {
        marks: marks.copied().collect(),
        ..Settlement::default()
    };
    for subject in subjects {
        let position = subject.position;
        match fate {
            Fate::Waits => settlement.wait.push(Wait {
                position,
                tx: subject.tx,
                cause: Cause::Retry,
                delay: Duration::from_secs(1),
                attempts: subject.attempts.saturating_add(1),
                reason: Some(Reason::Unmarkable),
                error: None,
                held_for: None,
            }),
            Fate::Dies => settlement.dead.push(DeadLetter {
                position,
                tx: subject.tx,
                reason: Reason::Unmarkable,
                attempts: subject.attempts.saturating_add(1),
                error: String::new(),
                replay: subject.replay,
            }),
            Fate::Sent => {
                if subject.publishes && !subject.replay {
                    settlement.sent.push(Sent {
                        position,
                        ctid: subject.ctid,
                        tx: subject.tx,
                    });
                }
            }
        }
        if subject.filed && !matches!(fate, Fate::Waits) {
            settlement.delete_waiting.push(position);
            let key = released(subject).map(|hash| (position.lane, hash));
            settlement.release.extend(key);
        }
    }
    settlement.release.sort_unstable();
    settlement.release.dedup();
    settlement
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(id: i64, publishes: bool) -> Subject {
        Subject {
            position: Position { lane: 0, id },
            ctid: Ctid::default(),
            tx: 0,
            key_hash: Some(7),
            attempts: 0,
            replay: false,
            filed: false,
            publishes,
            removes: false,
            waits: false,
            dies: false,
        }
    }

    #[test]
    fn messages_are_rehearsed_together_up_to_the_last_that_has_room() {
        let subjects = [true, false, true, false, true].map(|publishes| subject(1, publishes));
        assert_eq!(
            [0, 1, 2, 3, 4].map(|room| first(&subjects, room)),
            [0, 2, 4, 5, 5]
        );
    }

    #[test]
    fn only_a_filed_message_is_removed_from_the_waiting_and_frees_its_key() {
        for fate in [Fate::Waits, Fate::Dies, Fate::Sent] {
            let new = settlement(fate, &[subject(1, true)], &[]);
            assert!(new.delete_waiting.is_empty() && new.release.is_empty());
            let filed = Subject {
                filed: true,
                ..subject(1, true)
            };
            let filed = settlement(fate, &[filed, filed], &[]);
            let leaves = !matches!(fate, Fate::Waits);
            assert_eq!(filed.delete_waiting.len(), if leaves { 2 } else { 0 });
            assert_eq!(filed.release.len(), usize::from(leaves), "each key once");
        }
    }

    #[test]
    fn a_replay_has_its_mark_already() {
        let replay = Subject {
            replay: true,
            filed: true,
            ..subject(1, true)
        };
        let sent = settlement(Fate::Sent, &[replay], &[]);
        assert!(sent.sent.is_empty() && sent.delete_waiting.len() == 1);
    }

    #[test]
    fn no_message_is_always_rehearsed_after_others_and_new_ones_keep_their_order() {
        let of = |subject: Subject, id| Subject {
            position: Position { lane: 0, id },
            ..subject
        };
        let waiting = |id| Subject {
            filed: true,
            ..of(subject(1, true), id)
        };
        let all = || {
            (1..=3)
                .map(waiting)
                .chain((4..=6).map(|id| of(subject(1, true), id)))
        };
        let mut firsts = HashSet::new();
        for _ in 0..1000 {
            let turn = in_turn(all().collect(), &mut rand::rng());
            let ids: Vec<i64> = turn.iter().map(|s| s.position.id).collect();
            let new: Vec<i64> = ids.iter().copied().filter(|id| *id > 3).collect();
            assert_eq!((ids.len(), new), (6, vec![4, 5, 6]));
            firsts.insert(ids[0]);
        }
        assert_eq!(firsts, HashSet::from([1, 2, 3, 4]));
    }

    /// A trigger on the lanes would refuse the settle, whatever the outcomes.
    #[test]
    fn the_marks_of_the_messages_lanes_are_rehearsed_with_each_outcome() {
        let mark = Mark {
            low_water: 7,
            candidate: None,
        };
        for fate in [Fate::Waits, Fate::Dies, Fate::Sent] {
            let written = settlement(fate, &[subject(1, true)], &[(0, mark), (1, mark)]);
            assert_eq!(written.marks, [(0, mark)]);
        }
    }
}
