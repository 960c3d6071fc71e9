//! Hands lanes with work to the workers of one source: the scout offers lanes, workers take and release them.
//!
//! `outbox_core::scheduling` decides which lanes. This file has the lock around it, and the waiting.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outbox_core::{
    message::Lane,
    scheduling::{LaneResult, LaneSchedule, Next, Tuning},
};
use tokio::{sync::Notify, time::Instant};

pub struct Lanes {
    schedule: Mutex<LaneSchedule>,
    work: Notify,
}

impl Lanes {
    pub fn new(tuning: Tuning) -> Self {
        Self {
            schedule: Mutex::new(LaneSchedule::new(tuning, now())),
            work: Notify::new(),
        }
    }

    /// Lanes for a worker. Waits until there are some.
    pub async fn take(&self) -> TakenLanes<'_> {
        let _waiting = Waiting::new(self);
        loop {
            // Registered before asking, or an offer between the two would be lost.
            let offered = self.work.notified();
            let next = self.schedule().next(now());
            match next {
                Next::Take(taken) => return TakenLanes { lanes: self, taken },
                Next::WaitUntil(at) => {
                    let _ = tokio::time::timeout_at(Instant::from_std(at), offered).await;
                }
                Next::Wait => offered.await,
            }
        }
    }

    /// A poll saw work in these lanes. True when a lane was not known to have work.
    pub fn offer(&self, lanes: impl IntoIterator<Item = Lane>) -> bool {
        let news = self.schedule().offer(lanes, now());
        if news {
            self.work.notify_waiters();
            self.work.notify_one();
        }
        news
    }

    /// Lanes that the scout polls now.
    pub fn to_poll(&self) -> Vec<Lane> {
        self.schedule().lanes_to_poll(now())
    }

    pub fn any_taken(&self) -> bool {
        self.schedule().any_taken()
    }

    pub fn has_backlog(&self) -> bool {
        self.schedule().has_backlog()
    }

    pub fn another_relay_works(&self) -> bool {
        self.schedule().another_relay_works(now())
    }

    pub fn is_quiet(&self) -> bool {
        self.schedule().is_quiet()
    }

    fn release(&self, lanes: &[Lane], result: impl Fn(Lane) -> LaneResult) {
        let any_work = self.schedule().release(lanes, result, now());
        if any_work {
            self.work.notify_one();
        }
    }

    fn schedule(&self) -> MutexGuard<'_, LaneSchedule> {
        let schedule = self.schedule.lock();
        schedule.unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A worker in `take`, until `take` returns or is dropped.
struct Waiting<'l>(&'l Lanes);

impl<'l> Waiting<'l> {
    fn new(lanes: &'l Lanes) -> Self {
        lanes.schedule().start_waiting();
        Self(lanes)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let lanes_left = self.0.schedule().stop_waiting();
        if lanes_left {
            self.0.work.notify_one();
        }
    }
}

/// Lanes that a worker has. If it drops them without a result (it panics, or its claim fails), they are released as empty;
/// the scout finds them again if they have work.
pub struct TakenLanes<'l> {
    lanes: &'l Lanes,
    taken: Vec<Lane>,
}

impl TakenLanes<'_> {
    pub fn lanes(&self) -> &[Lane] {
        &self.taken
    }

    /// `result` is what the claim found in each lane.
    pub fn release(mut self, result: impl Fn(Lane) -> LaneResult) {
        self.lanes.release(&std::mem::take(&mut self.taken), result);
    }
}

impl Drop for TakenLanes<'_> {
    fn drop(&mut self) {
        self.lanes.release(&self.taken, |_| LaneResult::Empty);
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures_util::poll;

    use super::*;

    const TUNING: Tuning = Tuning::MEASURED;

    #[tokio::test(start_paused = true)]
    async fn a_worker_waits_for_an_offer_and_for_lanes_to_gather() {
        let lanes = Lanes::new(TUNING);
        let mut first = pin!(lanes.take());
        assert!(poll!(&mut first).is_pending());
        lanes.offer([1]);
        let first = first.await;
        let began = Instant::now();
        lanes.offer([2, 3]);
        let second = lanes.take().await;
        assert!(began.elapsed() >= TUNING.gather_lanes_for);
        assert_eq!(second.lanes(), [2, 3]);
        second.release(|_| LaneResult::Drained);
        first.release(|_| LaneResult::Empty);
        assert!(poll!(pin!(lanes.take())).is_ready(), "nobody works");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_leaves_does_not_keep_the_lanes_it_gathered_from_others() {
        let lanes = Lanes::new(TUNING);
        lanes.offer([1]);
        let taken = lanes.take().await;
        lanes.offer([2]);
        let other = lanes.take().await;
        let mut gathers = Box::pin(lanes.take());
        let mut waits = Box::pin(lanes.take());
        assert!(poll!(&mut gathers).is_pending());
        assert!(poll!(&mut waits).is_pending());
        // Wakes one of them.
        other.release(|_| LaneResult::Drained);
        assert!(poll!(&mut gathers).is_pending());
        drop(gathers);
        let second = tokio::time::timeout(Duration::from_secs(10), waits).await;
        assert_eq!(second.unwrap().lanes(), [2]);
        drop(taken);
    }

    /// Each wait is counted, or a backlog is divided among workers that are not there.
    #[tokio::test(start_paused = true)]
    async fn workers_that_wait_share_a_backlog_and_those_that_left_do_not() {
        let lanes = Lanes::new(TUNING);
        let mut waits = [(); 3].map(|()| Box::pin(lanes.take()));
        for wait in &mut waits {
            assert!(poll!(wait).is_pending());
        }
        lanes.offer([0]);
        let [first, second, third] = waits;
        let taken = first.await;
        drop(third);
        taken.release(|_| LaneResult::Backlog);
        lanes.offer(1..9);
        assert_eq!(lanes.take().await.lanes().len(), 5, "of nine, by two");
        drop(second);
    }

    #[tokio::test]
    async fn lanes_dropped_by_a_panicking_worker_are_released_as_empty() {
        let lanes = Lanes::new(TUNING);
        lanes.offer([5]);
        drop(lanes.take().await);
        assert!(lanes.is_quiet());
        lanes.offer([5]);
        assert_eq!(lanes.take().await.lanes(), [5]);
    }
}
