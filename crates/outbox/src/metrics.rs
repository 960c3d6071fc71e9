//! The metrics of an inbox. No label contains a key or an id.

use std::time::Duration;

#[cfg(feature = "http")]
use crate::inbox::Claimed;

use metrics::{counter, gauge, histogram};

/// Counters start at 0: a counter that appears with the value 1 shows no increase, and nobody would see the first conflict.
pub(crate) struct Counted {
    outcomes: &'static [&'static str],
    retries: &'static [&'static str],
    dead_letters: &'static [&'static str],
}

#[cfg(feature = "consumer")]
pub(crate) const MESSAGES: Counted = Counted {
    outcomes: &[
        "first",
        "duplicate",
        "stale",
        "conflict",
        "dead_lettered",
        "replay_skipped",
    ],
    retries: &["failed", "timed_out", "database"],
    dead_letters: &[
        "attempts_exhausted",
        "conflict",
        "headers_invalid",
        "headers_unreadable",
        "in_doubt",
        "message_id_invalid",
        "rejected",
        "result_invalid",
    ],
};

#[cfg(feature = "http")]
pub(crate) const COMMANDS: Counted = Counted {
    outcomes: &[
        "first",
        "unkeyed",
        "duplicate",
        "conflict",
        "in_doubt",
        "failed",
    ],
    retries: &["running"],
    dead_letters: &[],
};

pub(crate) fn started(consumer: &str, handler_timeout: Duration, counted: &Counted) {
    let consumer = || consumer.to_owned();
    gauge!("inbox_handler_timeout_seconds", "consumer" => consumer())
        .set(handler_timeout.as_secs_f64());
    counter!("inbox_conflicts_total", "consumer" => consumer()).increment(0);
    for &outcome in counted.outcomes {
        counter!("inbox_messages_total", "consumer" => consumer(), "outcome" => outcome)
            .increment(0);
    }
    for &reason in counted.retries {
        counter!("inbox_retries_total", "consumer" => consumer(), "reason" => reason).increment(0);
    }
    for &reason in counted.dead_letters {
        counter!("inbox_dead_lettered_total", "consumer" => consumer(), "reason" => reason)
            .increment(0);
    }
    if !counted.dead_letters.is_empty() {
        counter!("inbox_lost_acknowledgements_total", "consumer" => consumer()).increment(0);
    }
}

pub(crate) fn message(consumer: &str, outcome: &'static str) {
    counter!("inbox_messages_total", "consumer" => consumer.to_owned(), "outcome" => outcome)
        .increment(1);
}

#[cfg(feature = "consumer")]
/// Counts a duplicate that the broker delivered again: it was applied before, and its acknowledgement was lost.
pub(crate) fn acknowledgement_lost(consumer: &str) {
    counter!("inbox_lost_acknowledgements_total", "consumer" => consumer.to_owned()).increment(1);
}

/// Counts the outcome of a command's claim that was not the first.
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

/// `reason`: `failed` (the handler failed), `timed_out`, `database`, or `running` (the first request of a command has not
/// ended).
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

/// The number of external effects that were begun and not recorded, and the age of the oldest. An effect that began a moment ago
/// is in flight; only its age distinguishes it from an effect in doubt. Without a reading both values are NaN, because an
/// inbox that does not answer must not look like one without doubts.
pub(crate) fn in_doubt(consumer: &str, reading: Option<(usize, Duration)>) {
    let (operations, oldest) = match reading {
        Some((operations, oldest)) => (operations as f64, oldest.as_secs_f64()),
        None => (f64::NAN, f64::NAN),
    };
    gauge!("inbox_in_doubt", "consumer" => consumer.to_owned()).set(operations);
    gauge!("inbox_oldest_in_doubt_age_seconds", "consumer" => consumer.to_owned()).set(oldest);
}
