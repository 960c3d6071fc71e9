//! What an inbox counts. No label holds a key or an id.

use std::time::Duration;

#[cfg(feature = "http")]
use crate::inbox::Claimed;

use metrics::{counter, gauge, histogram};

pub(crate) fn message(consumer: &str, outcome: &'static str) {
    counter!("inbox_messages_total", "consumer" => consumer.to_owned(), "outcome" => outcome)
        .increment(1);
}

#[cfg(feature = "consumer")]
/// A duplicate that the broker delivered again: applied before, and its acknowledgement lost.
pub(crate) fn acknowledgement_lost(consumer: &str) {
    counter!("inbox_lost_acknowledgements_total", "consumer" => consumer.to_owned()).increment(1);
}

/// What a claim for a command was told, when it was not the first.
#[cfg(feature = "http")]
pub(crate) fn claimed(consumer: &str, claimed: &Claimed) {
    let outcome = match claimed {
        Claimed::Conflict => {
            conflict(consumer);
            "conflict"
        }
        Claimed::Duplicate(_) => "duplicate",
        Claimed::First | Claimed::Stale | Claimed::InDoubt => "in_doubt",
    };
    message(consumer, outcome);
}

fn conflict(consumer: &str) {
    counter!("inbox_conflicts_total", "consumer" => consumer.to_owned()).increment(1);
}

/// `reason`: `failed` (the handler said so), `timed_out`, `database`, or `running` (a
/// command whose first request has not ended).
pub(crate) fn retry(consumer: &str, reason: &'static str) {
    counter!("inbox_retries_total", "consumer" => consumer.to_owned(), "reason" => reason)
        .increment(1);
}

#[cfg(feature = "consumer")]
pub(crate) fn dead_lettered(consumer: &str, reason: &'static str) {
    message(
        consumer,
        if reason == "conflict" {
            "conflict"
        } else {
            "dead_lettered"
        },
    );
    if reason == "conflict" {
        conflict(consumer);
    }
    counter!("inbox_dead_lettered_total", "consumer" => consumer.to_owned(), "reason" => reason)
        .increment(1);
}

pub(crate) fn handled(consumer: &str, took: Duration) {
    histogram!("inbox_handler_seconds", "consumer" => consumer.to_owned())
        .record(took.as_secs_f64());
}

pub(crate) fn in_doubt(consumer: &str, operations: usize) {
    gauge!("inbox_in_doubt", "consumer" => consumer.to_owned()).set(operations as f64);
}
