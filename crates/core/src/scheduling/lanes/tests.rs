use std::{collections::VecDeque, time::Duration};

use super::{
    LaneResult::{Backlog, Drained, Empty, HeldElsewhere, Unread},
    *,
};
use crate::scheduling::share::shares;

const TUNING: Tuning = Tuning::MEASURED;

/// A schedule, and the time.
struct Source {
    schedule: LaneSchedule,
    now: Instant,
}

impl Source {
    fn new() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant has no other beginning; the tests move it themselves"
        )]
        let now = Instant::now();
        Self {
            schedule: LaneSchedule::new(TUNING, now),
            now,
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    fn offer(&mut self, lanes: impl IntoIterator<Item = Lane>) -> bool {
        self.schedule.offer(lanes, self.now)
    }

    /// A worker comes, asks, and does not stay.
    fn next(&mut self) -> Next {
        self.schedule.start_waiting();
        let next = self.schedule.next(self.now);
        self.schedule.stop_waiting();
        next
    }

    fn take(&mut self) -> Vec<Lane> {
        match self.next() {
            Next::Take(lanes) => lanes,
            wait => panic!("{wait:?}"),
        }
    }

    fn release(&mut self, lanes: &[Lane], result: LaneResult) -> bool {
        self.schedule.release(lanes, |_| result, self.now)
    }

    fn poll(&mut self) -> Vec<Lane> {
        self.schedule.lanes_to_poll(self.now)
    }
}

#[test]
fn the_longest_unserved_lane_comes_first_and_no_lane_is_taken_twice() {
    let mut source = Source::new();
    source.offer([3]);
    let first = source.take();
    source.offer([1, 2, 3]);
    source.advance(TUNING.gather_lanes_for);
    assert_eq!(source.take(), [1, 2], "a worker has 3");
    source.release(&first, Backlog);
    source.offer([4]);
    assert_eq!(source.take(), [4, 3]);
    assert_eq!(source.next(), Next::Wait);
}

#[test]
fn workers_that_wait_share_a_backlog() {
    let mut source = Source::new();
    source.offer([0]);
    let has_backlog = |source: &Source| source.schedule.has_backlog();
    assert!(!has_backlog(&source), "a poll does not tell how much it is");
    let lanes = source.take();
    source.release(&lanes, Backlog);
    source.schedule.start_waiting();
    source.schedule.start_waiting();
    source.offer(1..9);
    assert!(has_backlog(&source));
    let lanes = source.take();
    assert_eq!(lanes.len(), 3);
    assert!(has_backlog(&source), "while it is worked off, too");
    source.schedule.stop_waiting();
    source.schedule.stop_waiting();
    source.release(&lanes, Backlog);
    source.offer(0..64);
    assert_eq!(source.take().len(), TUNING.lanes_per_backlog_claim);
}

#[test]
fn a_worker_alone_leaves_no_lane_and_one_beside_others_not_always_the_same() {
    let mut source = Source::new();
    source.offer(0..4);
    for _ in 0..3 {
        let lanes = source.take();
        assert_eq!(lanes.len(), 4);
        source.release(&lanes, Backlog);
    }
    let all = source.take();
    source.offer([40]);
    source.advance(TUNING.gather_lanes_for);
    assert_eq!(source.take(), [40]);
    source.release(&all, Backlog);
    let mut left = [0; 4];
    for _ in 0..32 {
        let lanes = source.take();
        assert_eq!(lanes.len(), 3);
        let is_left = (0..4).find(|lane| !lanes.contains(lane));
        left[is_left.unwrap() as usize] += 1;
        source.release(&lanes, Backlog);
    }
    assert!(left.iter().all(|times| *times > 0), "{left:?}");
}

#[test]
fn lanes_without_a_backlog_are_gathered_while_a_worker_works() {
    let mut source = Source::new();
    source.offer([1]);
    let first = source.take();
    let gathered = source.now + TUNING.gather_lanes_for;
    source.offer([2]);
    assert_eq!(source.next(), Next::WaitUntil(gathered));
    source.advance(TUNING.gather_lanes_for / 2);
    source.offer([3]);
    assert_eq!(source.next(), Next::WaitUntil(gathered), "2 waits longest");
    source.now = gathered;
    let second = source.take();
    assert_eq!(second, [2, 3]);
    assert!(source.release(&second, Drained));
    assert!(matches!(source.next(), Next::WaitUntil(_)));
    assert!(!source.release(&first, Empty));
    assert_eq!(source.take(), [2, 3], "nobody works");
}

#[test]
fn many_lanes_and_a_backlog_are_not_gathered() {
    let mut source = Source::new();
    source.offer([63]);
    let first = source.take();
    source.offer(0..60);
    assert_eq!(source.take().len(), TUNING.lanes_per_light_claim);
    source.release(&first, Backlog);
    assert_eq!(source.take().len(), TUNING.lanes_per_backlog_claim);
}

#[test]
fn a_worker_that_stops_waiting_says_whether_it_leaves_lanes() {
    let mut source = Source::new();
    source.schedule.start_waiting();
    assert!(!source.schedule.stop_waiting());
    source.offer([1]);
    source.schedule.start_waiting();
    assert!(source.schedule.stop_waiting());
    source.take();
    source.schedule.start_waiting();
    assert!(!source.schedule.stop_waiting(), "a worker has it");
}

#[test]
fn a_lane_that_another_relay_holds_is_ignored_for_a_while() {
    let mut source = Source::new();
    source.offer([1, 2]);
    let lanes = source.take();
    let held = |lane| if lane == 1 { HeldElsewhere } else { Empty };
    assert!(!source.schedule.release(&lanes, held, source.now));
    assert!(source.schedule.another_relay_works(source.now));
    assert!(!source.poll().contains(&1), "not polled");
    assert!(!source.offer([1]), "nor asked for");
    assert!(source.offer([2]));
    source.advance(TUNING.ignore_foreign_lane_for);
    assert!(!source.schedule.another_relay_works(source.now));
    assert!(source.poll().contains(&1));
    assert!(source.offer([1]));
    assert_eq!(source.take(), [1, 2]);
}

#[test]
fn the_scout_polls_unknown_lanes_and_rarely_while_no_worker_waits() {
    let mut source = Source::new();
    assert_eq!(source.poll().len(), LANES);
    source.offer([1]);
    assert!(!source.poll().contains(&1), "known to have work");
    source.take();
    assert!(source.poll().is_empty(), "no worker waits");
    source.advance(TUNING.poll_beside_busy_workers_every);
    assert_eq!(source.poll().len(), LANES - 1, "after a while it does");
    assert!(source.poll().is_empty());
    source.schedule.start_waiting();
    let polled = source.poll();
    assert_eq!(polled.len(), LANES - 1);
    assert!(!polled.contains(&1), "its worker reads it");
}

#[test]
fn the_scout_polls_all_lanes_while_all_have_work_and_nobody_takes_them() {
    let mut source = Source::new();
    source.offer([0]);
    let lanes = source.take();
    source.release(&lanes, HeldElsewhere);
    source.offer(1..64);
    assert!(source.poll().is_empty(), "another relay works");
    source.advance(TUNING.ignore_foreign_lane_for);
    source.offer([0]);
    assert_eq!(source.poll().len(), LANES, "the broker is away");
}

#[test]
fn a_lane_that_the_batch_had_no_room_for_keeps_its_turn() {
    let mut source = Source::new();
    source.offer([1, 2, 3]);
    let lanes = source.take();
    let no_room = |lane| if lane == 3 { Unread } else { Backlog };
    assert!(source.schedule.release(&lanes, no_room, source.now));
    assert_eq!(source.take(), [3, 1, 2]);
}

#[test]
fn a_schedule_is_quiet_without_work_and_without_workers() {
    let mut source = Source::new();
    assert!(source.schedule.is_quiet() && !source.schedule.any_taken());
    source.offer([5]);
    assert!(!source.schedule.is_quiet() && !source.schedule.any_taken());
    let lanes = source.take();
    assert!(!source.schedule.is_quiet() && source.schedule.any_taken());
    source.release(&lanes, Empty);
    assert!(source.schedule.is_quiet() && !source.schedule.any_taken());
}

#[test]
fn numbers_that_are_no_lanes_are_passed_over() {
    let mut source = Source::new();
    assert!(!source.offer([-1, 64]));
    assert!(!source.release(&[-1, 64], Backlog));
    assert_eq!(source.next(), Next::Wait);
}

/// Keys do not fall into lanes evenly: here the fullest lane has more than twice the messages of the emptiest. Without
/// shares, or if the same lanes met in every claim, they would drift apart for as long as the backlog lasts.
#[test]
fn lanes_of_a_backlog_advance_together_however_full_they_are() {
    for workers in [1, 2, 4, 6, 8] {
        let mut source = Source::new();
        source.offer(0..64);
        let mut positions = [0; LANES];
        let between_two = |lane: Lane| i64::from(lane) * 37 % 64 + 48;
        let mut busy: VecDeque<Vec<Lane>> = VecDeque::new();
        for _ in 0..10_000 {
            if let Next::Take(lanes) = source.next() {
                let marks: Vec<i64> = lanes.iter().map(|lane| positions[index(*lane)]).collect();
                for (lane, share) in lanes.iter().zip(shares(&TUNING, &marks, 500)) {
                    positions[index(*lane)] += share as i64 * between_two(*lane);
                }
                busy.push_back(lanes);
                if busy.len() < workers {
                    continue;
                }
            }
            let lanes = busy.pop_front().unwrap();
            source.release(&lanes, Backlog);
        }
        let [first, last] = [positions.iter().max(), positions.iter().min()].map(Option::unwrap);
        assert!(*last > 1_000_000, "{workers} workers: {last}");
        assert!(
            first - last < 200_000,
            "{workers} workers: {last} to {first}"
        );
    }
}

#[test]
fn lanes_of_one_claim_do_not_stay_together() {
    assert_ne!(LANES % TUNING.lanes_per_backlog_claim, 0);
}
