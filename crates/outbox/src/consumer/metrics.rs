//! What a consumer counts. No label holds a key or an id.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

pub(super) fn message(consumer: &str, outcome: &'static str) {
    counter!("inbox_messages_total", "consumer" => consumer.to_owned(), "outcome" => outcome)
        .increment(1);
    if outcome == "conflict" {
        counter!("inbox_conflicts_total", "consumer" => consumer.to_owned()).increment(1);
    }
}

pub(super) fn retry(consumer: &str) {
    counter!("inbox_retries_total", "consumer" => consumer.to_owned()).increment(1);
}

pub(super) fn handled(consumer: &str, took: Duration) {
    histogram!("inbox_handler_seconds", "consumer" => consumer.to_owned())
        .record(took.as_secs_f64());
}

pub(super) fn in_doubt(consumer: &str, operations: usize) {
    gauge!("inbox_in_doubt", "consumer" => consumer.to_owned()).set(operations as f64);
}
