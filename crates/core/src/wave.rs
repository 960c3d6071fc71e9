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
    circuit::{Admission, Arrival, Circuits, Destination, Held, Tally, Why},
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
            let admission = circuits.admit(destination(&envelope), arrival, now, rng);
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
    /// Number of failing destinations.
    pub failing: usize,
}

/// A destination as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub exchange: String,
    pub routing_key: String,
}

impl Name {
    fn of(envelope: &Envelope) -> Self {
        Self {
            exchange: envelope.exchange.clone(),
            routing_key: envelope.routing_key.clone(),
        }
    }
}

/// Reports each destination's answers to its circuit. If all messages to a destination fail, those with the outcome
/// retry become held. `None`: the circuits learned nothing. Call it after [`decide`].
pub fn watch(
    answered: &mut [(Outgoing<'_>, Answer)],
    circuits: &mut Circuits,
    now: Instant,
    rng: &mut impl Rng,
) -> Option<Changes> {
    let held_before = |outgoing: &Outgoing<'_>| outgoing.item.candidate.waited.destination;
    let news = |(outgoing, answer): &(Outgoing<'_>, Answer)| {
        destination_fails(answer).is_some() || held_before(outgoing).is_some()
    };
    if circuits.is_empty() && !answered.iter().any(news) {
        return None;
    }
    let mut tallies: BTreeMap<Destination, (Tally, &Envelope)> = BTreeMap::new();
    for (outgoing, answer) in &*answered {
        let here = destination(&outgoing.envelope);
        let before = held_before(outgoing);
        if *answer == Answer::Delivered {
            // A message that was held for another destination, and whose route has changed, shows that nothing need
            // wait for the old destination.
            let elsewhere = before.filter(|destination| *destination != here);
            for destination in [Some(here), elsewhere].into_iter().flatten() {
                let (tally, _) = tallies
                    .entry(destination)
                    .or_insert_with(|| (Tally::default(), &outgoing.envelope));
                tally.delivered += 1;
                tally.had_been_held |= before.is_some();
            }
        } else if let Some(why) = destination_fails(answer) {
            let position = outgoing.item.position();
            let (tally, _) = tallies
                .entry(here)
                .or_insert_with(|| (Tally::default(), &outgoing.envelope));
            tally.failed = match tally.failed.take() {
                Some((n, first, why)) => Some((n + 1, first, why)),
                None => Some((1, position, why)),
            };
        }
    }
    let mut open: BTreeMap<Destination, Held> = BTreeMap::new();
    let mut changes = Changes::default();
    for (destination, (tally, envelope)) in &tallies {
        let was_open = circuits.is_open(*destination);
        let held = circuits.report(*destination, tally, now, rng);
        match (&held, was_open) {
            (Some(held), false) => changes.opened.push((Name::of(envelope), held.why.clone())),
            (None, true) => changes.closed.push(Name::of(envelope)),
            (Some(_), true) | (None, false) => {}
        }
        open.extend(held.map(|held| (*destination, held)));
    }
    changes.failing = circuits.open();
    if !open.is_empty() {
        hold(answered, &open);
    }
    Some(changes)
}

/// Messages to an open destination with the outcome retry become held.
fn hold(answered: &mut [(Outgoing<'_>, Answer)], open: &BTreeMap<Destination, Held>) {
    for (outgoing, answer) in answered {
        if destination_fails(answer).is_none() {
            continue;
        }
        if let (Some(held), Outcome::Retry { attempts, .. }) = (
            open.get(&destination(&outgoing.envelope)),
            outgoing.item.outcome(),
        ) {
            let (held, attempts) = (held.clone(), *attempts);
            outgoing.item.record(Outcome::Held { held, attempts });
        }
    }
}

fn destination(envelope: &Envelope) -> Destination {
    Destination::of(&envelope.exchange, &envelope.routing_key)
}

fn arrival(candidate: &Candidate, max_attempts: u32) -> Arrival {
    let last = candidate.message.attempts.saturating_add(1) >= max_attempts;
    match candidate.waited.probe {
        true if last => Arrival::Last,
        true => Arrival::Probe,
        false if candidate.filed => Arrival::Again,
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
