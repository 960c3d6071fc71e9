//! What a source did in the last minute: one line of the log sums it up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outbox_core::{claim::Claim, outcome::Outcome};
use tokio::time::{Duration, Instant};

use crate::outbox::status::Status;

const EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Tally(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    done: Done,
}

/// Numbers of messages. A message that is tried twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub sent: u64,
    pub retried: u64,
    pub held: u64,
    pub given_up: u64,
}

impl Done {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Sent => self.sent += 1,
            Outcome::Retry { .. } => self.retried += 1,
            Outcome::Held { .. } => self.held += 1,
            Outcome::Dead { .. } => self.given_up += 1,
            Outcome::Behind | Outcome::Untouched => {}
        }
    }
}

impl Tally {
    /// The outcomes of a claim were committed.
    pub fn settled(&self, claim: &Claim) {
        let mut state = self.state();
        for item in &claim.items {
            state.done.add(item.outcome());
        }
    }

    /// Once a minute: what was done since the last time.
    pub fn due(&self) -> Option<Done> {
        let now = Instant::now();
        let mut state = self.state();
        let since = *state.since.get_or_insert(now);
        (now.duration_since(since) >= EVERY).then(|| {
            state.since = Some(now);
            std::mem::take(&mut state.done)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line of a minute. An idle source has none.
pub fn log(source: &str, done: Done, outbox: &Status) {
    let lag_s = outbox.oldest_due_age_seconds;
    if done == Done::default() && lag_s <= 0.0 {
        return;
    }
    tracing::info!(
        source,
        sent = done.sent,
        retried = done.retried,
        held = done.held,
        given_up = done.given_up,
        pending = outbox.pending,
        dead = outbox.dead,
        lag_s,
        "the last minute"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_minute_has_its_own_sum() {
        let tally = Tally::default();
        assert_eq!(tally.due(), None);
        tally.state().done.add(&Outcome::Sent);
        tally.state().done.add(&Outcome::Behind);
        tokio::time::advance(EVERY - Duration::from_millis(1)).await;
        assert_eq!(tally.due(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        let one = Done {
            sent: 1,
            ..Done::default()
        };
        assert_eq!(tally.due(), Some(one));
        assert_eq!(tally.due(), None);
        tokio::time::advance(EVERY).await;
        assert_eq!(tally.due(), Some(Done::default()));
    }
}
