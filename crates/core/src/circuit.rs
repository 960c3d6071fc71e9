//! One circuit per destination. While every message to an exchange and routing key fails, one message at a time probes
//! this destination, and the others wait unpublished. No I/O.
//!
//! **Why.** A nack says nothing about the other queues that took the message: with one of two queues full, each retry
//! of each message is one more copy in the healthy queue. And a million messages behind a lost binding are a million
//! publishes for each back-off.
//!
//! **States.** A destination that works has no state. After one failed message it is `Failing`. When a second message
//! fails and none succeeded in between, the circuit is `Open`: messages are *held* (filed in `outbox.waiting` with the
//! cause `held` and no due time). A probe is due after a back-off. One new message for each `backoff_initial` may probe
//! as well, so that a destination where only some messages fail (a headers exchange) does not stay open for long. The
//! first success changes the state to `Draining`: held messages are released in windows that double, and a failure
//! opens the circuit again.
//!
//! **Giving up.** The failures of a held message are its own, plus one for each failed probe since it was held. When
//! the sum reaches `max_attempts`, the message is published one last time, and a failure makes it dead. A nack never
//! makes it dead.
//!
//! **Authority.** The rows in `outbox.waiting` say which messages are held, and for which destination. The state here
//! belongs to one process: two relays probe independently, and a relay that starts finds held messages by their index.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::Rng;
use sha2::{Digest, Sha256};

use crate::{
    backoff::{self, RetryPolicy},
    message::Position,
    reason::Reason,
};

/// Hash of an exchange and a routing key. Every relay computes the same number; `outbox.waiting` stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(pub i64);

impl Destination {
    pub fn of(exchange: &str, routing_key: &str) -> Self {
        // The length keeps ('ab', 'c') and ('a', 'bc') apart.
        let hash = Sha256::new()
            .chain_update((exchange.len() as u64).to_be_bytes())
            .chain_update(exchange)
            .chain_update(routing_key)
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        Self(i64::from_be_bytes(first))
    }
}

/// Why messages to a destination fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub reason: Reason,
    pub error: String,
}

/// The state in which a candidate arrives at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Not tried before.
    New,
    /// Due again, or released.
    Again,
    /// Selected to probe the destination.
    Probe,
    /// Selected for its last attempt.
    Last,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    Publish,
    Hold(Held),
}

/// Data that is filed with a held message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub destination: Destination,
    /// Failed probes of the destination at that time.
    pub failures: u32,
    pub why: Why,
}

/// The result of a wave for one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    pub delivered: usize,
    /// Failed messages: their number, the first one, and the cause.
    pub failed: Option<(usize, Position, Why)>,
    /// At least one delivered message was held before.
    pub had_been_held: bool,
}

/// Due work on held messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Make one held message due: the next one after this position.
    Probe(Destination, i64),
    /// Make the held messages that reach their limit, with this number of failed probes, due for their last attempt.
    GiveUp(Destination, u32),
    /// Make this number of held messages due.
    Release(Destination, usize),
}

#[derive(Debug)]
enum State {
    /// Only this message has failed.
    Failing(Position),
    Open(Open),
    Draining {
        window: usize,
    },
}

#[derive(Debug)]
struct Open {
    failures: u32,
    /// The back-off or a claim chose a message as a probe, and no answer has come yet.
    probing: bool,
    next_probe: Instant,
    next_new_probe: Instant,
    /// Position of the last held message that was chosen as a probe; the next probe is another message.
    chosen: i64,
    /// A probe has no answer yet, and since this time no held message was found: the probe itself is not held.
    none_held_since: Option<Instant>,
    /// A probe has failed since the last search for held messages that reach their limit.
    give_up: bool,
    why: Why,
}

/// Destinations of a source that fail, or that began to work again.
#[derive(Debug)]
pub struct Circuits {
    policy: RetryPolicy,
    states: HashMap<Destination, State>,
}

/// Maximum number of watched destinations. Messages to further destinations are retried one by one.
const MOST: usize = 10_000;
/// Maximum wait for the answer to a probe.
const ANSWER: Duration = Duration::from_secs(60);
/// Maximum number of held messages that one step releases.
const WINDOW: usize = 4096;

impl Circuits {
    pub fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            states: HashMap::new(),
        }
    }

    /// No destination fails, so `admit` need not be called.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Number of open circuits.
    pub fn open(&self) -> usize {
        let open = |state: &&State| matches!(state, State::Open(_));
        self.states.values().filter(open).count()
    }

    #[inline]
    pub fn is_open(&self, destination: Destination) -> bool {
        matches!(self.states.get(&destination), Some(State::Open(_)))
    }

    /// Decides whether a message is published now or held.
    pub fn admit(
        &mut self,
        destination: Destination,
        arrival: Arrival,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Admission {
        let policy = self.policy;
        let Some(State::Open(open)) = self.states.get_mut(&destination) else {
            return Admission::Publish;
        };
        if arrival == Arrival::Last {
            return Admission::Publish;
        }
        if arrival == Arrival::Probe || now >= open.next_probe {
            open.start_probe(&policy, now, rng);
            return Admission::Publish;
        }
        if arrival == Arrival::New && now >= open.next_new_probe {
            open.next_new_probe = now + policy.backoff_initial;
            return Admission::Publish;
        }
        Admission::Hold(open.held(destination))
    }

    /// Records the result of a wave for one destination. Returns `Some` if its circuit is open: the failed messages are
    /// then held.
    pub fn report(
        &mut self,
        destination: Destination,
        tally: &Tally,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Held> {
        let policy = self.policy;
        let has_room = self.has_room();
        if tally.delivered > 0 {
            match self.states.get(&destination) {
                Some(State::Failing(_)) => {
                    self.states.remove(&destination);
                }
                Some(State::Open(_)) => {
                    self.states
                        .insert(destination, State::Draining { window: 1 });
                }
                None if tally.had_been_held && has_room => {
                    self.states
                        .insert(destination, State::Draining { window: 1 });
                }
                Some(State::Draining { .. }) | None => {}
            }
            return None;
        }
        let (count, first, why) = tally.failed.clone()?;
        match self.states.get_mut(&destination) {
            Some(State::Open(open)) => {
                open.none_held_since = None;
                if open.probing {
                    open.probing = false;
                    open.failures = open.failures.saturating_add(1);
                    open.give_up = why.reason != Reason::Nacked;
                }
                open.why = why;
                return Some(open.held(destination));
            }
            Some(State::Failing(position)) if count == 1 && *position == first => return None,
            Some(State::Failing(_) | State::Draining { .. }) => {}
            None if !has_room => return None,
            None if count == 1 => {
                self.states.insert(destination, State::Failing(first));
                return None;
            }
            None => {}
        }
        let open = Open::new(why, &policy, now, rng);
        let held = open.held(destination);
        self.states.insert(destination, State::Open(open));
        Some(held)
    }

    /// A held message was found for a destination without a state: another relay held it, or this relay did before a
    /// restart.
    pub fn found(&mut self, held: Held, now: Instant, rng: &mut impl Rng) {
        let known = match self.states.get(&held.destination) {
            Some(State::Open(_) | State::Draining { .. }) => true,
            // One message failed here last, but others are held: without an open circuit nothing probes for them.
            Some(State::Failing(_)) => false,
            None => !self.has_room(),
        };
        if !known {
            let open = Open {
                failures: held.failures,
                ..Open::new(held.why, &self.policy, now, rng)
            };
            self.states.insert(held.destination, State::Open(open));
        }
    }

    /// Tasks that are due now. The caller reports the result of a probe to `probed` and of a release to `released`.
    pub fn tasks(&mut self, now: Instant, rng: &mut impl Rng) -> Vec<Task> {
        let policy = self.policy;
        let mut tasks = Vec::new();
        for (destination, state) in &mut self.states {
            match state {
                State::Failing(_) => {}
                State::Open(open) => {
                    if open.give_up {
                        open.give_up = false;
                        tasks.push(Task::GiveUp(*destination, open.failures));
                    }
                    if now >= open.next_probe {
                        if open.probing {
                            open.none_held_since.get_or_insert(now);
                        }
                        open.start_probe(&policy, now, rng);
                        tasks.push(Task::Probe(*destination, open.chosen));
                    }
                }
                State::Draining { window } => tasks.push(Task::Release(*destination, *window)),
            }
        }
        tasks
    }

    /// Held messages to release now, after a settle that delivered some.
    pub fn releases(&self) -> Vec<Task> {
        let release = |(destination, state): (&Destination, &State)| match state {
            State::Draining { window } => Some(Task::Release(*destination, *window)),
            State::Failing(_) | State::Open(_) => None,
        };
        self.states.iter().filter_map(release).collect()
    }

    /// `chosen` is the position of the held message that was made due; `None` if no message is held. Without held
    /// messages the circuit is removed, unless an earlier probe may still get its answer: the removal would forget the
    /// failed probes.
    pub fn probed(&mut self, destination: Destination, chosen: Option<i64>, now: Instant) {
        match (self.states.get_mut(&destination), chosen) {
            (Some(State::Open(open)), Some(position)) => {
                open.chosen = position;
                open.none_held_since = None;
            }
            (Some(State::Open(open)), None) => {
                let waits = |since: Instant| now.duration_since(since) < ANSWER;
                if !open.none_held_since.is_some_and(waits) {
                    self.states.remove(&destination);
                }
            }
            (Some(State::Failing(_) | State::Draining { .. }) | None, _) => {}
        }
    }

    /// `released` below `asked` means that no held message is left.
    pub fn released(&mut self, destination: Destination, asked: usize, released: usize) {
        if let Some(State::Draining { window }) = self.states.get_mut(&destination) {
            if released < asked {
                self.states.remove(&destination);
            } else {
                *window = (*window).max(asked * 2).min(WINDOW);
            }
        }
    }

    fn has_room(&mut self) -> bool {
        if self.states.len() >= MOST {
            self.states
                .retain(|_, state| !matches!(state, State::Failing(_)));
        }
        self.states.len() < MOST
    }
}

impl Open {
    fn new(why: Why, policy: &RetryPolicy, now: Instant, rng: &mut impl Rng) -> Self {
        Self {
            failures: 0,
            probing: false,
            next_probe: now + pause(0, policy, rng),
            next_new_probe: now + policy.backoff_initial,
            chosen: i64::MIN,
            none_held_since: None,
            give_up: false,
            why,
        }
    }

    fn start_probe(&mut self, policy: &RetryPolicy, now: Instant, rng: &mut impl Rng) {
        self.probing = true;
        self.next_probe = now + pause(self.failures.saturating_add(1), policy, rng);
    }

    fn held(&self, destination: Destination) -> Held {
        Held {
            destination,
            failures: self.failures,
            why: self.why.clone(),
        }
    }
}

fn pause(failures: u32, policy: &RetryPolicy, rng: &mut impl Rng) -> Duration {
    let made = failures.saturating_add(1);
    backoff::delay(made, policy.backoff_initial, policy.backoff_max, rng)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 20,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(300),
    };
    const HERE: Destination = Destination(7);

    fn position(id: i64) -> Position {
        Position { lane: 0, id }
    }

    fn why(reason: Reason) -> Why {
        Why {
            reason,
            error: String::new(),
        }
    }

    fn failed(count: usize, first: i64, reason: Reason) -> Tally {
        Tally {
            failed: Some((count, position(first), why(reason))),
            ..Tally::default()
        }
    }

    fn delivered() -> Tally {
        Tally {
            delivered: 1,
            ..Tally::default()
        }
    }

    struct World {
        circuits: Circuits,
        now: Instant,
        rng: StdRng,
    }

    impl World {
        #[expect(
            clippy::disallowed_methods,
            reason = "only now() makes an Instant; the tests move it themselves"
        )]
        fn new() -> Self {
            Self {
                circuits: Circuits::new(POLICY),
                now: Instant::now(),
                rng: StdRng::seed_from_u64(1),
            }
        }

        fn open(reason: Reason) -> Self {
            let mut world = Self::new();
            assert!(world.report(&failed(2, 1, reason)).is_some());
            world
        }

        fn report(&mut self, tally: &Tally) -> Option<Held> {
            self.circuits.report(HERE, tally, self.now, &mut self.rng)
        }

        fn goes(&mut self, arrival: Arrival) -> bool {
            self.circuits.admit(HERE, arrival, self.now, &mut self.rng) == Admission::Publish
        }

        fn tasks(&mut self) -> Vec<Task> {
            self.circuits.tasks(self.now, &mut self.rng)
        }

        /// Lets the back-off elapse, and fails the probe.
        fn fail_a_probe(&mut self, reason: Reason) {
            self.now += POLICY.backoff_max;
            assert!(matches!(
                self.tasks()[..],
                [Task::Probe(..)] | [Task::GiveUp(..), Task::Probe(..)]
            ));
            assert!(self.goes(Arrival::Probe));
            assert!(self.report(&failed(1, 9, reason)).is_some());
        }
    }

    #[test]
    fn one_failing_message_holds_no_other() {
        let mut world = World::new();
        for _ in 0..10 {
            assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
            assert!(world.goes(Arrival::New));
        }
        assert!(world.report(&failed(1, 6, Reason::Unroutable)).is_some());
        assert!(!world.goes(Arrival::New));
    }

    #[test]
    fn failures_among_successes_hold_no_message() {
        let mut world = World::new();
        for id in 0..100 {
            assert_eq!(world.report(&failed(1, id, Reason::Unroutable)), None);
            assert_eq!(world.report(&delivered()), None);
            let mixed = Tally {
                delivered: 1,
                ..failed(50, id, Reason::Unroutable)
            };
            assert_eq!(world.report(&mixed), None);
        }
        assert!(world.circuits.is_empty());
    }

    #[test]
    fn an_open_circuit_admits_a_probe_in_each_back_off_and_a_new_message_a_second() {
        let mut world = World::open(Reason::Nacked);
        let mut again = 0;
        let mut new = 0;
        for _ in 0..1000 {
            world.now += Duration::from_millis(100);
            if world.goes(Arrival::Again) {
                again += 1;
                world.report(&failed(1, 9, Reason::Nacked));
            }
            new += u32::from(world.goes(Arrival::New));
        }
        assert!((5..=40).contains(&again), "{again} in 100 s");
        assert!((90..=140).contains(&new), "{new} in 100 s");
    }

    #[test]
    fn a_success_releases_held_messages_in_windows_that_double() {
        let mut world = World::open(Reason::Unroutable);
        world.report(&delivered());
        assert!(world.goes(Arrival::New));
        for window in [1, 2, 4, 8] {
            assert_eq!(world.circuits.releases(), [Task::Release(HERE, window)]);
            world.circuits.released(HERE, window, window);
        }
        assert!(world.report(&failed(1, 3, Reason::Nacked)).is_some());
        assert!(!world.goes(Arrival::Again), "it fails again");
        world.report(&delivered());
        world.circuits.released(HERE, 1, 0);
        assert!(world.circuits.is_empty());
    }

    #[test]
    fn failed_probes_count_and_a_nack_never_gives_up() {
        let mut world = World::open(Reason::Unroutable);
        world.fail_a_probe(Reason::Unroutable);
        world.fail_a_probe(Reason::Unroutable);
        assert_eq!(world.tasks(), [Task::GiveUp(HERE, 2)]);
        let mut world = World::open(Reason::Nacked);
        world.fail_a_probe(Reason::Nacked);
        world.fail_a_probe(Reason::Nacked);
        assert_eq!(world.tasks(), []);
    }

    #[test]
    fn probes_take_turns_and_end_with_the_last_held_message() {
        let mut world = World::open(Reason::Unroutable);
        world.now += POLICY.backoff_initial;
        assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
        world.circuits.probed(HERE, Some(4), world.now);
        world.now += POLICY.backoff_max;
        assert_eq!(world.tasks(), [Task::Probe(HERE, 4)]);
        world.circuits.probed(HERE, None, world.now);
        assert!(!world.circuits.is_empty(), "the first has no answer yet");
        world.now += ANSWER;
        world.circuits.probed(HERE, None, world.now);
        assert!(world.circuits.is_empty());
    }

    #[test]
    fn held_messages_of_another_relay_are_probed() {
        let mut world = World::new();
        let by_another = Held {
            destination: HERE,
            failures: 4,
            why: why(Reason::Nacked),
        };
        world.circuits.found(by_another, world.now, &mut world.rng);
        world.now += POLICY.backoff_initial;
        assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
        let held = Tally {
            had_been_held: true,
            ..delivered()
        };
        let mut other = World::new();
        other.report(&held);
        assert_eq!(other.circuits.releases(), [Task::Release(HERE, 1)]);
    }

    #[test]
    fn held_messages_are_probed_even_if_only_one_message_failed_last() {
        let mut world = World::new();
        assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
        let held = Held {
            destination: HERE,
            failures: 2,
            why: why(Reason::Unroutable),
        };
        world.circuits.found(held, world.now, &mut world.rng);
        world.now += POLICY.backoff_max;
        assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
    }

    #[test]
    fn the_number_of_watched_destinations_is_bounded() {
        let mut world = World::new();
        for n in 0..2 * MOST as i64 + 100 {
            let tally = failed(1 + (n % 2) as usize, n, Reason::Unroutable);
            world
                .circuits
                .report(Destination(n), &tally, world.now, &mut world.rng);
            assert!(world.circuits.states.len() <= MOST);
        }
        let first_open = Destination(1);
        assert!(
            world.circuits.is_open(first_open),
            "an open circuit is not dropped for a single failure"
        );
        // There is no room, neither for a destination with messages that another relay held, nor for one that recovers.
        let unknown = Destination(-1);
        while world.circuits.has_room() {
            let n = world.circuits.states.len() as i64;
            let full = failed(2, n, Reason::Unroutable);
            let here = Destination(1_000_000 + n);
            world
                .circuits
                .report(here, &full, world.now, &mut world.rng);
        }
        let held = Held {
            destination: unknown,
            failures: 0,
            why: why(Reason::Nacked),
        };
        world.circuits.found(held, world.now, &mut world.rng);
        let released = Tally {
            had_been_held: true,
            ..delivered()
        };
        world
            .circuits
            .report(unknown, &released, world.now, &mut world.rng);
        assert!(!world.circuits.states.contains_key(&unknown));
    }

    #[test]
    fn two_failures_in_one_wave_open_a_failing_circuit() {
        let mut world = World::new();
        assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
        assert_eq!(
            world.circuits.open(),
            0,
            "one failed message does not open a circuit"
        );
        assert!(!world.circuits.is_open(HERE));
        assert!(world.report(&failed(2, 5, Reason::Unroutable)).is_some());
        assert_eq!(world.circuits.open(), 1);
        assert!(world.circuits.is_open(HERE));
    }

    #[test]
    fn a_last_attempt_is_published_and_is_not_a_probe() {
        let mut world = World::open(Reason::Unroutable);
        assert!(!world.goes(Arrival::Again));
        assert!(world.goes(Arrival::Last));
        let held = world.report(&failed(1, 9, Reason::Unroutable)).unwrap();
        assert_eq!(held.failures, 0);
    }

    #[test]
    fn a_held_message_records_the_earlier_failed_probes() {
        let mut world = World::new();
        let by_another = Held {
            destination: HERE,
            failures: 4,
            why: why(Reason::Unroutable),
        };
        world
            .circuits
            .found(by_another.clone(), world.now, &mut world.rng);
        let admission = world
            .circuits
            .admit(HERE, Arrival::Again, world.now, &mut world.rng);
        assert_eq!(admission, Admission::Hold(by_another));
        world.fail_a_probe(Reason::Unroutable);
        assert_eq!(world.tasks(), [Task::GiveUp(HERE, 5)]);
        assert_eq!(world.tasks(), [], "once for each failed probe");
    }

    proptest! {
        #[test]
        fn two_destinations_have_two_numbers(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            prop_assert_eq!(Destination::of(&a, &b) == Destination::of(&c, &d), (&a, &b) == (&c, &d));
        }
    }
}
