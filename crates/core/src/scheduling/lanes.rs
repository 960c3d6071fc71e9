//! Which lanes a worker takes, and which lanes the scout polls.
//!
//! The authority over a lane is its row lock in the database. This schedule only keeps the workers of one process from
//! asking for each other's lanes, and gives the lane that has waited longest first.

use std::time::Instant;

use super::tuning::Tuning;
use crate::message::Lane;

/// Rows of `outbox.lane`.
pub const LANES: usize = 64;

pub fn all_lanes() -> impl Iterator<Item = Lane> {
    (0..).take(LANES)
}

/// What a worker says about a lane that it releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneResult {
    /// The claim read as many messages as it might: the lane has more.
    Backlog,
    /// The claim did not read the lane, because the lanes before it filled the batch. The lane keeps its turn.
    Unread,
    /// The claim read all messages of the lane, at least one.
    Drained,
    Empty,
    /// Another relay holds the lane.
    HeldElsewhere,
}

impl LaneResult {
    /// The lane is read again without a poll.
    fn has_work(self) -> bool {
        match self {
            Self::Backlog | Self::Unread | Self::Drained => true,
            Self::Empty | Self::HeldElsewhere => false,
        }
    }
}

/// What a worker that waits for lanes does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Take(Vec<Lane>),
    /// Ask again then, or after the next offer or release.
    WaitUntil(Instant),
    /// Ask again after the next offer or release.
    Wait,
}

/// The lanes of one source, as this process knows them.
#[derive(Debug)]
pub struct LaneSchedule {
    tuning: Tuning,
    lanes: [State; LANES],
    releases: u64,
    waiting_workers: usize,
    polled_at: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    work: Option<Work>,
    taken: bool,
    /// The number of the release after which the lane was read last.
    served: u64,
    /// Another relay held the lane.
    ignored_until: Option<Instant>,
}

/// Messages wait in a lane.
#[derive(Debug, Clone, Copy)]
struct Work {
    since: Instant,
    backlog: bool,
}

impl State {
    fn is_ignored(&self, now: Instant) -> bool {
        self.ignored_until.is_some_and(|end| now < end)
    }

    /// Only a poll can tell whether the lane has work.
    fn is_unknown(&self, now: Instant) -> bool {
        self.work.is_none() && !self.taken && !self.is_ignored(now)
    }
}

/// A lane that has work and that no worker has.
struct Free {
    lane: Lane,
    served: u64,
    work: Work,
}

impl Free {
    /// The lane that has waited longest comes first. Lanes that were released together come in another order each time (an
    /// odd factor permutes them): otherwise the same lanes would always be left to the next worker.
    fn turn(&self) -> (u64, usize) {
        let shift = (self.served % LANES as u64) as usize;
        let order = (index(self.lane) + shift) * (2 * shift + 1) % LANES;
        (self.served, order)
    }
}

/// A number that is no lane has an index that is none.
fn index(lane: Lane) -> usize {
    usize::try_from(lane).unwrap_or(usize::MAX)
}

impl LaneSchedule {
    pub fn new(tuning: Tuning, now: Instant) -> Self {
        Self {
            tuning,
            lanes: [State::default(); LANES],
            releases: 0,
            waiting_workers: 0,
            polled_at: now,
        }
    }

    /// A worker waits for lanes, until `stop_waiting`.
    pub fn start_waiting(&mut self) {
        self.waiting_workers += 1;
    }

    /// True when free lanes are left: another worker must ask for them, because the event that woke this one may have been
    /// about them.
    pub fn stop_waiting(&mut self) -> bool {
        self.waiting_workers -= 1;
        self.free().next().is_some()
    }

    /// Takes lanes for a worker that waits. During a backlog, the free lanes are divided among the workers that wait.
    pub fn next(&mut self, now: Instant) -> Next {
        let mut free: Vec<Free> = self.free().collect();
        let Some(oldest) = free.iter().map(|lane| lane.work.since).min() else {
            return Next::Wait;
        };
        let others_work = self.any_taken();
        let most = if free.iter().any(|lane| lane.work.backlog) {
            let one_in = self.tuning.leave_one_lane_in;
            let allowed = if others_work {
                (free.len() * (one_in - 1)).div_ceil(one_in)
            } else {
                free.len()
            };
            let share = allowed.div_ceil(self.waiting_workers.max(1));
            share.min(self.tuning.lanes_per_backlog_claim)
        } else {
            let most = self.tuning.lanes_per_light_claim;
            let gathered = oldest + self.tuning.gather_lanes_for;
            if others_work && free.len() < most && now < gathered {
                return Next::WaitUntil(gathered);
            }
            most
        };
        free.sort_unstable_by_key(Free::turn);
        free.truncate(most);
        for lane in &free {
            self.lanes[index(lane.lane)].taken = true;
        }
        Next::Take(free.iter().map(|lane| lane.lane).collect())
    }

    /// A poll saw work in these lanes. A lane that a worker has is left to that worker, who reads it again. True when a
    /// lane was not known to have work.
    pub fn offer(&mut self, lanes: impl IntoIterator<Item = Lane>, now: Instant) -> bool {
        let mut news = false;
        for lane in lanes {
            if let Some(state) = self.lanes.get_mut(index(lane))
                && state.is_unknown(now)
            {
                let (since, backlog) = (now, false);
                state.work = Some(Work { since, backlog });
                news = true;
            }
        }
        news
    }

    /// A worker is done with the lanes that it took. True when one of them still has work.
    pub fn release(
        &mut self,
        lanes: &[Lane],
        result: impl Fn(Lane) -> LaneResult,
        now: Instant,
    ) -> bool {
        self.releases += 1;
        let ignored_until = now + self.tuning.ignore_foreign_lane_for;
        let mut any_work = false;
        for lane in lanes {
            let Some(state) = self.lanes.get_mut(index(*lane)) else {
                continue;
            };
            let result = result(*lane);
            state.taken = false;
            if result != LaneResult::Unread {
                state.served = self.releases;
            }
            state.work = result.has_work().then_some(Work {
                since: now,
                backlog: result != LaneResult::Drained,
            });
            state.ignored_until = (result == LaneResult::HeldElsewhere).then_some(ignored_until);
            any_work |= state.work.is_some();
        }
        any_work
    }

    /// Lanes that the scout polls now: those of which nobody knows. Workers read the lanes that they have or wait for, and
    /// another relay reads its own, so during a backlog in every lane there is nothing to poll. While no worker waits, polls
    /// are rare.
    ///
    /// While all lanes have work and nobody takes them, because the broker is away, all lanes are polled: the poll also
    /// tells whether the database is gone or read-only.
    pub fn lanes_to_poll(&mut self, now: Instant) -> Vec<Lane> {
        let workers_busy = self.any_taken();
        let due = self.polled_at + self.tuning.poll_beside_busy_workers_every;
        if workers_busy && self.waiting_workers == 0 && now < due {
            return Vec::new();
        }
        self.polled_at = now;
        let lanes = (0..).zip(&self.lanes);
        let unknown: Vec<Lane> = lanes
            .filter(|(_, state)| state.is_unknown(now))
            .map(|(lane, _)| lane)
            .collect();
        if unknown.is_empty() && !workers_busy && !self.another_relay_works(now) {
            return all_lanes().collect();
        }
        unknown
    }

    /// A worker has lanes.
    pub fn any_taken(&self) -> bool {
        self.lanes.iter().any(|state| state.taken)
    }

    /// A lane has more messages than its last claim might read.
    pub fn has_backlog(&self) -> bool {
        let backlog = |state: &State| state.work.is_some_and(|work| work.backlog);
        self.lanes.iter().any(backlog)
    }

    /// Another relay held a lane a moment ago.
    pub fn another_relay_works(&self, now: Instant) -> bool {
        self.lanes.iter().any(|state| state.is_ignored(now))
    }

    /// No lane has work, and no worker has a lane.
    pub fn is_quiet(&self) -> bool {
        let quiet = |state: &State| state.work.is_none() && !state.taken;
        self.lanes.iter().all(quiet)
    }

    fn free(&self) -> impl Iterator<Item = Free> {
        let lanes = (0..).zip(&self.lanes);
        lanes.filter_map(|(lane, state)| {
            let work = state.work.filter(|_| !state.taken)?;
            let served = state.served;
            Some(Free { lane, served, work })
        })
    }
}

#[cfg(test)]
mod tests;
