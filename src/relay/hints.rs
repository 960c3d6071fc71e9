//! What other tasks notice and the audit must know.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// With more messages that moved, a whole audit finds them sooner.
const MOST: usize = 50_000;
/// Looked for in one step of the audit.
const HINTS: usize = 1000;

/// What the other tasks noticed.
#[derive(Debug, Default)]
pub struct Hints(Mutex<Noticed>);

#[derive(Debug, Default)]
pub struct Noticed {
    pub alarm: bool,
    pub moved: Vec<i64>,
}

impl Hints {
    /// Marks and messages may not fit together any more.
    pub fn alarm(&self) {
        self.noticed().alarm = true;
    }

    /// Filed messages that are no longer where they were filed. Their key was corrected, or they are gone.
    pub fn moved(&self, ids: impl Iterator<Item = i64>) {
        let mut noticed = self.noticed();
        noticed.moved.extend(ids);
        if noticed.moved.len() > MOST {
            noticed.moved.clear();
            noticed.alarm = true;
        }
    }

    pub fn take(&self) -> Noticed {
        let mut noticed = self.noticed();
        let rest = noticed.moved.len().saturating_sub(HINTS);
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
        assert_eq!((first.moved.len(), first.alarm), (HINTS, false));
        assert_eq!(hints.take().moved.len(), 500);
        hints.moved(0..=MOST as i64);
        let noticed = hints.take();
        assert_eq!((noticed.moved.len(), noticed.alarm), (0, true));
        assert!(!hints.take().alarm);
    }
}
