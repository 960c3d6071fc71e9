//! From a claim to its outcomes: builds the envelopes, rehearses the marks where that is needed, publishes wave by wave, and
//! decides what becomes of each message.

use std::collections::{BTreeMap, HashSet};

use outbox_core::{
    circuit::{Admission, Arrival, Destination, Held, Tally, Why},
    claim::{Candidate, Claim},
    envelope::Envelope,
    message::{Lane, Position},
    outcome::{self, Answer, Outcome},
    plan::Plan,
    reason::Reason,
};
use tokio::time::{Duration, Instant};

use super::shared::Shared;
use crate::{
    broker::{BrokerError, Publisher},
    outbox::{OutboxError, rehearsal, session::Session},
    telemetry::metrics,
};

/// A lane is not held longer than this for the sake of one key's long chain.
const WAVES: Duration = Duration::from_secs(1);

/// A message that is published: its answer can be taken for nobody else's.
struct Outgoing {
    /// Its candidate's place in the claim.
    candidate: usize,
    envelope: Envelope,
}

/// `outcomes[i]` is that of `claim.candidates[i]`.
pub(super) struct Decided {
    pub outcomes: Vec<Outcome>,
    /// The link is not to be used again.
    pub lost: Option<BrokerError>,
}

/// `cautious`: nothing is published that was not marked in a rehearsal.
pub(super) async fn publish_claim(
    shared: &Shared,
    session: &Session,
    publisher: &mut Publisher,
    claim: &mut Claim,
    cautious: bool,
    deadline: Instant,
) -> Result<Decided, OutboxError> {
    let mut outcomes = vec![Outcome::Untouched; claim.candidates.len()];
    let mut plan = Plan::new(&claim.candidates, &mut outcomes, shared.relay.ordering);
    let mut envelopes = build(shared, publisher.frame_max(), claim, &mut outcomes);
    rehearse(shared, session, claim, &envelopes, &mut outcomes, cautious).await?;

    let began = Instant::now();
    let mut lost = None;
    loop {
        let wave = plan.next_wave(&claim.candidates, &mut outcomes);
        if wave.is_empty() || lost.is_some() || Instant::now() >= deadline {
            break;
        }
        let outgoing = admitted(shared, claim, wave, &mut envelopes, &mut outcomes);
        if outgoing.is_empty() {
            continue;
        }
        let batch: Vec<&Envelope> = outgoing.iter().map(|o| &o.envelope).collect();
        let published = publisher.publish(&batch, deadline).await;
        lost = published.lost;
        let answered: Vec<(Outgoing, Answer)> =
            outgoing.into_iter().zip(published.answers).collect();
        for (out, answer) in &answered {
            count(shared.health.source(), answer, lost.as_ref());
            let attempts = claim.candidates[out.candidate].message.attempts;
            outcomes[out.candidate] =
                outcome::decide(answer, attempts, &shared.policy, &mut rand::rng());
        }
        watch_destinations(shared, claim, &answered, &mut outcomes);
        if began.elapsed() > WAVES {
            break;
        }
    }
    Ok(Decided { outcomes, lost })
}

/// `None` for a message that is not to be published: it is refused, scheduled, or behind another one.
fn build(
    shared: &Shared,
    frame_max: u32,
    claim: &mut Claim,
    outcomes: &mut [Outcome],
) -> Vec<Option<Envelope>> {
    let candidates = claim.candidates.iter_mut().zip(outcomes);
    candidates
        .map(|(candidate, outcome)| {
            if candidate.scheduled || *outcome == Outcome::Behind {
                return None;
            }
            match shared.builder.build(&mut candidate.message, frame_max) {
                Ok(envelope) => Some(envelope),
                Err(refusal) => {
                    let source = shared.health.source();
                    metrics::publish_failed(source, refusal.reason.as_str(), 1);
                    let (answer, attempts) =
                        (Answer::Rejected(refusal), candidate.message.attempts);
                    *outcome = outcome::decide(&answer, attempts, &shared.policy, &mut rand::rng());
                    None
                }
            }
        })
        .collect()
}

/// Marks what is to be published and takes it back. A message that cannot be marked waits, and is not published.
async fn rehearse(
    shared: &Shared,
    session: &Session,
    claim: &Claim,
    envelopes: &[Option<Envelope>],
    outcomes: &mut [Outcome],
    cautious: bool,
) -> Result<(), OutboxError> {
    let suspects: Vec<usize> = {
        let caution = shared.caution();
        // A replay has its mark already.
        let suspect = |candidate: &Candidate| {
            let known = || caution.suspects(candidate.message.position);
            !candidate.message.replay && (cautious || candidate.waited.unmarkable || known())
        };
        (0..claim.candidates.len())
            .filter(|i| envelopes[*i].is_some() && suspect(&claim.candidates[*i]))
            .collect()
    };
    if suspects.is_empty() {
        return Ok(());
    }
    let at = |i: &usize| claim.candidates[*i].message.position;
    let positions: Vec<Position> = suspects.iter().map(at).collect();
    let refused = rehearsal::rehearse(session, &positions).await?;
    if refused.is_empty() {
        return Ok(());
    }
    for i in suspects {
        let candidate = &claim.candidates[i];
        let Some(why) = refused.get(&candidate.message.position) else {
            continue;
        };
        shared.cannot_mark([], why);
        let answer = Answer::Unmarkable { text: why.clone() };
        metrics::publish_failed(shared.health.source(), Reason::Unmarkable.as_str(), 1);
        let attempts = candidate.message.attempts;
        outcomes[i] = outcome::decide(&answer, attempts, &shared.policy, &mut rand::rng());
    }
    Ok(())
}

/// Those of a wave whose destinations are not known to fail. The others are held, and so is what follows them in their key.
fn admitted(
    shared: &Shared,
    claim: &Claim,
    wave: Vec<usize>,
    envelopes: &mut [Option<Envelope>],
    outcomes: &mut [Outcome],
) -> Vec<Outgoing> {
    let mut circuits = shared.circuits();
    let all_work = circuits.is_empty();
    let now = Instant::now().into_std();
    let mut held_keys: HashSet<(Lane, i64)> = HashSet::new();
    let mut outgoing = Vec::with_capacity(wave.len());
    for i in wave {
        let Some(envelope) = envelopes[i].take() else {
            continue;
        };
        let candidate = &claim.candidates[i];
        let message = &candidate.message;
        if !all_work {
            // A replay holds nobody back.
            let key = candidate.key_hash.filter(|_| !message.replay);
            let key = key.map(|hash| (message.position.lane, hash));
            if key.is_some_and(|key| held_keys.contains(&key)) {
                outcomes[i] = Outcome::Behind;
                continue;
            }
            let destination = Destination::of(&envelope.exchange, &envelope.routing_key);
            let arrival = arrival(candidate, shared.policy.max_attempts);
            let admission = circuits.admit(destination, arrival, now, &mut rand::rng());
            if let Admission::Hold(held) = admission {
                outcomes[i] = Outcome::Held {
                    held,
                    attempts: message.attempts,
                };
                held_keys.extend(key);
                continue;
            }
        }
        outgoing.push(Outgoing {
            candidate: i,
            envelope,
        });
    }
    outgoing
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

/// Tells the circuits what became of each destination's messages. Where all of them fail, those that failed are held: one
/// of them is tried again at a time.
fn watch_destinations(
    shared: &Shared,
    claim: &Claim,
    answered: &[(Outgoing, Answer)],
    outcomes: &mut [Outcome],
) {
    let mut circuits = shared.circuits();
    let held_before = |out: &Outgoing| claim.candidates[out.candidate].waited.destination;
    let news = |(out, answer): &(Outgoing, Answer)| {
        destination_fails(answer).is_some() || held_before(out).is_some()
    };
    if circuits.is_empty() && !answered.iter().any(news) {
        return;
    }
    let mut tallies: BTreeMap<Destination, (Tally, &Envelope)> = BTreeMap::new();
    for (out, answer) in answered {
        let here = Destination::of(&out.envelope.exchange, &out.envelope.routing_key);
        let before = held_before(out);
        if *answer == Answer::Delivered {
            // One that was held for another destination, and was routed anew, says that nobody need wait for that one.
            for destination in [Some(here), before.filter(|d| *d != here)]
                .into_iter()
                .flatten()
            {
                let (tally, _) = tallies
                    .entry(destination)
                    .or_insert_with(|| (Tally::default(), &out.envelope));
                tally.delivered += 1;
                tally.had_been_held |= before.is_some();
            }
        } else if let Some(why) = destination_fails(answer) {
            let position = claim.candidates[out.candidate].message.position;
            let (tally, _) = tallies
                .entry(here)
                .or_insert_with(|| (Tally::default(), &out.envelope));
            tally.failed = match tally.failed.take() {
                Some((n, first, why)) => Some((n + 1, first, why)),
                None => Some((1, position, why)),
            };
        }
    }
    let now = Instant::now().into_std();
    let mut open: BTreeMap<Destination, Held> = BTreeMap::new();
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for (destination, (tally, envelope)) in &tallies {
        let was_open = circuits.is_open(*destination);
        let held = circuits.report(*destination, tally, now, &mut rand::rng());
        match (&held, was_open) {
            (Some(held), false) => opened.push((*envelope, held.why.clone())),
            (None, true) => closed.push(*envelope),
            (Some(_), true) | (None, false) => {}
        }
        open.extend(held.map(|held| (*destination, held)));
    }
    say(shared.health.source(), &opened, &closed);
    metrics::failing_destinations(shared.health.source(), circuits.open());
    drop(circuits);
    if open.is_empty() {
        return;
    }
    for (out, answer) in answered {
        if destination_fails(answer).is_none() {
            continue;
        }
        let here = Destination::of(&out.envelope.exchange, &out.envelope.routing_key);
        if let (Some(held), Outcome::Retry { attempts, .. }) =
            (open.get(&here), &outcomes[out.candidate])
        {
            outcomes[out.candidate] = Outcome::Held {
                held: held.clone(),
                attempts: *attempts,
            };
        }
    }
}

/// One line for all destinations of a wave: an exchange that is gone must not write a line for each routing key.
fn say(source: &str, opened: &[(&Envelope, Why)], closed: &[&Envelope]) {
    if let Some((envelope, why)) = opened.first() {
        tracing::warn!(
            source,
            exchange = %envelope.exchange.escape_debug(),
            routing_key = %envelope.routing_key.escape_debug(),
            reason = why.reason.as_str(),
            error = %why.error.escape_debug(),
            destinations = opened.len(),
            "everything to this destination fails: its messages are held, and one at a time probes it"
        );
    }
    if let Some(envelope) = closed.first() {
        tracing::info!(
            source,
            exchange = %envelope.exchange.escape_debug(),
            routing_key = %envelope.routing_key.escape_debug(),
            destinations = closed.len(),
            "the destination takes messages again: those held for it are released"
        );
    }
}

/// Answers that speak of where the message goes, not of the message.
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

fn count(source: &str, answer: &Answer, lost: Option<&BrokerError>) {
    let reason = match (answer.reason(), lost) {
        (Some(reason), _) => reason,
        (None, Some(BrokerError::Timeout { .. })) if *answer == Answer::Unknown => {
            Reason::ConfirmTimeout
        }
        (None, Some(_)) if *answer == Answer::Unknown => Reason::ConnectionLost,
        (None, _) => return,
    };
    metrics::publish_failed(source, reason.as_str(), 1);
}
