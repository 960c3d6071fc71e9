//! A wave: the messages of a claim that are published together, each with its own answer. No I/O.
//!
//! ```text
//! Item -> prepare -> admit -> Outgoing -> publish -> (Outgoing, Answer) -> decide -> Item
//! ```
//!
//! **Why these types.** If an answer is paired with another message, a message that was never published is marked as
//! sent, and is lost. Parallel lists of messages and answers would shift when one entry is missing. So an [`Outgoing`]
//! borrows its item, and the publisher returns it in one pair with its answer. A message that was refused before its
//! publish has no envelope: it becomes no [`Outgoing`], and no answer can reach it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use rand::Rng;

use crate::{
    backoff::RetryPolicy,
    circuit::{Admission, Arrival, Circuits, Destination, Held, Spread, Tally, Target, Why},
    claim::{Candidate, Item},
    envelope::{Envelope, EnvelopeBuilder},
    message::Lane,
    outcome::{Answer, Outcome},
    reason::Reason,
};

/// A message that is to be published now.
#[derive(Debug)]
pub struct Outgoing<'c> {
    item: &'c mut Item,
    envelope: Envelope,
}

impl Outgoing<'_> {
    fn held_for(&self) -> Option<Destination> {
        self.item.candidate.waited.destination
    }
}

impl AsRef<Envelope> for Outgoing<'_> {
    #[inline]
    fn as_ref(&self) -> &Envelope {
        &self.envelope
    }
}

/// Builds the message's envelope. If that fails, the message gets its outcome at once, and the reason is returned.
pub fn prepare(
    item: &mut Item,
    builder: &EnvelopeBuilder,
    frame_max: u32,
    policy: &RetryPolicy,
    rng: &mut impl Rng,
) -> Result<(), Reason> {
    match builder.build(&mut item.candidate.message, frame_max) {
        Ok(envelope) => {
            item.envelope = Some(envelope);
            Ok(())
        }
        Err(refusal) => {
            let reason = refusal.reason;
            item.decide(&Answer::Rejected(refusal), policy, rng);
            Err(reason)
        }
    }
}

/// Returns the messages of a wave that may be published. Messages whose destination fails are held, and later messages
/// of their keys are behind.
pub fn admit<'c>(
    wave: Vec<&'c mut Item>,
    circuits: &mut Circuits,
    policy: &RetryPolicy,
    now: Instant,
    rng: &mut impl Rng,
) -> Vec<Outgoing<'c>> {
    let all_work = circuits.is_empty();
    let mut held_keys: HashSet<(Lane, i64)> = HashSet::new();
    let mut outgoing = Vec::with_capacity(wave.len());
    for item in wave {
        let Some(envelope) = item.envelope.take() else {
            continue;
        };
        if !all_work {
            let message = &item.candidate.message;
            // A replay blocks no other message.
            let key = item.candidate.key_hash.filter(|_| !message.replay);
            let key = key.map(|hash| (message.position.lane, hash));
            if key.is_some_and(|key| held_keys.contains(&key)) {
                item.record(Outcome::Behind);
                continue;
            }
            let arrival = arrival(&item.candidate, policy.max_attempts);
            let admission = circuits.admit(target(&envelope), arrival, now, rng);
            if let Admission::Hold(held) = admission {
                let attempts = message.attempts;
                item.record(Outcome::Held { held, attempts });
                held_keys.extend(key);
                continue;
            }
        }
        outgoing.push(Outgoing { item, envelope });
    }
    outgoing
}

/// Records the outcome of each answer in the item that came back with it.
pub fn decide(answered: &mut [(Outgoing<'_>, Answer)], policy: &RetryPolicy, rng: &mut impl Rng) {
    for (outgoing, answer) in answered {
        outgoing.item.decide(answer, policy, rng);
    }
}

/// Changes of circuits after a wave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub opened: Vec<(Name, Why)>,
    pub closed: Vec<Name>,
    /// Closed destinations of earlier routes: only their hash is known, and no message of the wave has their name.
    pub closed_earlier: usize,
    /// Number of failing destinations.
    pub failing: usize,
}

impl Changes {
    /// `name`: `None` for the destination of an earlier route. A destination opens only by answers of its own messages.
    fn note(&mut self, was_open: bool, held: Option<&Held>, name: Option<Name>) {
        match (held, was_open, name) {
            (Some(held), false, Some(name)) => self.opened.push((name, held.why.clone())),
            (None, true, Some(name)) => self.closed.push(name),
            (None, true, None) => self.closed_earlier += 1,
            (Some(_), ..) | (None, false, _) => {}
        }
    }
}

/// A destination as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub exchange: String,
    /// `None`: all routing keys of the exchange.
    pub routing_key: Option<String>,
}

impl Name {
    fn of(envelope: &Envelope) -> Self {
        Self {
            exchange: envelope.exchange.clone(),
            routing_key: Some(envelope.routing_key.clone()),
        }
    }

    fn of_exchange(envelope: &Envelope) -> Self {
        Self {
            exchange: envelope.exchange.clone(),
            routing_key: None,
        }
    }
}

/// Reports each destination's answers to its circuit, and to the circuit of its exchange. If a circuit is open, the
/// messages that failed with the outcome retry become held. `None`: the circuits learned nothing. Call it after
/// [`decide`].
pub fn watch(
    answered: &mut [(Outgoing<'_>, Answer)],
    circuits: &mut Circuits,
    now: Instant,
    rng: &mut impl Rng,
) -> Option<Changes> {
    let news = |(outgoing, answer): &(Outgoing<'_>, Answer)| {
        destination_fails(answer).is_some() || outgoing.held_for().is_some()
    };
    if circuits.is_empty() && !answered.iter().any(news) {
        return None;
    }
    // Hashed once.
    let to: Vec<Target> = answered.iter().map(|(o, _)| target(&o.envelope)).collect();
    let mut changes = Changes::default();
    let mut open = watch_exchanges(answered, &to, circuits, &mut changes, now, rng);
    for (destination, (tally, envelope)) in tallies(answered, &to) {
        let was_open = circuits.is_open(destination);
        let held = circuits.report(destination, &tally, now, rng);
        changes.note(was_open, held.as_ref(), envelope.map(Name::of));
        open.extend(held.map(|held| (destination, held)));
    }
    changes.failing = circuits.open();
    if !open.is_empty() {
        hold(answered, &to, &open);
    }
    Some(changes)
}

/// Returns the exchanges whose circuits are open.
fn watch_exchanges(
    answered: &[(Outgoing<'_>, Answer)],
    to: &[Target],
    circuits: &mut Circuits,
    changes: &mut Changes,
    now: Instant,
    rng: &mut impl Rng,
) -> BTreeMap<Destination, Held> {
    let mut spreads: BTreeMap<Destination, (Spread, &Envelope)> = BTreeMap::new();
    for ((outgoing, answer), to) in answered.iter().zip(to) {
        let (spread, _) = spreads
            .entry(to.exchange)
            .or_insert_with(|| (Spread::of(*to), &outgoing.envelope));
        if *answer == Answer::Delivered {
            spread.delivered.push(to.destination);
            spread.had_been_held |= outgoing.held_for() == Some(to.exchange);
        } else if let Some(why) = destination_fails(answer).filter(Why::is_shared) {
            spread.failed.push(to.destination);
            spread.why = Some(why);
        }
    }
    let mut open = BTreeMap::new();
    for (exchange, (spread, envelope)) in spreads {
        let was_open = circuits.is_open(exchange);
        let held = circuits.report_exchange(&spread, now, rng);
        let name = Some(Name::of_exchange(envelope));
        changes.note(was_open, held.as_ref(), name);
        open.extend(held.map(|held| (exchange, held)));
    }
    open
}

/// The answers for each destination, and an envelope to it, if the wave has one.
fn tallies<'a>(
    answered: &'a [(Outgoing<'_>, Answer)],
    to: &[Target],
) -> BTreeMap<Destination, (Tally, Option<&'a Envelope>)> {
    let mut tallies: BTreeMap<Destination, (Tally, Option<&Envelope>)> = BTreeMap::new();
    for ((outgoing, answer), to) in answered.iter().zip(to) {
        let before = outgoing.held_for();
        if *answer == Answer::Delivered {
            // A message that was held for another destination, and whose route has changed, shows that nothing need
            // wait for the old destination.
            let own = [to.destination, to.exchange, to.untried];
            let elsewhere = before.filter(|before| !own.contains(before));
            for destination in [Some(to.destination), elsewhere].into_iter().flatten() {
                let (tally, envelope) = tallies.entry(destination).or_default();
                if destination == to.destination {
                    *envelope = Some(&outgoing.envelope);
                }
                tally.delivered += 1;
                tally.had_been_held |= before == Some(destination);
            }
        } else if let Some(why) = destination_fails(answer) {
            let position = outgoing.item.position();
            let (tally, envelope) = tallies.entry(to.destination).or_default();
            *envelope = Some(&outgoing.envelope);
            tally.failed = match tally.failed.take() {
                Some((n, first, why)) => Some((n + 1, first, why)),
                None => Some((1, position, why)),
            };
        }
    }
    tallies
}

/// Messages to an open destination, or exchange, with the outcome retry become held.
fn hold(
    answered: &mut [(Outgoing<'_>, Answer)],
    to: &[Target],
    open: &BTreeMap<Destination, Held>,
) {
    for ((outgoing, answer), to) in answered.iter_mut().zip(to) {
        let Some(why) = destination_fails(answer) else {
            continue;
        };
        let of_exchange = open.get(&to.exchange).filter(|_| why.is_shared());
        let held = open.get(&to.destination).or(of_exchange);
        if let (Some(held), Outcome::Retry { attempts, .. }) = (held, outgoing.item.outcome()) {
            let (held, attempts) = (held.clone(), *attempts);
            outgoing.item.record(Outcome::Held { held, attempts });
        }
    }
}

fn target(envelope: &Envelope) -> Target {
    Target::of(&envelope.exchange, &envelope.routing_key)
}

fn arrival(candidate: &Candidate, max_attempts: u32) -> Arrival {
    let last = candidate.message.attempts.saturating_add(1) >= max_attempts;
    match candidate.waited.probe {
        true if last => Arrival::Last,
        true => Arrival::Probe(candidate.waited.destination),
        false if candidate.filed => Arrival::Again(candidate.waited.destination),
        false => Arrival::New,
    }
}

/// The cause, if the answer concerns the destination and not the message.
fn destination_fails(answer: &Answer) -> Option<Why> {
    match answer {
        Answer::Nacked
        | Answer::Unroutable { .. }
        | Answer::Refused {
            code: 403 | 404, ..
        } => answer.reason().map(|reason| Why {
            reason,
            error: answer.text(),
        }),
        Answer::Delivered
        | Answer::Unmarkable { .. }
        | Answer::Refused { .. }
        | Answer::Rejected(_)
        | Answer::Behind
        | Answer::Unknown => None,
    }
}

#[cfg(test)]
mod tests;
