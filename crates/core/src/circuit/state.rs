//! The state of one circuit.

use std::time::{Duration, Instant};

use rand::Rng;

use super::destination::{Admission, Arrival, Destination, Held, Why};
use crate::{
    backoff::{self, RetryPolicy},
    message::Position,
    reason::Reason,
};

#[derive(Debug)]
pub(super) enum State {
    /// Only this message has failed.
    Failing(Position),
    Open(Open),
    Draining {
        window: usize,
        untried: bool,
    },
}

#[derive(Debug)]
pub(super) struct Open {
    pub failures: u32,
    /// The back-off or a claim chose a message as a probe, and no answer has come yet.
    pub probing: bool,
    pub next_probe: Instant,
    pub next_new_probe: Instant,
    /// Before this time a success of another destination does not bring the next probe forward.
    hurry_from: Instant,
    /// Position of the last held message that was chosen as a probe; the next probe is another message.
    pub chosen: i64,
    /// A probe has no answer yet, and since this time no held message was found: the probe itself is not held.
    pub none_held_since: Option<Instant>,
    /// A probe has failed since the last search for held messages that reach their limit.
    pub give_up: bool,
    pub why: Why,
    /// The exchange of this destination, once it is known.
    pub exchange: Option<Destination>,
    /// Of an exchange: the next probe that a destination's own circuit makes.
    pub next_of_another: Instant,
    /// Of the untried destinations of an exchange.
    pub untried: bool,
}

impl Open {
    pub fn new(why: Why, policy: &RetryPolicy, now: Instant, rng: &mut impl Rng) -> Self {
        Self {
            failures: 0,
            probing: false,
            next_probe: now + pause(0, policy, rng),
            next_new_probe: now + policy.backoff_initial,
            hurry_from: now + policy.backoff_initial,
            chosen: i64::MIN,
            none_held_since: None,
            give_up: false,
            why,
            exchange: None,
            next_of_another: now + policy.backoff_initial,
            untried: false,
        }
    }

    pub fn admit(
        &mut self,
        here: Destination,
        arrival: Arrival,
        policy: &RetryPolicy,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Admission {
        match arrival {
            Arrival::Last => return Admission::Publish,
            Arrival::Probe(_) => {
                self.start_probe(policy, now, rng);
                return Admission::Publish;
            }
            Arrival::New | Arrival::Again(_) if now >= self.next_probe => {
                self.start_probe(policy, now, rng);
                return Admission::Publish;
            }
            Arrival::New if now >= self.next_new_probe => {
                self.next_new_probe = now + policy.backoff_initial;
                return Admission::Publish;
            }
            Arrival::New | Arrival::Again(_) => {}
        }
        Admission::Hold(self.held(here))
    }

    pub fn start_probe(&mut self, policy: &RetryPolicy, now: Instant, rng: &mut impl Rng) {
        self.probing = true;
        self.next_probe = now + pause(self.failures.saturating_add(1), policy, rng);
        self.hurry_from = now + policy.backoff_initial;
    }

    /// Another destination of the exchange began to work, so the next probe need not wait for its back-off.
    pub fn hurry(&mut self, now: Instant) {
        self.next_probe = self.next_probe.min(self.hurry_from.max(now));
    }

    pub fn failed(&mut self, why: Why) {
        self.none_held_since = None;
        if self.probing {
            self.probing = false;
            self.failures = self.failures.saturating_add(1);
            self.give_up = why.reason != Reason::Nacked;
        }
        self.why = why;
    }

    pub fn held(&self, here: Destination) -> Held {
        Held {
            destination: here,
            failures: self.failures,
            why: self.why.clone(),
        }
    }
}

fn pause(failures: u32, policy: &RetryPolicy, rng: &mut impl Rng) -> Duration {
    let made = failures.saturating_add(1);
    backoff::delay(made, policy.backoff_initial, policy.backoff_max, rng)
}
