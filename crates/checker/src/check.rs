//! The comparison, and its verdict.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
};

use crate::ledger::{Committed, Delivered, Entry, Ledger};

/// A message of a key that arrived, for the first time, after a later message of that key had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderViolation {
    pub key: String,
    pub message_id: String,
    pub position: i64,
    /// The latest of those that had arrived before it.
    pub after_message_id: String,
    pub after_position: i64,
}

impl fmt::Display for OrderViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            message_id,
            position,
            after_message_id,
            after_position,
        } = self;
        write!(
            f,
            "{message_id} (key {key}, position {position}) after {after_message_id} ({after_position})"
        )
    }
}

/// What a run came to. The first block counts, and allows anything; the second must be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub committed: usize,
    /// Messages whose COMMIT had no answer, and which no `committed` entry settled.
    pub in_doubt: usize,
    /// Deliveries of all kinds, repeats included.
    pub delivered: usize,
    /// Different messages among them.
    pub distinct: usize,
    /// Repeats that the relay published: neither the broker's redeliveries nor replays.
    pub duplicates: usize,
    /// Repeats that the broker made, by its `redelivered` flag.
    pub redeliveries: usize,
    pub replays: usize,
    /// Dead at the end of the run.
    pub dead: usize,

    /// Committed, not dead, and never delivered. A replay does not make up for a missing delivery.
    pub lost: Vec<String>,
    /// Delivered or dead, and never committed.
    pub unknown: Vec<String>,
    /// Delivered with another body than was committed.
    pub altered: Vec<String>,
    /// First deliveries of a key that are not in the order of its positions.
    pub order_violations: Vec<OrderViolation>,
    /// Marked sent, and never delivered.
    pub sent_without_delivery: Vec<String>,
    /// One message id, committed more than once: the producers' fault, and nothing else can be judged with it.
    pub committed_twice: Vec<String>,
}

/// Judges a run that has come to rest: the relay is idle, and the consumers have taken everything.
pub fn check(ledger: &Ledger) -> Report {
    let mut report = Report::default();
    let mut committed: HashMap<&str, &Committed> = HashMap::new();
    let mut in_doubt: HashMap<&str, &str> = HashMap::new();
    let mut deliveries: Vec<&Delivered> = Vec::new();
    let mut dead: BTreeSet<&str> = BTreeSet::new();
    let mut out_of_order: HashSet<&str> = HashSet::new();
    let mut marked_sent: BTreeSet<&str> = BTreeSet::new();
    let mut committed_twice: BTreeSet<&str> = BTreeSet::new();
    for entry in &ledger.entries {
        match entry {
            Entry::Committed(c) => {
                if committed.insert(&c.message_id, c).is_some() {
                    committed_twice.insert(&c.message_id);
                }
            }
            Entry::InDoubt { message_id, body } => {
                in_doubt.insert(message_id, body);
            }
            Entry::Delivered(d) => deliveries.push(d),
            Entry::Dead { message_id } => {
                dead.insert(message_id);
            }
            Entry::Redriven { message_id } => {
                dead.remove(message_id.as_str());
                out_of_order.insert(message_id);
            }
            Entry::MarkedSent { message_id } => {
                marked_sent.insert(message_id);
            }
        }
    }
    in_doubt.retain(|id, _| !committed.contains_key(id));
    deliveries.sort_by_key(|d| d.sequence);

    let mut seen: HashSet<&str> = HashSet::new();
    let mut published: HashSet<&str> = HashSet::new();
    let mut first: Vec<&Delivered> = Vec::new();
    let mut unknown: BTreeSet<&str> = BTreeSet::new();
    let mut altered: BTreeSet<&str> = BTreeSet::new();
    for d in &deliveries {
        let id = d.message_id.as_str();
        seen.insert(id);
        if d.replay {
            report.replays += 1;
        } else if published.insert(id) {
            first.push(d);
        } else if d.redelivered {
            report.redeliveries += 1;
        } else {
            report.duplicates += 1;
        }
        match committed
            .get(id)
            .map(|c| c.body.as_str())
            .or_else(|| in_doubt.get(id).copied())
        {
            None => {
                unknown.insert(id);
            }
            Some(body) if body != d.body => {
                altered.insert(id);
            }
            Some(_) => {}
        }
    }
    unknown.extend(
        dead.iter()
            .filter(|id| !committed.contains_key(*id) && !in_doubt.contains_key(*id)),
    );

    let lost: BTreeSet<(i64, &str)> = committed
        .values()
        .filter(|c| {
            !published.contains(c.message_id.as_str()) && !dead.contains(c.message_id.as_str())
        })
        .map(|c| (c.position, c.message_id.as_str()))
        .collect();

    report.committed = committed.len();
    report.in_doubt = in_doubt.len();
    report.delivered = deliveries.len();
    report.distinct = seen.len();
    report.dead = dead.len();
    report.lost = lost.into_iter().map(|(_, id)| id.to_owned()).collect();
    report.unknown = owned(unknown);
    report.altered = owned(altered);
    report.order_violations = order_violations(
        first
            .into_iter()
            .filter(|d| !out_of_order.contains(d.message_id.as_str()))
            .filter_map(|d| committed.get(d.message_id.as_str()).copied()),
    );
    report.sent_without_delivery =
        owned(marked_sent.into_iter().filter(|id| !published.contains(id)));
    report.committed_twice = owned(committed_twice);
    report
}

fn owned<'a>(ids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    ids.into_iter().map(str::to_owned).collect()
}

/// `arrived`: each message once, in the order of arrival.
fn order_violations<'a>(arrived: impl Iterator<Item = &'a Committed>) -> Vec<OrderViolation> {
    let mut latest: HashMap<&str, &Committed> = HashMap::new();
    let mut violations = Vec::new();
    for message in arrived {
        let Some(key) = message.key.as_deref() else {
            continue;
        };
        match latest.get(key) {
            Some(before) if before.position > message.position => violations.push(OrderViolation {
                key: key.to_owned(),
                message_id: message.message_id.clone(),
                position: message.position,
                after_message_id: before.message_id.clone(),
                after_position: before.position,
            }),
            _ => {
                latest.insert(key, message);
            }
        }
    }
    violations
}

/// Offenders of one kind that are named; the rest are counted.
const NAMED: usize = 5;

impl Report {
    /// Every committed message arrived or is dead, nothing else arrived, and keys kept their order. Duplicates,
    /// replays and dead messages are no fault by themselves: a test that allows none compares the counts.
    pub fn is_clean(&self) -> bool {
        self.verdict().is_ok()
    }

    /// The faults as text that names the first few of each kind.
    pub fn verdict(&self) -> Result<(), String> {
        let order: Vec<String> = self
            .order_violations
            .iter()
            .map(ToString::to_string)
            .collect();
        let faults: Vec<String> = [
            ("lost (committed, never delivered, not dead)", &self.lost),
            (
                "unknown (delivered or dead, never committed)",
                &self.unknown,
            ),
            ("altered (another body than was committed)", &self.altered),
            ("out of order", &order),
            (
                "marked sent without a delivery",
                &self.sent_without_delivery,
            ),
            (
                "committed twice (the ledger is not usable)",
                &self.committed_twice,
            ),
        ]
        .into_iter()
        .filter(|(_, offenders)| !offenders.is_empty())
        .map(|(what, offenders)| {
            let mut text = format!("{} {what}: {}", offenders.len(), first_few(offenders));
            if offenders.len() > NAMED {
                text.push_str(&format!(", and {} more", offenders.len() - NAMED));
            }
            text
        })
        .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("\n"))
        }
    }

    /// Panics with the whole report unless it is clean.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

fn first_few(offenders: &[String]) -> String {
    offenders
        .iter()
        .take(NAMED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        write!(
            f,
            "{}: committed {}, in doubt {}, delivered {} ({} distinct, {} duplicates, {} redeliveries, {} replays), \
             dead {}, lost {}, unknown {}, altered {}, out of order {}, sent without delivery {}",
            if verdict.is_ok() {
                "clean"
            } else {
                "NOT CLEAN"
            },
            self.committed,
            self.in_doubt,
            self.delivered,
            self.distinct,
            self.duplicates,
            self.redeliveries,
            self.replays,
            self.dead,
            self.lost.len(),
            self.unknown.len(),
            self.altered.len(),
            self.order_violations.len(),
            self.sent_without_delivery.len(),
        )?;
        match verdict {
            Ok(()) => Ok(()),
            Err(faults) => write!(f, "\n{faults}"),
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
