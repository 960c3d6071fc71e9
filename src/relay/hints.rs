//! Signs that other tasks noticed, for the audit.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// If more messages moved, an audit of the whole table finds them sooner.
const MAX_MOVED: usize = 50_000;
/// Messages that one step of the audit looks for.
const MOVED_PER_STEP: usize = 1000;

/// Signs that wait for the audit.
#[derive(Debug, Default)]
pub struct Hints(Mutex<Noticed>);

#[derive(Debug, Default)]
pub struct Noticed {
    pub alarm: bool,
    pub moved: Vec<i64>,
}

impl Hints {
    /// Somebody may have changed the tables: marks may hide unsent messages.
    pub fn alarm(&self) {
        self.noticed().alarm = true;
    }

    /// Messages in `outbox.waiting` that are not in that lane any more: their key was corrected, or they were deleted.
    pub fn moved(&self, ids: impl Iterator<Item = i64>) {
        let mut noticed = self.noticed();
        noticed.moved.extend(ids);
        if noticed.moved.len() > MAX_MOVED {
            noticed.moved.clear();
            noticed.alarm = true;
        }
    }

    pub fn take(&self) -> Noticed {
        let mut noticed = self.noticed();
        let rest = noticed.moved.len().saturating_sub(MOVED_PER_STEP);
        Noticed {
            alarm: std::mem::take(&mut noticed.alarm),
            moved: noticed.moved.split_off(rest),
        }
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_taken_in_bounded_numbers_and_too_many_are_an_alarm() {
        let hints = Hints::default();
        hints.moved(0..1500);
        let first = hints.take();
        assert_eq!((first.moved.len(), first.alarm), (MOVED_PER_STEP, false));
        assert_eq!(hints.take().moved.len(), 500);
        hints.moved(0..=MAX_MOVED as i64);
        let noticed = hints.take();
        assert_eq!((noticed.moved.len(), noticed.alarm), (0, true));
        assert!(!hints.take().alarm);
    }
}
