//! Every metric: its name, its meaning, its buckets. No label holds a key or an id. The label `source` exists only if
//! one daemon relays several databases.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{
    Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub const PENDING: &str = "outbox_pending_messages";
pub const LAG: &str = "outbox_oldest_due_age_seconds";
pub const DEAD: &str = "outbox_dead_messages";
pub const PUBLISHED: &str = "outbox_published_total";
pub const PUBLISH_FAILURES: &str = "outbox_publish_failures_total";
pub const RETRIES: &str = "outbox_retries_total";
pub const DEAD_LETTERED: &str = "outbox_dead_lettered_total";
pub const DELIVERY_LATENCY: &str = "outbox_delivery_latency_seconds";
pub const CLAIM: &str = "outbox_claim_seconds";
pub const CONFIRM: &str = "outbox_confirm_seconds";
pub const SETTLE: &str = "outbox_settle_seconds";
pub const BATCH_SIZE: &str = "outbox_batch_size";
pub const DEPENDENCY_UP: &str = "outbox_dependency_up";
pub const BROKER_BLOCKED: &str = "outbox_broker_blocked";
pub const LAST_PUBLISH: &str = "outbox_last_publish_timestamp_seconds";
pub const BUILD_INFO: &str = "outbox_build_info";
pub const WORKER_RESTARTS: &str = "outbox_worker_restarts_total";
pub const PRUNED: &str = "outbox_pruned_total";
pub const FAILING_DESTINATIONS: &str = "outbox_failing_destinations";
pub const CAN_MARK: &str = "outbox_can_mark";
pub const CAN_READ: &str = "outbox_can_read";
pub const LOG_LINES_DROPPED: &str = "outbox_log_lines_dropped_total";
pub const STRANDED_TOTAL: &str = "outbox_stranded_messages_total";
pub const STRANDED: &str = "outbox_stranded_messages";
pub const AUDITED: &str = "outbox_audit_last_completed_timestamp_seconds";
pub const SCHEMA_OK: &str = "outbox_schema_ok";
pub const LANES_RESTORED: &str = "outbox_lanes_restored_total";
pub const JOB_FAILURES: &str = "outbox_maintenance_failures_total";

/// The periodic jobs of a relay.
pub const TASKS: [&str; 8] = [
    "circuits",
    "inspection",
    "audit",
    "gauges",
    "blockers",
    "beat",
    "retention",
    "held",
];

/// From a round trip on one machine up to the confirm timeout.
const STAGE_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];
/// From an idle wake-up up to an outage of an hour.
const LATENCY_BUCKETS: [f64; 16] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0,
];
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];

/// Installs the recorder of the process. The handle renders the text for Prometheus.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let exact = |name: &str| Matcher::Full(name.to_owned());
    // Without buckets the exporter writes summaries, and summaries of several relays cannot be added.
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(exact(DELIVERY_LATENCY), &LATENCY_BUCKETS)?
        .set_buckets_for_metric(exact(CLAIM), &STAGE_BUCKETS)?
        .set_buckets_for_metric(exact(CONFIRM), &STAGE_BUCKETS)?
        .set_buckets_for_metric(exact(SETTLE), &STAGE_BUCKETS)?
        .set_buckets_for_metric(exact(BATCH_SIZE), &BATCH_BUCKETS)?
        .install_recorder()?;
    describe();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    counter!(LOG_LINES_DROPPED).increment(0);
    Ok(handle)
}

pub fn describe() {
    describe_gauge!(
        PENDING,
        "Messages committed, and neither sent nor dead. Derived above 10,000."
    );
    describe_gauge!(
        LAG,
        "The lag: age of the oldest message that is due and not sent."
    );
    describe_gauge!(
        DEAD,
        "Messages given up and neither redriven nor discarded."
    );
    describe_counter!(PUBLISHED, "Messages that the broker confirmed.");
    describe_counter!(
        PUBLISH_FAILURES,
        "Attempts that did not end in a confirm, by reason."
    );
    describe_counter!(RETRIES, "Messages filed for another attempt, by reason.");
    describe_counter!(DEAD_LETTERED, "Messages given up, by reason.");
    describe_histogram!(
        DELIVERY_LATENCY,
        "Time from the row's created_at to the last confirm of its claim, by the database's clock."
    );
    describe_histogram!(CLAIM, "Time to lock lanes and read their messages.");
    describe_histogram!(
        CONFIRM,
        "Time from the first publish of a batch to its last confirm."
    );
    describe_histogram!(SETTLE, "Time to write a batch's outcomes and commit.");
    describe_histogram!(BATCH_SIZE, "Messages in a claim.");
    describe_gauge!(DEPENDENCY_UP, "1 while the dependency answers, else 0.");
    describe_gauge!(
        BROKER_BLOCKED,
        "1 while an alarm of the broker blocks publishers, else 0."
    );
    describe_gauge!(
        LAST_PUBLISH,
        "Time of the broker's last confirm, in seconds since the epoch."
    );
    describe_gauge!(BUILD_INFO, "Always 1; the label is the version.");
    describe_counter!(
        WORKER_RESTARTS,
        "Tasks (worker, scout, listener, maintenance) that panicked and were started again."
    );
    describe_counter!(PRUNED, "Sent messages deleted by retention.");
    describe_gauge!(
        FAILING_DESTINATIONS,
        "Destinations (exchange and routing key) where every message fails, and exchanges where many destinations do; their messages are held."
    );
    describe_gauge!(
        CAN_MARK,
        "0 while messages cannot be marked as sent, and are therefore not published; else 1."
    );
    describe_gauge!(
        CAN_READ,
        "0 while PostgreSQL refuses to read messages, and no message is to blame; else 1."
    );
    describe_counter!(
        LOG_LINES_DROPPED,
        "Log lines that were dropped, because nothing reads standard error or its disk is full."
    );
    describe_counter!(
        STRANDED_TOTAL,
        "Stranded messages that the audit found and filed to be sent."
    );
    describe_gauge!(
        STRANDED,
        "Stranded messages that are known and not yet filed: their lanes are locked, or their records are refused."
    );
    describe_gauge!(
        AUDITED,
        "End of this relay's last audit of all messages, in seconds since the epoch."
    );
    describe_gauge!(
        SCHEMA_OK,
        "0 while schema or privileges would prevent a start, or a part that guards events is missing or changed; else 1."
    );
    describe_counter!(
        LANES_RESTORED,
        "Missing rows of outbox.lane that were restored."
    );
    describe_counter!(
        JOB_FAILURES,
        "Failures of the relay's periodic jobs, by task; the other jobs go on."
    );
}

fn labels(source: &str, more: &[(&'static str, &'static str)]) -> Vec<Label> {
    let mut labels: Vec<Label> = more
        .iter()
        .map(|(k, v)| Label::from_static_parts(k, v))
        .collect();
    if source != "default" {
        labels.push(Label::new("source", source.to_owned()));
    }
    labels
}

/// Creates the counters before their first increment, so that alerts can use them.
pub fn start_at_zero(source: &str) {
    counter!(PUBLISHED, labels(source, &[])).increment(0);
    counter!(WORKER_RESTARTS, labels(source, &[])).increment(0);
    counter!(PRUNED, labels(source, &[])).increment(0);
    counter!(LANES_RESTORED, labels(source, &[])).increment(0);
    stranded(source, 0, 0);
    for task in TASKS {
        counter!(JOB_FAILURES, labels(source, &[("task", task)])).increment(0);
    }
    for reason in outbox_core::reason::Reason::ALL {
        let labels = labels(source, &[("reason", reason.as_str())]);
        counter!(PUBLISH_FAILURES, labels.clone()).increment(0);
        counter!(RETRIES, labels.clone()).increment(0);
        counter!(DEAD_LETTERED, labels).increment(0);
    }
    dependency_up(source, "postgresql", false);
    dependency_up(source, "rabbitmq", false);
    broker_blocked(source, false);
    failing_destinations(source, 0);
    can_mark(source, true);
    can_read(source, true);
}

pub fn failing_destinations(source: &str, open: usize) {
    gauge!(FAILING_DESTINATIONS, labels(source, &[])).set(open as f64);
}

pub fn can_mark(source: &str, can: bool) {
    gauge!(CAN_MARK, labels(source, &[])).set(if can { 1.0 } else { 0.0 });
}

pub fn can_read(source: &str, can: bool) {
    gauge!(CAN_READ, labels(source, &[])).set(if can { 1.0 } else { 0.0 });
}

pub fn dependency_up(source: &str, dependency: &'static str, up: bool) {
    gauge!(DEPENDENCY_UP, labels(source, &[("dependency", dependency)])).set(if up {
        1.0
    } else {
        0.0
    });
}

pub fn broker_blocked(source: &str, blocked: bool) {
    gauge!(BROKER_BLOCKED, labels(source, &[])).set(if blocked { 1.0 } else { 0.0 });
}

pub fn outbox(source: &str, pending: i64, lag_seconds: f64, dead: i64) {
    gauge!(PENDING, labels(source, &[])).set(pending as f64);
    gauge!(LAG, labels(source, &[])).set(lag_seconds);
    gauge!(DEAD, labels(source, &[])).set(dead as f64);
}

/// The outbox could not be measured. NaN is better than an old value.
pub fn outbox_unknown(source: &str) {
    for name in [PENDING, LAG, DEAD] {
        gauge!(name, labels(source, &[])).set(f64::NAN);
    }
}

pub fn claimed(source: &str, took: Duration, messages: usize) {
    histogram!(CLAIM, labels(source, &[])).record(took.as_secs_f64());
    histogram!(BATCH_SIZE, labels(source, &[])).record(messages as f64);
}

pub fn confirmed(source: &str, took: Duration) {
    histogram!(CONFIRM, labels(source, &[])).record(took.as_secs_f64());
}

/// Confirmed messages, with the time from creation to confirm of each.
pub fn published(source: &str, latencies_s: &[f64]) {
    if latencies_s.is_empty() {
        return;
    }
    counter!(PUBLISHED, labels(source, &[])).increment(latencies_s.len() as u64);
    let histogram = histogram!(DELIVERY_LATENCY, labels(source, &[]));
    for latency in latencies_s {
        histogram.record(*latency);
    }
    gauge!(LAST_PUBLISH, labels(source, &[])).set(now());
}

/// Seconds since the Unix epoch.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

pub fn settled(source: &str, took: Duration) {
    histogram!(SETTLE, labels(source, &[])).record(took.as_secs_f64());
}

pub fn publish_failed(source: &str, reason: &'static str, messages: u64) {
    counter!(PUBLISH_FAILURES, labels(source, &[("reason", reason)])).increment(messages);
}

pub fn retried(source: &str, reason: &'static str) {
    counter!(RETRIES, labels(source, &[("reason", reason)])).increment(1);
}

pub fn dead_lettered(source: &str, reason: &'static str) {
    counter!(DEAD_LETTERED, labels(source, &[("reason", reason)])).increment(1);
}

pub fn worker_restarted(source: &str) {
    counter!(WORKER_RESTARTS, labels(source, &[])).increment(1);
}

pub fn pruned(source: &str, rows: u64) {
    counter!(PRUNED, labels(source, &[])).increment(rows);
}

/// The log belongs to the process, so this counter has no label `source`.
pub fn log_line_dropped() {
    counter!(LOG_LINES_DROPPED).increment(1);
}

/// `filed`: messages filed just now; `known`: messages known and not yet filed.
pub fn stranded(source: &str, filed: u64, known: usize) {
    counter!(STRANDED_TOTAL, labels(source, &[])).increment(filed);
    gauge!(STRANDED, labels(source, &[])).set(known as f64);
}

pub fn audited(source: &str) {
    gauge!(AUDITED, labels(source, &[])).set(now());
}

pub fn schema_ok(source: &str, ok: bool) {
    gauge!(SCHEMA_OK, labels(source, &[])).set(if ok { 1.0 } else { 0.0 });
}

/// A periodic job failed. The label is not called `job`, because Prometheus sets that one itself.
pub fn job_failed(source: &str, task: &'static str) {
    counter!(JOB_FAILURES, labels(source, &[("task", task)])).increment(1);
}

pub fn lanes_restored(source: &str, lanes: u64) {
    counter!(LANES_RESTORED, labels(source, &[])).increment(lanes);
}
