//! What a consumer counts. No label holds a key or an id.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

pub(super) fn message(consumer: &str, outcome: &'static str) {
    counter!("inbox_messages_total", "consumer" => consumer.to_owned(), "outcome" => outcome)
        .increment(1);
}

/// A duplicate that the broker delivered again: applied before, and its acknowledgement lost.
pub(super) fn acknowledgement_lost(consumer: &str) {
    counter!("inbox_lost_acknowledgements_total", "consumer" => consumer.to_owned()).increment(1);
}

/// `reason`: `failed` (the handler said so), `timed_out` or `database`.
pub(super) fn retry(consumer: &str, reason: &'static str) {
    counter!("inbox_retries_total", "consumer" => consumer.to_owned(), "reason" => reason)
        .increment(1);
}

pub(super) fn dead_lettered(consumer: &str, reason: &'static str) {
    message(
        consumer,
        if reason == "conflict" {
            "conflict"
        } else {
            "dead_lettered"
        },
    );
    if reason == "conflict" {
        counter!("inbox_conflicts_total", "consumer" => consumer.to_owned()).increment(1);
    }
    counter!("inbox_dead_lettered_total", "consumer" => consumer.to_owned(), "reason" => reason)
        .increment(1);
}

pub(super) fn handled(consumer: &str, took: Duration) {
    histogram!("inbox_handler_seconds", "consumer" => consumer.to_owned())
        .record(took.as_secs_f64());
}

pub(super) fn in_doubt(consumer: &str, operations: usize) {
    gauge!("inbox_in_doubt", "consumer" => consumer.to_owned()).set(operations as f64);
}
