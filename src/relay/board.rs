//! Which lanes this process should work on next: shared by the scout, who finds lanes with work, and the workers.
//!
//! The truth about a lane is its row lock in the database. The board only keeps the workers of one process from
//! asking for each other's lanes, and serves the lane that has waited longest first.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::message::Lane;

pub const LANES: usize = 64;

/// Most lanes one claim takes, so that other relays find lanes too. More lanes in a batch also mean more keys,
/// and fewer messages of one key that wait for each other.
const LANES_PER_CLAIM: usize = 16;

pub struct Board {
    lanes: Mutex<State>,
    work: Notify,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    ready: bool,
    taken: bool,
    served: u64,
}

struct State {
    slots: [Slot; LANES],
    clock: u64,
    /// Workers that wait for lanes.
    waiting: usize,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            lanes: Mutex::new(State {
                slots: [Slot::default(); LANES],
                clock: 0,
                waiting: 0,
            }),
            work: Notify::new(),
        }
    }
}

impl Board {
    /// Lanes that have work and that no worker of this process has, the longest unserved first: this worker's share among
    /// those that wait for lanes. Waits for some.
    pub async fn take(&self) -> Taken<'_> {
        let _waits = Waits::new(self);
        loop {
            // Registered before looking, or an offer between the two would be lost.
            let offered = self.work.notified();
            if let Some(lanes) = self.try_take() {
                return Taken { board: self, lanes };
            }
            offered.await;
        }
    }

    fn try_take(&self) -> Option<Vec<Lane>> {
        let mut state = self.state();
        let mut free: Vec<(u64, usize)> = state
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.ready && !slot.taken)
            .map(|(lane, slot)| (slot.served, lane))
            .collect();
        if free.is_empty() {
            return None;
        }
        free.sort_unstable();
        let share = free.len().div_ceil(state.waiting.max(1));
        let share = share.min(LANES_PER_CLAIM);
        free.truncate(share);
        state.clock += 1;
        let now = state.clock;
        for (_, lane) in &free {
            state.slots[*lane].taken = true;
            state.slots[*lane].served = now;
        }
        let more = state.slots.iter().any(|slot| slot.ready && !slot.taken);
        drop(state);
        if more {
            self.work.notify_one();
        }
        Some(
            free.into_iter()
                .filter_map(|(_, lane)| Lane::try_from(lane).ok())
                .collect(),
        )
    }

    /// The scout saw work in these lanes. Lanes that a worker has are left to that worker, who reads them again.
    /// True when some lane was not known to have work.
    pub fn offer(&self, lanes: impl IntoIterator<Item = Lane>) -> bool {
        let mut state = self.state();
        let mut news = false;
        for lane in lanes {
            if let Some(slot) = usize::try_from(lane)
                .ok()
                .and_then(|lane| state.slots.get_mut(lane))
                && !slot.taken
                && !slot.ready
            {
                slot.ready = true;
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

    /// Lanes of which nobody knows whether they have work.
    pub fn unknown(&self) -> Vec<Lane> {
        let state = self.state();
        let lanes = (0..).zip(&state.slots);
        lanes
            .filter(|(_, slot)| !slot.ready && !slot.taken)
            .map(|(lane, _)| lane)
            .collect()
    }

    /// No worker has a lane, and none is ready.
    pub fn is_quiet(&self) -> bool {
        self.state()
            .slots
            .iter()
            .all(|slot| !slot.ready && !slot.taken)
    }

    fn give_back(&self, lane: Lane, again: bool) {
        let mut state = self.state();
        if let Some(slot) = usize::try_from(lane)
            .ok()
            .and_then(|lane| state.slots.get_mut(lane))
        {
            slot.taken = false;
            slot.ready = again;
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
        self.0.state().waiting -= 1;
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

    /// `again`: there may be more, read it again without waiting for the scout.
    pub fn give_back(mut self, again: impl Fn(Lane) -> bool) {
        for lane in std::mem::take(&mut self.lanes) {
            self.board.give_back(lane, again(lane));
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for lane in std::mem::take(&mut self.lanes) {
            self.board.give_back(lane, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_unserved_lane_comes_first_and_no_lane_is_lent_twice() {
        let board = Board::default();
        board.offer([3]);
        let first = board.take().await;
        board.offer([1, 2, 3]);
        let second = board.take().await;
        assert_eq!(second.lanes(), [1, 2], "3 is lent out");
        first.give_back(|_| true);
        board.offer([4]);
        assert_eq!(board.take().await.lanes(), [4, 3]);
    }

    #[tokio::test]
    async fn workers_that_wait_share_the_lanes() {
        let board = Board::default();
        let waits = [Waits::new(&board), Waits::new(&board)];
        board.offer(0..9);
        assert_eq!(board.take().await.lanes().len(), 3);
        drop(waits);
        board.offer(0..9);
        assert_eq!(board.take().await.lanes().len(), 9);
        board.offer(0..64);
        assert_eq!(board.take().await.lanes().len(), LANES_PER_CLAIM);
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
