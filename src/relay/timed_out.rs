//! Messages whose read timed out while the claim read nothing else. No I/O.
//!
//! **Why.** The relay gives a message up only after two time-outs: a server that stalled once is not the message's fault.
//! All workers count together, whatever they read in between: a lane goes from one worker to the next.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use outbox_core::message::Position;

/// If more messages time out, the server is at fault, and all of them are forgotten.
const MAX_MESSAGES: usize = 1000;

#[derive(Debug, Default)]
pub struct TimedOut(Mutex<HashSet<Position>>);

impl TimedOut {
    /// Whether the read of this message timed out before. If not, the time-out is remembered.
    pub fn again(&self, position: Position) -> bool {
        let mut known = self.known();
        if known.remove(&position) {
            return true;
        }
        if known.len() == MAX_MESSAGES {
            known.clear();
        }
        known.insert(position);
        false
    }

    /// These messages were read.
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
        assert!(timed_out.known().len() <= MAX_MESSAGES);
    }
}
