//! Messages whose read alone timed out. No I/O.
//!
//! **Why.** A time-out must happen twice to a message before it is given up: a server that stood still once is not its fault.
//! Of all workers, whatever they read between: the lane goes from one to the next, and other lanes are read all the time.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use outbox_core::message::Position;

/// More than that are no longer the messages' fault, and are forgotten.
const MOST: usize = 1000;

#[derive(Debug, Default)]
pub struct TimedOut(Mutex<HashSet<Position>>);

impl TimedOut {
    /// Was this one a suspect already? If not, it is from now on.
    pub fn again(&self, position: Position) -> bool {
        let mut known = self.known();
        if known.remove(&position) {
            return true;
        }
        if known.len() == MOST {
            known.clear();
        }
        known.insert(position);
        false
    }

    /// These were read.
    pub fn cleared(&self, positions: impl Iterator<Item = Position>) {
        let mut known = self.known();
        if !known.is_empty() {
            for position in positions {
                known.remove(&position);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Position>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_time_out_blames_it_whatever_was_read_between_unless_it_was_read_itself() {
        let timed_out = TimedOut::default();
        let [one, other] = [7, 8].map(|id| Position { lane: 1, id });
        assert!(!timed_out.again(one));
        timed_out.cleared([other].into_iter());
        assert!(timed_out.again(one), "twice");
        assert!(!timed_out.again(one));
        timed_out.cleared([one].into_iter());
        assert!(!timed_out.again(one), "it was read meanwhile");
    }

    #[test]
    fn no_more_of_them_are_kept_than_is_useful() {
        let timed_out = TimedOut::default();
        for id in 0..3000 {
            timed_out.again(Position { lane: 1, id });
        }
        assert!(timed_out.known().len() <= MOST);
    }
}
