//! Who connects to PostgreSQL first when it has fewer connections for us than we want.
//!
//! Without the scout nothing is found, without a worker nothing is sent: with these two the relay delivers. Everybody else
//! makes it faster, or tells of it. So when the server refuses a connection to a task, one task that is less important gives
//! its own back. No number is configured: the limit may be the role's, the database's or the server's, others use it as
//! well, and it may change.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::RngExt;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::Database,
    outbox::{
        OutboxError,
        session::{Ear, Session},
    },
};

/// How important a task is; the lowest number is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(usize);

impl Rank {
    pub const SCOUT: Self = Self(0);
    pub const FIRST_WORKER: Self = Self(1);
    /// Gauges, retention.
    pub const HOUSEKEEPER: Self = Self(2);
    /// Only makes an idle relay quick.
    pub const LISTENER: Self = Self(3);

    pub fn worker(number: usize) -> Self {
        match number {
            0 => Self::FIRST_WORKER,
            n => Self(Self::LISTENER.0 + n),
        }
    }

    /// Workers take their tables without waiting, and wait for rows only.
    fn is_worker(self) -> bool {
        self == Self::FIRST_WORKER || self > Self::LISTENER
    }

    /// Without it nothing is delivered.
    pub fn is_needed(self) -> bool {
        self <= Self::FIRST_WORKER
    }
}

/// A task that was refused, or gave way, and that the relay can do without tries again so much later, and up to twice that.
const LATER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Seats {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    holders: BTreeSet<Rank>,
    /// Refused, and not connected since.
    refused: BTreeSet<Rank>,
    /// Who is to give way, and to whom. One at a time: a connection that is given back serves the next attempt.
    leaving: Option<(Rank, Rank)>,
    /// Whom a connection was just given back for: nobody else takes it.
    served: Option<Rank>,
}

/// A connection that a task holds.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    rank: Rank,
}

/// A session, and its place among those of this relay.
pub struct Seated {
    session: Session,
    seat: Seat,
}

impl Deref for Seated {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Seated {
    /// Resolves when this connection is to be given back to a task that is more important.
    pub async fn wanted(&self) {
        let mut changed = self.seat.seats.changed.subscribe();
        while self.seat.seats.state().leaves() != Some(self.seat.rank) {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl State {
    fn leaves(&self) -> Option<Rank> {
        self.leaving.map(|(leaver, _)| leaver)
    }
}

impl Seats {
    /// True when the task was not among the refused before: it is worth a word.
    pub fn refuse(&self, rank: Rank) -> bool {
        let mut state = self.state();
        let new = state.refused.insert(rank);
        state.served.take_if(|served| *served == rank);
        if state.leaving.is_none() {
            let least = state.holders.last().copied().filter(|last| *last > rank);
            state.leaving = least.map(|least| (least, rank));
        }
        drop(state);
        self.changed.send_replace(());
        new
    }

    /// When it is this task's turn.
    pub async fn connect(
        self: &Arc<Self>,
        rank: Rank,
        database: &Database,
        name: &str,
        ear: Option<Ear>,
    ) -> Result<Seated, OutboxError> {
        self.turn(rank).await;
        let session = match rank.is_worker() {
            true => Session::connect_with_ear(database, name, ear).await?,
            false => Session::connect_with_ear(&database.yielding(), name, ear).await?,
        };
        Ok(Seated {
            session,
            seat: self.take(rank),
        })
    }

    fn take(self: &Arc<Self>, rank: Rank) -> Seat {
        let mut state = self.state();
        state.refused.remove(&rank);
        state.served.take_if(|served| *served == rank);
        state.holders.insert(rank);
        drop(state);
        self.changed.send_replace(());
        Seat {
            seats: Arc::clone(self),
            rank,
        }
    }

    async fn turn(&self, rank: Rank) {
        let since = Instant::now();
        let later = LATER.mul_f64(rand::rng().random_range(1.0..=2.0));
        let mut changed = self.changed.subscribe();
        loop {
            let (is_served, was_refused, others) = {
                let state = self.state();
                let more_important = state.refused.first().is_some_and(|first| *first < rank);
                let refused = state.refused.contains(&rank);
                (state.served == Some(rank), refused, more_important)
            };
            if rank.is_needed() || is_served || !was_refused && !others {
                return;
            }
            // Not for ever for the sake of one that may be away for another reason.
            if tokio::time::timeout_at(since + later, changed.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.state();
        state.holders.remove(&self.rank);
        if state.leaves() == Some(self.rank) {
            state.served = state.leaving.take().map(|(_, rank)| rank);
            // It waits like one that was refused.
            state.refused.insert(self.rank);
        }
        drop(state);
        self.seats.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(seats: &Seats) -> Option<Rank> {
        seats.state().leaves()
    }

    #[test]
    fn the_least_important_gives_way_and_one_for_each_refusal() {
        let seats = Arc::new(Seats::default());
        let workers: Vec<Rank> = (0..4).map(Rank::worker).collect();
        let mut held: Vec<Seat> = workers.iter().map(|w| seats.take(*w)).collect();
        assert!(seats.refuse(Rank::SCOUT));
        assert_eq!(leaving(&seats), Some(workers[3]));
        assert!(!seats.refuse(Rank::SCOUT));
        assert_eq!(leaving(&seats), Some(workers[3]), "it has not left yet");
        held.pop();
        assert_eq!(leaving(&seats), None);
        let scout = seats.take(Rank::SCOUT);
        seats.refuse(Rank::HOUSEKEEPER);
        assert_eq!(leaving(&seats), Some(workers[2]));
        drop((held, scout));
    }

    #[test]
    fn nobody_gives_way_to_one_that_is_less_important() {
        let seats = Arc::new(Seats::default());
        let _held = [Rank::SCOUT, Rank::FIRST_WORKER].map(|rank| seats.take(rank));
        for rank in [Rank::HOUSEKEEPER, Rank::LISTENER, Rank::worker(1)] {
            seats.refuse(rank);
            assert_eq!(leaving(&seats), None, "{rank:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_refused_try_again_slowly_and_those_that_are_needed_at_once() {
        let seats = Arc::new(Seats::default());
        for rank in [Rank::SCOUT, Rank::FIRST_WORKER, Rank::worker(1)] {
            seats.refuse(rank);
        }
        let took = async |rank| {
            let since = Instant::now();
            seats.turn(rank).await;
            since.elapsed()
        };
        assert_eq!(took(Rank::SCOUT).await, Duration::ZERO);
        assert_eq!(took(Rank::FIRST_WORKER).await, Duration::ZERO);
        assert!(took(Rank::worker(1)).await >= LATER);
        // One that was given a connection takes it before anybody else does.
        let least = seats.take(Rank::worker(5));
        seats.refuse(Rank::HOUSEKEEPER);
        drop(least);
        assert_eq!(took(Rank::HOUSEKEEPER).await, Duration::ZERO);
        assert!(
            took(Rank::worker(2)).await >= LATER,
            "it lets the others go first"
        );
    }
}
