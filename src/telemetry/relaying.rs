//! Reports of a worker's events, as log lines and as metrics.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use outbox_core::{
    circuit::Why,
    claim::Claim,
    message::Position,
    outcome::{Answer, Outcome},
    reason::Reason,
    wave::{Changes, Name},
};

use super::metrics;

pub fn connected(source: &str, worker: usize) {
    tracing::info!(source, worker, "connected to both servers");
}

/// `waited`: since the claim's last statement.
pub fn deadline_missed(source: &str, messages: usize, waited: Duration) {
    tracing::warn!(
        source,
        messages,
        waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        "nothing of a claim was published: the relay stood still, and PostgreSQL ends the claim before the broker answers"
    );
}

pub fn unreadable_claim(source: &str, error: &dyn Display) {
    tracing::warn!(source, error = %error, "a claim cannot be read; reading one message at a time to find the unreadable one");
}

pub fn unreadable_message(source: &str, position: Position, error: &dyn Display) {
    metrics::dead_lettered(source, Reason::Unreadable.as_str());
    tracing::error!(
        source, position = position.id, lane = position.lane, reason = Reason::Unreadable.as_str(), error = %error,
        "given up; see `outboxd dead show`"
    );
}

/// Neither the outcome of the message can be written, nor a record that it waits.
pub fn set_aside(source: &str, position: Position, why: &str) {
    tracing::warn!(
        source,
        position = position.id,
        lane = position.lane,
        why,
        "a message is left as it is, because it can neither be settled nor filed"
    );
}

/// A message was refused before its publish.
pub fn not_published(source: &str, reason: Reason) {
    metrics::publish_failed(source, reason.as_str(), 1);
}

/// The answers of a wave. `unanswered`: the reason why some messages have none.
pub fn answered<'a>(
    source: &str,
    answers: impl Iterator<Item = &'a Answer>,
    unanswered: Option<Reason>,
) {
    for answer in answers {
        let unanswered = unanswered.filter(|_| *answer == Answer::Unknown);
        if let Some(reason) = answer.reason().or(unanswered) {
            metrics::publish_failed(source, reason.as_str(), 1);
        }
    }
}

/// One line for all destinations of a wave, and one for all exchanges: a full queue must not write a line for each
/// routing key.
pub fn destinations(source: &str, changes: &Changes) {
    let opened = |is_exchange: bool| {
        let of_kind = move |(name, _): &&(Name, Why)| name.routing_key.is_none() == is_exchange;
        changes.opened.iter().filter(of_kind)
    };
    if let Some((name, why)) = opened(false).next() {
        tracing::warn!(
            source,
            exchange = &*name.exchange,
            routing_key = routing_key(name),
            reason = why.reason.as_str(),
            error = &*why.error,
            destinations = opened(false).count(),
            "everything to this destination fails: its messages are held, and one at a time probes it"
        );
    }
    if let Some((name, why)) = opened(true).next() {
        tracing::warn!(
            source,
            exchange = &*name.exchange,
            reason = why.reason.as_str(),
            error = &*why.error,
            exchanges = opened(true).count(),
            "many destinations of this exchange fail in the same way: its messages are held, and one at a time probes it"
        );
    }
    if let Some(name) = changes.closed.first() {
        tracing::info!(
            source,
            exchange = &*name.exchange,
            routing_key = routing_key(name),
            destinations = changes.closed.len(),
            "the destination takes messages again: its held messages are released"
        );
    }
    if changes.closed_earlier > 0 {
        tracing::info!(
            source,
            destinations = changes.closed_earlier,
            "messages were delivered by a new route: the others that are held for an earlier destination are released"
        );
    }
    metrics::failing_destinations(source, changes.failing);
}

/// `*`: all routing keys of the exchange.
fn routing_key(name: &Name) -> &str {
    name.routing_key.as_deref().unwrap_or("*")
}

/// Called after the commit, so that nothing rolled back is counted. `confirmed_after`: time from the claim's clock to
/// its last confirm.
pub fn settled(source: &str, claim: &Claim, confirmed_after: Duration) {
    let confirmed_us = claim
        .snapshot
        .now_us
        .saturating_add(i64::try_from(confirmed_after.as_micros()).unwrap_or(i64::MAX));
    let mut latencies = Vec::new();
    // One line for all failures with the same reason: a lost binding must not write a line for each message of a
    // backlog.
    let mut retried: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut given_up: BTreeMap<Reason, usize> = BTreeMap::new();
    for item in &claim.items {
        match item.outcome() {
            Outcome::Retry { reason, .. } => *retried.entry(*reason).or_default() += 1,
            Outcome::Dead { reason, .. } => *given_up.entry(*reason).or_default() += 1,
            _ => {}
        }
    }
    for item in &claim.items {
        let message = &item.candidate.message;
        let (id, position) = (message.message_id, message.position.id);
        match item.outcome() {
            Outcome::Sent => {
                // created_at may be "-infinity".
                let latency_us = confirmed_us.saturating_sub(message.created_at_us);
                latencies.push(latency_us.max(0) as f64 / 1e6);
            }
            Outcome::Retry {
                reason,
                attempts,
                delay,
                error,
            } => {
                metrics::retried(source, reason.as_str());
                // `outbox.waiting` holds the details of the other messages.
                if let Some(messages) = retried.remove(reason) {
                    tracing::warn!(
                        source, message_id = %id, position, reason = reason.as_str(), attempts,
                        delay_ms = delay.as_millis() as u64, error, messages,
                        "not delivered; it is tried again"
                    );
                }
            }
            Outcome::Dead {
                reason,
                attempts,
                error,
            } => {
                metrics::dead_lettered(source, reason.as_str());
                // `outbox.dead` holds the details of the other messages.
                if let Some(messages) = given_up.remove(reason) {
                    tracing::error!(
                        source, message_id = %id, position, reason = reason.as_str(), attempts,
                        error, messages,
                        "given up; see `outboxd dead show`"
                    );
                }
            }
            Outcome::Held { held, .. } => metrics::retried(source, held.why.reason.as_str()),
            Outcome::Behind | Outcome::Untouched => {}
        }
    }
    metrics::published(source, &latencies);
}
