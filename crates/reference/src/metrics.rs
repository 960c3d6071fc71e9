//! docs/reference/metrics.md: the relay's metrics with their descriptions, and the metrics of the crate `outbox`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

use programs::Result;

/// The crate `outbox` registers no descriptions, because a service has its own recorder. The names here are compared
/// with its source.
const INBOX_SOURCE: &str = "crates/outbox/src/metrics.rs";
const INBOX: &[(&str, &str, &str, &str)] = &[
    (
        "inbox_conflicts_total",
        "counter",
        "",
        "Claims of a known key with another payload.",
    ),
    (
        "inbox_dead_lettered_total",
        "counter",
        "`reason`",
        "Messages that a consumer gave up on.",
    ),
    (
        "inbox_handler_seconds",
        "histogram",
        "",
        "Duration of a handler.",
    ),
    (
        "inbox_handler_timeout_seconds",
        "gauge",
        "",
        "The consumer's `handler_timeout`.",
    ),
    (
        "inbox_in_doubt",
        "gauge",
        "",
        "External effects that were begun and not recorded; `NaN` when the inbox cannot be asked.",
    ),
    (
        "inbox_lost_acknowledgements_total",
        "counter",
        "",
        "Messages that were committed and delivered again.",
    ),
    (
        "inbox_messages_total",
        "counter",
        "`outcome`",
        "Finished messages and commands.",
    ),
    (
        "inbox_oldest_in_doubt_age_seconds",
        "gauge",
        "",
        "Age of the oldest effect in doubt; `NaN` when the inbox cannot be asked.",
    ),
    (
        "inbox_retries_total",
        "counter",
        "`reason`",
        "Failed attempts that are retried.",
    ),
];

const HEAD: &str = "\
<!-- Written by `cargo xtask docs`. -->

# Metrics

No label holds a key or an id. Counters start at 0 with the process. A label with many values links to their list.

## The relay

`/metrics` on `admin.listen`. With several `[[source]]`, each metric of a source has the label `source`.

| metric | kind | labels | meaning |
|---|---|---|---|
";

const INBOX_HEAD: &str = "
## An inbox

The service that consumes serves these. Each has the label `consumer`.
[Monitoring](../operating/monitoring.md#inbox-metrics) explains each `outcome` and `reason`.

| metric | kind | labels | meaning |
|---|---|---|---|
";

pub fn reference() -> Result<String> {
    let described = Described::default();
    with_local_recorder(&described, || {
        outboxd::telemetry::metrics::describe();
        outboxd::telemetry::metrics::start_at_zero("default");
    });
    let labels = described.labels.into_inner();
    let mut text = HEAD.to_owned();
    for (name, (kind, meaning)) in described.metrics.into_inner() {
        let labels = labels.get(&name).map(listed).unwrap_or_default();
        text += &format!("| `{name}` | {kind} | {labels} | {meaning} |\n");
    }
    text += INBOX_HEAD;
    for (name, kind, labels, meaning) in INBOX {
        text += &format!("| `{name}` | {kind} | {labels} | {meaning} |\n");
    }
    same_names(&std::fs::read_to_string(INBOX_SOURCE)?)?;
    Ok(text)
}

/// Lists a few label values; a long list is explained elsewhere.
fn listed(labels: &BTreeMap<String, BTreeSet<String>>) -> String {
    let each = labels.iter().map(|(label, values)| match values.len() {
        0..4 => {
            let values: Vec<String> = values.iter().map(|v| format!("`{v}`")).collect();
            format!("`{label}`: {}", values.join(", "))
        }
        _ if label == "task" => format!("[`{label}`](../runbooks/OutboxMaintenanceFailing.md)"),
        _ => format!("[`{label}`](../operating/dead-letters.md#reasons)"),
    });
    each.collect::<Vec<_>>().join("; ")
}

fn same_names(source: &str) -> Result<()> {
    let quoted = source.split('"').skip(1).step_by(2);
    let counted: BTreeSet<&str> = quoted.filter(|name| name.starts_with("inbox_")).collect();
    let listed: BTreeSet<&str> = INBOX.iter().map(|(name, ..)| *name).collect();
    let differ: Vec<_> = counted.symmetric_difference(&listed).collect();
    if differ.is_empty() {
        Ok(())
    } else {
        Err(format!("{INBOX_SOURCE} and the list of the inbox's metrics differ: {differ:?}").into())
    }
}

/// Kind and description by name, and the values of each label.
#[derive(Default)]
struct Described {
    metrics: RefCell<BTreeMap<String, (&'static str, String)>>,
    labels: RefCell<BTreeMap<String, BTreeMap<String, BTreeSet<String>>>>,
}

impl Described {
    fn describe(&self, key: &KeyName, kind: &'static str, description: &SharedString) {
        let described = (kind, description.to_string());
        self.metrics
            .borrow_mut()
            .insert(key.as_str().to_owned(), described);
    }

    fn register(&self, key: &Key) {
        let mut labels = self.labels.borrow_mut();
        let labels = labels.entry(key.name().to_owned()).or_default();
        for label in key.labels() {
            let values = labels.entry(label.key().to_owned()).or_default();
            values.insert(label.value().to_owned());
        }
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, "counter", &description);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, "gauge", &description);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, "histogram", &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.register(key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.register(key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.register(key);
        Histogram::noop()
    }
}
