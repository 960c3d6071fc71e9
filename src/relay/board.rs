//! Which lanes this process should work on next: shared by the scout, who finds lanes with work, and the workers.
//!
//! The truth about a lane is its row lock in the database. The board only keeps the workers of one process from
//! asking for each other's lanes, and serves the lane that has waited longest first.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outbox_core::message::Lane;
use tokio::{sync::Notify, time::Instant};

pub const LANES: usize = 64;

/// Most lanes one claim takes with a backlog, so that other relays find lanes too. More lanes in a batch also mean more
/// keys, and fewer messages of one key that wait for each other. No divisor of `LANES`: those of one claim would stay
/// together, and what a claim shares among its lanes would not keep them up with all others (`outbox_core::share`).
const LANES_PER_CLAIM: usize = 15;
/// And without one. A claim costs the servers the same for one message as for thirty, so few large claims leave them
/// room; but lanes of one claim wait for its slowest confirm.
const LANES_PER_LIGHT_CLAIM: usize = 32;
/// A lane that is not full waits so long for others, while some worker works.
const GATHER: Duration = Duration::from_millis(5);
/// A lane that another relay has is not looked at, nor asked for, for so long: that relay reads it until nothing is left.
/// Longer would be felt where it was only tidied, or where that relay crashed.
const REST: Duration = Duration::from_millis(20);

/// While no worker waits for lanes, those of which nobody knows are looked at so rarely: a few lanes that are never empty
/// must not keep the others from being found.
const BUSY_LOOK: Duration = Duration::from_millis(100);

/// What a worker found in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// As many messages as it might read: more are there.
    Full,
    /// Not looked into: the lanes before it filled the batch. It keeps its turn.
    Unread,
    /// All there was, and something it was.
    Some,
    Nothing,
    /// Another relay, which has the lane.
    Peer,
}

/// A lane with work.
#[derive(Clone, Copy)]
struct Ready {
    since: Instant,
    full: bool,
}

enum Take {
    Lanes(Vec<Lane>),
    At(Instant),
    Nothing,
}

pub struct Board {
    lanes: Mutex<State>,
    work: Notify,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    ready: Option<Ready>,
    taken: bool,
    served: u64,
    /// Another relay had it.
    rests_until: Option<Instant>,
}

impl Slot {
    fn rests(&self) -> bool {
        self.rests_until.is_some_and(|end| Instant::now() < end)
    }

    fn is_unknown(&self) -> bool {
        self.ready.is_none() && !self.taken && !self.rests()
    }
}

struct State {
    slots: [Slot; LANES],
    clock: u64,
    /// Workers that wait for lanes.
    waiting: usize,
    /// When the scout was last sent.
    looked: Instant,
}

/// A lane that has work and that no worker has.
struct Free {
    number: usize,
    served: u64,
    ready: Ready,
}

impl Free {
    /// The longest unserved comes first. Lanes that were given back together come in another order each time (an odd factor
    /// permutes them), so that those left to the next worker are not always the same.
    fn turn(&self) -> (u64, usize) {
        let shift = (self.served % LANES as u64) as usize;
        let order = (self.number + shift) * (2 * shift + 1) % LANES;
        (self.served, order)
    }
}

impl State {
    fn free(&self) -> Vec<Free> {
        let lanes = self.slots.iter().enumerate();
        let free = lanes.filter(|(_, slot)| !slot.taken);
        free.filter_map(|(number, slot)| {
            let (served, ready) = (slot.served, slot.ready?);
            Some(Free {
                number,
                served,
                ready,
            })
        })
        .collect()
    }
}

impl Default for Board {
    fn default() -> Self {
        Self {
            lanes: Mutex::new(State {
                slots: [Slot::default(); LANES],
                clock: 0,
                waiting: 0,
                looked: Instant::now(),
            }),
            work: Notify::new(),
        }
    }
}

impl Board {
    /// Lanes that have work and that no worker of this process has, the longest unserved first. With a backlog, this
    /// worker's share among those that wait for lanes or come back soon. Waits for some.
    pub async fn take(&self) -> Taken<'_> {
        let _waits = Waits::new(self);
        loop {
            // Registered before looking, or an offer between the two would be lost.
            let offered = self.work.notified();
            match self.try_take() {
                Take::Lanes(lanes) => return Taken { board: self, lanes },
                Take::At(at) => {
                    let _ = tokio::time::timeout_at(at, offered).await;
                }
                Take::Nothing => offered.await,
            }
        }
    }

    fn try_take(&self) -> Take {
        let now = Instant::now();
        let mut state = self.state();
        let mut free = state.free();
        let Some(oldest) = free.iter().map(|lane| lane.ready.since).min() else {
            return Take::Nothing;
        };
        let worked = state.slots.iter().any(|slot| slot.taken);
        let share = if free.iter().any(|lane| lane.ready.full) {
            // While others work, a quarter is left for them: else each would only ever get back what it gave back.
            let some = if worked {
                (free.len() * 3).div_ceil(4)
            } else {
                free.len()
            };
            let share = some.div_ceil(state.waiting.max(1));
            share.min(LANES_PER_CLAIM)
        } else {
            let gathered = oldest + GATHER;
            if worked && free.len() < LANES_PER_LIGHT_CLAIM && now < gathered {
                return Take::At(gathered);
            }
            LANES_PER_LIGHT_CLAIM
        };
        free.sort_unstable_by_key(Free::turn);
        free.truncate(share);
        for lane in &free {
            state.slots[lane.number].taken = true;
        }
        let lanes = free.iter();
        Take::Lanes(
            lanes
                .filter_map(|lane| Lane::try_from(lane.number).ok())
                .collect(),
        )
    }

    /// The scout saw work in these lanes. Lanes that a worker has are left to that worker, who reads them again.
    /// True when some lane was not known to have work.
    pub fn offer(&self, lanes: impl IntoIterator<Item = Lane>) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let mut news = false;
        for lane in lanes {
            if let Some(slot) = usize::try_from(lane)
                .ok()
                .and_then(|lane| state.slots.get_mut(lane))
                && slot.is_unknown()
            {
                slot.ready = Some(Ready {
                    since: now,
                    full: false,
                });
                news = true;
            }
        }
        drop(state);
        if news {
            self.work.notify_waiters();
            self.work.notify_one();
        }
        news
    }

    /// Some worker has lanes.
    pub fn is_worked(&self) -> bool {
        self.state().slots.iter().any(|slot| slot.taken)
    }

    /// Some lane held more than was read of it.
    pub fn has_backlog(&self) -> bool {
        let full = |slot: &Slot| slot.ready.is_some_and(|ready| ready.full);
        self.state().slots.iter().any(full)
    }

    /// Another relay has had lanes just now.
    pub fn has_working_peer(&self) -> bool {
        self.state().slots.iter().any(Slot::rests)
    }

    /// Lanes that the scout should look at now. Those that are worked, or wait for a worker, are read by that worker, and
    /// those that a peer has by that peer: with a backlog everywhere none is left. Seldom, while nobody could take at once
    /// what is found. But while nobody works, because the broker is away, all: by looking one learns that the database is
    /// gone, or read-only, as well.
    pub fn to_look_at(&self) -> Vec<Lane> {
        let now = Instant::now();
        let mut state = self.state();
        let worked = state.slots.iter().any(|slot| slot.taken);
        if worked && state.waiting == 0 && now < state.looked + BUSY_LOOK {
            return Vec::new();
        }
        state.looked = now;
        let lanes = (0..).zip(&state.slots);
        let unknown: Vec<Lane> = lanes
            .filter(|(_, slot)| slot.is_unknown())
            .map(|(lane, _)| lane)
            .collect();
        if unknown.is_empty() && !worked && !state.slots.iter().any(Slot::rests) {
            return (0..).take(LANES).collect();
        }
        unknown
    }

    /// No worker has a lane, and none is ready.
    pub fn is_quiet(&self) -> bool {
        self.state()
            .slots
            .iter()
            .all(|slot| slot.ready.is_none() && !slot.taken)
    }

    fn give_back(&self, lanes: &[Lane], found: impl Fn(Lane) -> Found) {
        let now = Instant::now();
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        let mut again = false;
        for lane in lanes {
            let Some(slot) = usize::try_from(*lane)
                .ok()
                .and_then(|n| state.slots.get_mut(n))
            else {
                continue;
            };
            let found = found(*lane);
            slot.taken = false;
            if found != Found::Unread {
                slot.served = clock;
            }
            slot.ready = match found {
                Found::Nothing | Found::Peer => None,
                Found::Full | Found::Unread | Found::Some => Some(Ready {
                    since: now,
                    full: found != Found::Some,
                }),
            };
            slot.rests_until = (found == Found::Peer).then(|| now + REST);
            again |= slot.ready.is_some();
        }
        drop(state);
        if again {
            self.work.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker in `take`, until that returns or is given up.
struct Waits<'b>(&'b Board);

impl<'b> Waits<'b> {
    fn new(board: &'b Board) -> Self {
        board.state().waiting += 1;
        Self(board)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting -= 1;
        // What woke this worker may have been for lanes that it leaves: another must look.
        let left = !state.free().is_empty();
        drop(state);
        if left {
            self.0.work.notify_one();
        }
    }
}

/// Lanes lent to a worker. What it does not give back with a verdict is given back as having no work when this is
/// dropped, by a panic too; the scout finds it again if it has.
pub struct Taken<'b> {
    board: &'b Board,
    lanes: Vec<Lane>,
}

impl Taken<'_> {
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// With what was found in each. Where something was, it is read again without waiting for the scout.
    pub fn give_back(mut self, found: impl Fn(Lane) -> Found) {
        self.board
            .give_back(&std::mem::take(&mut self.lanes), found);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.board.give_back(&self.lanes, |_| Found::Nothing);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, pin::pin};

    use futures_util::{FutureExt, poll};
    use outbox_core::share::shares;
    use tokio::time::advance;

    use super::*;

    #[tokio::test]
    async fn the_longest_unserved_lane_comes_first_and_no_lane_is_lent_twice() {
        let board = Board::default();
        board.offer([3]);
        let first = board.take().await;
        board.offer([1, 2, 3]);
        let second = board.take().await;
        assert_eq!(second.lanes(), [1, 2], "3 is lent out");
        first.give_back(|_| Found::Full);
        board.offer([4]);
        assert_eq!(board.take().await.lanes(), [4, 3]);
    }

    #[tokio::test]
    async fn workers_that_wait_share_a_backlog() {
        let board = Board::default();
        board.offer([0]);
        assert!(!board.has_backlog(), "of what the scout saw, nobody knows");
        board.take().await.give_back(|_| Found::Full);
        let waits = [Waits::new(&board), Waits::new(&board)];
        board.offer(1..9);
        assert!(board.has_backlog());
        let taken = board.take().await;
        assert_eq!(taken.lanes().len(), 3);
        assert!(board.has_backlog(), "while it is worked off, too");
        drop(waits);
        taken.give_back(|_| Found::Full);
        board.offer(0..64);
        assert_eq!(board.take().await.lanes().len(), LANES_PER_CLAIM);
    }

    #[tokio::test]
    async fn who_works_alone_leaves_nothing_and_beside_others_not_always_the_same() {
        let board = Board::default();
        board.offer(0..4);
        for _ in 0..3 {
            let taken = board.take().await;
            assert_eq!(taken.lanes().len(), 4);
            taken.give_back(|_| Found::Full);
        }
        let all = board.take().await;
        board.offer([40]);
        let _other = board.take().await;
        all.give_back(|_| Found::Full);
        let mut left = [0; 4];
        for _ in 0..32 {
            let taken = board.take().await;
            assert_eq!(taken.lanes().len(), 3);
            let is_left = (0..4).find(|lane| !taken.lanes().contains(lane));
            left[is_left.unwrap() as usize] += 1;
            taken.give_back(|_| Found::Full);
        }
        assert!(left.iter().all(|times| *times > 0), "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_without_a_backlog_are_gathered_while_somebody_works() {
        let board = Board::default();
        board.offer([1]);
        let first = board.take().await;
        let began = Instant::now();
        board.offer([2, 3]);
        let second = board.take().await;
        assert!(began.elapsed() >= GATHER);
        assert_eq!(second.lanes(), [2, 3]);
        second.give_back(|_| Found::Some);
        first.give_back(|_| Found::Nothing);
        assert!(poll!(pin!(board.take())).is_ready(), "nobody works");
    }

    #[tokio::test(start_paused = true)]
    async fn many_lanes_and_a_backlog_are_not_gathered() {
        let board = Board::default();
        let now = async || {
            let began = Instant::now();
            let taken = board.take().await;
            assert_eq!(began.elapsed(), Duration::ZERO);
            taken
        };
        board.offer([63]);
        let first = now().await;
        board.offer(0..60);
        let many = now().await;
        assert_eq!(many.lanes().len(), LANES_PER_LIGHT_CLAIM);
        first.give_back(|_| Found::Full);
        assert_eq!(now().await.lanes().len(), LANES_PER_CLAIM);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_goes_leaves_the_lanes_it_gathered_to_another() {
        let board = Board::default();
        board.offer([1]);
        let worked = board.take().await;
        board.offer([2]);
        let other = board.take().await;
        let mut gathers = Box::pin(board.take());
        let mut waits = Box::pin(board.take());
        assert!(poll!(&mut gathers).is_pending());
        assert!(poll!(&mut waits).is_pending());
        // Wakes one of them.
        other.give_back(|_| Found::Some);
        assert!(poll!(&mut gathers).is_pending());
        drop(gathers);
        let taken = tokio::time::timeout(Duration::from_secs(10), waits).await;
        assert_eq!(taken.unwrap().lanes(), [2]);
        drop(worked);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_a_peer_has_rests() {
        let board = Board::default();
        board.offer([1, 2]);
        let taken = board.take().await;
        taken.give_back(|lane| {
            if lane == 1 {
                Found::Peer
            } else {
                Found::Nothing
            }
        });
        assert!(board.has_working_peer());
        assert!(!board.to_look_at().contains(&1), "not to be looked at");
        assert!(!board.offer([1]), "nor to be asked for");
        assert!(board.offer([2]));
        advance(REST).await;
        assert!(!board.has_working_peer());
        assert!(board.to_look_at().contains(&1));
        assert!(board.offer([1]));
        assert_eq!(board.take().await.lanes(), [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_scout_looks_where_nobody_knows_and_seldom_while_nobody_could_take_it() {
        let board = Board::default();
        assert_eq!(board.to_look_at().len(), LANES);
        board.offer([1]);
        assert!(!board.to_look_at().contains(&1), "known to have work");
        let taken = board.take().await;
        assert!(board.to_look_at().is_empty(), "no worker waits");
        advance(BUSY_LOOK).await;
        assert_eq!(board.to_look_at().len(), LANES - 1, "but not for ever");
        assert!(board.to_look_at().is_empty());
        let mut waits = Box::pin(board.take());
        assert!(poll!(&mut waits).is_pending());
        let looked_at = board.to_look_at();
        assert_eq!(looked_at.len(), LANES - 1);
        assert!(!looked_at.contains(&1), "its worker reads it");
        drop((waits, taken));
    }

    #[tokio::test(start_paused = true)]
    async fn the_scout_looks_at_all_while_all_have_work_and_nobody_takes_it() {
        let board = Board::default();
        board.offer([0]);
        board.take().await.give_back(|_| Found::Peer);
        board.offer(1..64);
        assert!(board.to_look_at().is_empty(), "a peer works");
        advance(REST).await;
        board.offer([0]);
        assert_eq!(board.to_look_at().len(), LANES, "the broker is away");
    }

    #[tokio::test]
    async fn a_lane_that_the_batch_had_no_room_for_keeps_its_turn() {
        let board = Board::default();
        board.offer([1, 2, 3]);
        let taken = board.take().await;
        taken.give_back(|lane| {
            if lane == 3 {
                Found::Unread
            } else {
                Found::Full
            }
        });
        assert_eq!(board.take().await.lanes(), [3, 1, 2]);
    }

    /// Keys fall into lanes as they like: here the fullest lane has more than twice the messages of the emptiest. Without
    /// shares, or with lanes that stay together, they drift apart for as long as the backlog lasts.
    #[tokio::test]
    async fn lanes_of_a_backlog_advance_together_however_full_they_are() {
        for workers in [1, 2, 4, 6, 8] {
            let board = Board::default();
            board.offer(0..64);
            let mut positions = [0; LANES];
            let between_two = |lane: Lane| i64::from(lane) * 37 % 64 + 48;
            let mut busy = VecDeque::new();
            for _ in 0..10_000 {
                if let Some(taken) = board.take().now_or_never() {
                    let lanes = taken.lanes().iter();
                    let marks: Vec<i64> = lanes.map(|lane| positions[*lane as usize]).collect();
                    for (lane, share) in taken.lanes().iter().zip(shares(&marks, 500)) {
                        positions[*lane as usize] += share as i64 * between_two(*lane);
                    }
                    busy.push_back(taken);
                    if busy.len() < workers {
                        continue;
                    }
                }
                busy.pop_front().unwrap().give_back(|_| Found::Full);
            }
            let [first, last] =
                [positions.iter().max(), positions.iter().min()].map(Option::unwrap);
            assert!(*last > 1_000_000, "{workers} workers: {last}");
            assert!(
                first - last < 200_000,
                "{workers} workers: {last} to {first}"
            );
        }
    }

    #[tokio::test]
    async fn lanes_dropped_by_a_panicking_worker_come_back_as_quiet() {
        let board = Board::default();
        board.offer([5]);
        drop(board.take().await);
        assert!(board.is_quiet());
        board.offer([5]);
        assert_eq!(board.take().await.lanes(), [5]);
    }
}
