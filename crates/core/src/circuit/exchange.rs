//! Which destinations of one exchange fail in the same way, and which of them work.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::destination::{Destination, Spread};
use crate::reason::Reason;

/// Fewer destinations have circuits of their own only.
pub(super) const MANY: usize = 16;
/// Destinations that were not tried wait while not even one works for so many that fail.
const HARDLY_ANY: usize = 10;
/// A drain ends when so many destinations fail for one that works: the probe was an exception.
const MOSTLY: usize = 3;
/// Maximum number of remembered destinations that fail, and of those that work.
pub(super) const REMEMBERED: usize = 4000;
/// Older results count half.
const RECENT: usize = 1000;

#[derive(Debug)]
pub(super) struct Exchange {
    /// The cause that these destinations share.
    reason: Reason,
    /// Destinations that failed, and did not succeed since.
    failed: HashSet<Destination>,
    /// Destinations that succeeded, and did not fail since.
    works: HashSet<Destination>,
    failed_at: Instant,
    /// Since the circuit of the failing destinations closed.
    drain: Count,
    /// Since the circuit of the untried destinations closed.
    untried: Count,
}

/// Destinations that began to fail, and that began to work.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    failed: usize,
    worked: usize,
}

impl Count {
    fn add(&mut self, failed: usize, worked: usize) {
        self.failed += failed;
        self.worked += worked;
        if self.failed + self.worked > RECENT {
            self.failed /= 2;
            self.worked /= 2;
        }
    }
}

impl Exchange {
    pub fn new(reason: Reason, now: Instant) -> Self {
        Self {
            reason,
            failed: HashSet::new(),
            works: HashSet::new(),
            failed_at: now,
            drain: Count::default(),
            untried: Count::default(),
        }
    }

    /// Returns whether a destination began to work.
    pub fn record(&mut self, spread: &Spread, now: Instant) -> bool {
        if let Some(why) = &spread.why {
            if why.reason != self.reason {
                *self = Self::new(why.reason, now);
            }
            self.failed_at = now;
        }
        let (mut failed, mut worked) = (0, 0);
        for destination in &spread.failed {
            self.works.remove(destination);
            failed += usize::from(remember(&mut self.failed, *destination));
        }
        // After the failures: a destination that took one message works.
        for destination in &spread.delivered {
            self.failed.remove(destination);
            worked += usize::from(remember(&mut self.works, *destination));
        }
        self.drain.add(failed, worked);
        self.untried.add(failed, worked);
        worked > 0
    }

    pub fn fails(&self, destination: Destination) -> bool {
        self.failed.contains(&destination)
    }

    pub fn works(&self, destination: Destination) -> bool {
        self.works.contains(&destination)
    }

    /// Many destinations fail in the same way.
    pub fn many_fail(&self, many: usize) -> bool {
        self.failed.len() >= many
    }

    /// Most of the messages that a drain released fail again.
    pub fn drain_fails(&self) -> bool {
        self.drain.failed > 0 && self.drain.failed >= MOSTLY * self.drain.worked
    }

    /// Many destinations fail, and hardly any works.
    pub fn hardly_any_works(&self, many: usize) -> bool {
        self.untried.failed >= many && self.untried.failed >= HARDLY_ANY * self.untried.worked
    }

    /// Its circuit closed. Destinations that work are remembered: they stay out if it opens again.
    pub fn closed(&mut self, spread: &Spread) {
        self.failed.clear();
        self.drain = Count::default();
        self.drain.add(0, spread.delivered.len());
    }

    pub fn untried_closed(&mut self, spread: &Spread) {
        self.untried = Count::default();
        self.untried.add(0, spread.delivered.len());
    }

    pub fn is_old(&self, window: Duration, now: Instant) -> bool {
        self.failed.is_empty() || now.saturating_duration_since(self.failed_at) > window
    }
}

/// Returns whether it is news.
fn remember(these: &mut HashSet<Destination>, destination: Destination) -> bool {
    if these.len() >= REMEMBERED {
        return !these.contains(&destination);
    }
    these.insert(destination)
}
