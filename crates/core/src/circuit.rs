//! Circuits: of each destination, and of each exchange. While every message to an exchange and routing key fails, one
//! message at a time probes this destination, and the others wait unpublished. No I/O.
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
//! **Exchanges.** With a routing key for each aggregate, each message has its own destination: no circuit opens, or
//! thousands do, each with its own probes. So an exchange has two circuits, with the same states.
//!
//! - *Failing destinations.* It opens when many destinations fail in the same way ([`Why::is_shared`]). A message that fails is
//!   then held for the exchange, and one message at a time probes it, so each message fails about once. A destination
//!   with an open circuit keeps its messages, and these circuits take turns with their probes. When most of the
//!   messages that a successful probe released fail, it opens again.
//! - *Untried destinations.* It opens when, besides, hardly any destination works. Messages to destinations that
//!   neither failed nor succeeded are then held unpublished. The first of them that succeeds drains it.
//!
//! A destination that succeeds stays out of both until it fails.
//!
//! **Giving up.** The failures of a held message are its own, plus one for each failed probe since it was held. When
//! the sum reaches `max_attempts`, the message is published one last time, and a failure makes it dead. A nack never
//! makes it dead.
//!
//! **Authority.** The rows in `outbox.waiting` say which messages are held, and for which destination. The state here
//! belongs to one process: two relays probe independently, and a relay that starts finds held messages by their index.

mod destination;
mod exchange;
mod state;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use exchange::Exchange;
use rand::Rng;
use state::{Open, State};

pub use self::destination::{
    Admission, Arrival, Destination, Held, Spread, Tally, Target, Task, Why,
};
use crate::backoff::RetryPolicy;

/// Destinations of a source that fail, or that began to work again.
#[derive(Debug)]
pub struct Circuits {
    policy: RetryPolicy,
    /// Of destinations, and of exchanges.
    states: HashMap<Destination, State>,
    exchanges: HashMap<Destination, Exchange>,
    many: usize,
    /// Where the next claim goes on with releases.
    next_release: i64,
}

/// Maximum number of watched destinations. Messages to further destinations are retried one by one.
const MOST: usize = 10_000;
/// Maximum number of exchanges whose destinations are remembered.
const EXCHANGES: usize = 100;
/// Maximum wait for the answer to a probe.
const ANSWER: Duration = Duration::from_secs(60);
/// Maximum number of held messages that one step releases.
const WINDOW: usize = 4096;

impl Circuits {
    pub fn new(policy: RetryPolicy) -> Self {
        Self::with_many(policy, exchange::MANY)
    }

    /// `many`: number of destinations that must fail in the same way before the circuit of their exchange opens.
    pub fn with_many(policy: RetryPolicy, many: usize) -> Self {
        Self {
            policy,
            states: HashMap::new(),
            exchanges: HashMap::new(),
            many,
            next_release: i64::MIN,
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
        to: Target,
        arrival: Arrival,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Admission {
        if arrival == Arrival::Last {
            return Admission::Publish;
        }
        let exchange_is_open = self.is_open(to.exchange);
        match self.states.get_mut(&to.destination) {
            Some(State::Open(open)) => {
                open.exchange = Some(to.exchange);
                // It rests: its turn to probe comes from `tasks`.
                if exchange_is_open && !matches!(arrival, Arrival::Probe(_)) {
                    return Admission::Hold(open.held(to.destination));
                }
                return open.admit(to.destination, arrival, &self.policy, now, rng);
            }
            Some(State::Draining { .. }) => return Admission::Publish,
            Some(State::Failing(_)) | None => {}
        }
        let known = self.exchanges.get(&to.exchange);
        if known.is_some_and(|known| known.works(to.destination)) {
            return Admission::Publish;
        }
        let has_failed = known.is_some_and(|known| known.fails(to.destination))
            || arrival.held_for() == Some(to.exchange);
        let here = if has_failed { to.exchange } else { to.untried };
        let is_second = has_failed && exchange_is_open && arrival == Arrival::New;
        let gets_its_own = is_second && self.has_room();
        let Some(State::Open(open)) = self.states.get_mut(&here) else {
            return Admission::Publish;
        };
        if gets_its_own {
            // The second message to this destination gets it a circuit, without a publish. When the destination works
            // again, its messages do not wait for those to all others.
            let why = open.why.clone();
            let held = self.open_now(to.destination, why, now, rng);
            if let Some(State::Open(open)) = self.states.get_mut(&to.destination) {
                open.exchange = Some(to.exchange);
            }
            return Admission::Hold(held);
        }
        open.admit(here, arrival, &self.policy, now, rng)
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
        let has_room = self.has_room();
        if tally.delivered > 0 {
            match self.states.get(&destination) {
                Some(State::Failing(_)) => {
                    self.states.remove(&destination);
                }
                Some(State::Open(_)) => self.drain(destination),
                None if tally.had_been_held && has_room => self.drain(destination),
                Some(State::Draining { .. }) | None => {}
            }
            return None;
        }
        let (count, first, why) = tally.failed.clone()?;
        match self.states.get_mut(&destination) {
            Some(State::Open(open)) => {
                open.failed(why);
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
        Some(self.open_now(destination, why, now, rng))
    }

    /// Records the result of a wave for one exchange. Returns `Some` if the circuit of its failing destinations is open:
    /// the messages that failed in the same way are then held for the exchange, unless the circuit of their destination is open.
    pub fn report_exchange(
        &mut self,
        spread: &Spread,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Held> {
        let has_room = self.has_room();
        let begins = self.recorded(spread, now);
        let held = self.report_failing(spread, begins, has_room, now, rng);
        if self.is_open(spread.untried) {
            if begins || spread.had_been_held {
                let (window, untried) = (1, true);
                self.states
                    .insert(spread.untried, State::Draining { window, untried });
                if let Some(known) = self.exchanges.get_mut(&spread.exchange) {
                    known.untried_closed(spread);
                }
            } else if let (Some(State::Open(open)), Some(why)) =
                (self.states.get_mut(&spread.untried), &spread.why)
            {
                open.failed(why.clone());
            }
        } else if let (Some(_), Some(why)) = (&held, &spread.why) {
            let known = self.exchanges.get(&spread.exchange);
            if has_room && known.is_some_and(|known| known.hardly_any_works(self.many)) {
                self.open_now(spread.untried, why.clone(), now, rng);
                if let Some(State::Open(open)) = self.states.get_mut(&spread.untried) {
                    open.untried = true;
                }
            }
        }
        held
    }

    fn report_failing(
        &mut self,
        spread: &Spread,
        begins: bool,
        has_room: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Held> {
        let here = spread.exchange;
        let known = self.exchanges.get_mut(&here);
        let fails = match (self.states.get_mut(&here), known) {
            (Some(State::Open(_)), known) if spread.had_been_held => {
                if let Some(known) = known {
                    known.closed(spread);
                }
                self.drain(here);
                return None;
            }
            (Some(State::Open(open)), _) => {
                if begins {
                    open.hurry(now);
                }
                if let Some(why) = &spread.why {
                    open.failed(why.clone());
                }
                return Some(open.held(here));
            }
            (Some(_), known) => known.is_none_or(|known| known.drain_fails()),
            (None, known) => {
                if spread.had_been_held && has_room {
                    if let Some(known) = known {
                        known.closed(spread);
                    }
                    self.drain(here);
                    return None;
                }
                has_room && known.is_some_and(|known| known.many_fail(self.many))
            }
        };
        let why = spread.why.clone().filter(|_| fails)?;
        Some(self.open_now(here, why, now, rng))
    }

    /// Returns whether a destination of the exchange began to work.
    fn recorded(&mut self, spread: &Spread, now: Instant) -> bool {
        let here = spread.exchange;
        let window = 2 * self.policy.backoff_max;
        let states = &self.states;
        self.exchanges
            .retain(|here, known| states.contains_key(here) || !known.is_old(window, now));
        if !self.exchanges.contains_key(&here) {
            // Circuits of an exchange without a record come from another relay, or from before a restart.
            let found = |here| match self.states.get(here) {
                Some(State::Open(open)) => Some(open.why.reason),
                Some(State::Failing(_) | State::Draining { .. }) | None => None,
            };
            let reason = spread.why.as_ref().map(|why| why.reason);
            let reason = reason.or_else(|| found(&here).or_else(|| found(&spread.untried)));
            let Some(reason) = reason.filter(|_| self.exchanges.len() < EXCHANGES) else {
                return !spread.delivered.is_empty();
            };
            self.exchanges.insert(here, Exchange::new(reason, now));
        }
        let known = self.exchanges.get_mut(&here);
        known.is_some_and(|known| known.record(spread, now))
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
            let mut open = Open::new(held.why, &self.policy, now, rng);
            open.failures = held.failures;
            self.states.insert(held.destination, State::Open(open));
        }
    }

    /// Tasks that are due now. The caller reports the result of a probe to `probed` and of a release to `released`.
    pub fn tasks(&mut self, now: Instant, rng: &mut impl Rng) -> Vec<Task> {
        let resting = self.resting(now);
        let mut tasks = Vec::new();
        for (destination, state) in &mut self.states {
            match state {
                State::Failing(_) => {}
                State::Open(open) => {
                    if open.give_up {
                        open.give_up = false;
                        tasks.push(Task::GiveUp(*destination, open.failures));
                    }
                    if now >= open.next_probe && !resting.contains(destination) {
                        if open.probing {
                            open.none_held_since.get_or_insert(now);
                        }
                        open.start_probe(&self.policy, now, rng);
                        tasks.push(match open.untried {
                            true => Task::ProbeNewest(*destination),
                            false => Task::Probe(*destination, open.chosen),
                        });
                    }
                }
                State::Draining { window, untried } => {
                    tasks.push(release(*destination, *window, *untried));
                }
            }
        }
        tasks
    }

    /// Destinations whose circuits must not probe now: while their exchange has a circuit, they take turns. Otherwise
    /// each of a thousand circuits would copy a message in each back-off.
    fn resting(&mut self, now: Instant) -> HashSet<Destination> {
        let mut resting = HashSet::new();
        let mut next: HashMap<Destination, (Instant, Destination)> = HashMap::new();
        for (destination, state) in &self.states {
            if let State::Open(open) = state
                && let Some(exchange) = open.exchange
                && self.states.contains_key(&exchange)
            {
                resting.insert(*destination);
                let this = (open.next_probe, *destination);
                let first = next.entry(exchange).or_insert(this);
                *first = this.min(*first);
            }
        }
        for (exchange, (due, destination)) in next {
            if let Some(State::Open(open)) = self.states.get_mut(&exchange) {
                if now < open.next_of_another || now < due {
                    continue;
                }
                open.next_of_another = now + self.policy.backoff_initial;
            }
            resting.remove(&destination);
        }
        resting
    }

    /// Held messages to release now, after a settle that delivered some: of so many destinations at most, which take turns.
    pub fn releases(&mut self, most: usize) -> Vec<Task> {
        let due = |(destination, state): (&Destination, &State)| match state {
            State::Draining { window, untried } => {
                let task = release(*destination, *window, *untried);
                let turn = destination
                    .0
                    .wrapping_sub(self.next_release)
                    .cast_unsigned();
                Some((turn, *destination, task))
            }
            State::Failing(_) | State::Open(_) => None,
        };
        let mut due: Vec<(u64, Destination, Task)> = self.states.iter().filter_map(due).collect();
        if due.len() > most {
            due.select_nth_unstable_by_key(most, |(turn, ..)| *turn);
            // The first one that is left out.
            self.next_release = due[most].1.0;
            due.truncate(most);
        }
        due.into_iter().map(|(_, _, task)| task).collect()
    }

    /// The task was not done, or not to its end. It is due again at this time.
    pub fn put_back(&mut self, task: &Task, due: Instant) {
        let destination = match task {
            Task::Probe(destination, _) | Task::ProbeNewest(destination) => destination,
            Task::GiveUp(destination, _) => destination,
            // Due until it is done.
            Task::Release(..) | Task::ReleaseNewest(..) => return,
        };
        if let Some(State::Open(open)) = self.states.get_mut(destination) {
            match task {
                Task::GiveUp(..) => open.give_up = true,
                _ => {
                    open.next_probe = open.next_probe.min(due);
                    // No message was chosen, so no answer comes. Otherwise the next failure of any message would count as that of
                    // a probe. An earlier probe may still be without an answer: see `tasks`.
                    open.probing = open.none_held_since.is_some();
                }
            }
        }
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
        if let Some(State::Draining { window, .. }) = self.states.get_mut(&destination) {
            if released < asked {
                self.states.remove(&destination);
            } else {
                *window = (*window).max(asked * 2).min(WINDOW);
            }
        }
    }

    fn drain(&mut self, destination: Destination) {
        let (window, untried) = (1, false);
        self.states
            .insert(destination, State::Draining { window, untried });
    }

    fn open_now(
        &mut self,
        destination: Destination,
        why: Why,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Held {
        let open = Open::new(why, &self.policy, now, rng);
        let held = open.held(destination);
        self.states.insert(destination, State::Open(open));
        held
    }

    fn has_room(&mut self) -> bool {
        if self.states.len() >= MOST {
            self.states
                .retain(|_, state| !matches!(state, State::Failing(_)));
        }
        self.states.len() < MOST
    }
}

fn release(destination: Destination, window: usize, untried: bool) -> Task {
    match untried {
        true => Task::ReleaseNewest(destination, window),
        false => Task::Release(destination, window),
    }
}

#[cfg(test)]
mod tests;
