//! An independent judge: compares the committed messages with the deliveries. It shares no code with the relay.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A producer's record of a message, written after the commit, at a place that no fault reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub message_id: Uuid,
    /// `None`: the message has no order.
    pub key: Option<String>,
    /// `outbox.message.id`.
    pub position: i64,
    pub body_sha256: String,
}

/// A consumer's record of a delivery, written in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    pub message_id: Uuid,
    pub body_sha256: String,
    /// The delivery carried the `outbox-replay` header: a replay is not a duplicate.
    pub replay: bool,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub committed: Vec<Committed>,
    pub delivered: Vec<Delivered>,
    /// Listed in `outbox.dead` at the end.
    pub dead: HashSet<Uuid>,
    /// Marked sent in `outbox.message` at the end.
    pub marked_sent: HashSet<Uuid>,
}

/// An earlier message of a key arrived for the first time after a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reordered {
    pub key: String,
    pub message_id: Uuid,
    pub position: i64,
    pub after_position: i64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub committed: usize,
    /// Number of deliveries without replays.
    pub delivered: usize,
    /// Number of distinct messages among them.
    pub distinct: usize,
    pub duplicates: usize,
    pub replayed: usize,
    pub dead: usize,
    /// Committed, and neither delivered nor dead. A replay does not replace a missing delivery.
    pub lost: Vec<Uuid>,
    /// Delivered or dead, and never committed.
    pub unknown: Vec<Uuid>,
    /// Delivered with another body than committed.
    pub altered: Vec<Uuid>,
    pub reordered: Vec<Reordered>,
    /// Marked sent, and never delivered.
    pub sent_without_delivery: Vec<Uuid>,
    /// One id for two messages: a fault of the producers, which would hide a loss.
    pub committed_twice: Vec<Uuid>,
}

/// Hash of a body, as the ledger stores it.
pub fn sha256(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Ledger {
    /// Checks a finished run: nothing is pending, and the consumers have taken everything.
    pub fn check(&self) -> Report {
        let mut report = Report {
            committed: self.committed.len(),
            dead: self.dead.len(),
            ..Report::default()
        };
        let mut committed: HashMap<Uuid, &Committed> = HashMap::new();
        let mut committed_twice = BTreeSet::new();
        for message in &self.committed {
            if committed.insert(message.message_id, message).is_some() {
                committed_twice.insert(message.message_id);
            }
        }
        let mut arrived: HashSet<Uuid> = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        let (mut unknown, mut altered) = (BTreeSet::new(), BTreeSet::new());
        for delivery in &self.delivered {
            let first = !delivery.replay && arrived.insert(delivery.message_id);
            let Some(message) = committed.get(&delivery.message_id) else {
                unknown.insert(delivery.message_id);
                continue;
            };
            if message.body_sha256 != delivery.body_sha256 {
                altered.insert(delivery.message_id);
            }
            if delivery.replay {
                report.replayed += 1;
                continue;
            }
            report.delivered += 1;
            if !first {
                report.duplicates += 1;
                continue;
            }
            report.distinct += 1;
            let Some(key) = message.key.as_deref() else {
                continue;
            };
            let last = last.entry(key).or_insert(message.position);
            if *last > message.position {
                report.reordered.push(Reordered {
                    key: key.to_owned(),
                    message_id: message.message_id,
                    position: message.position,
                    after_position: *last,
                });
            } else {
                *last = message.position;
            }
        }
        unknown.extend(self.dead.iter().filter(|id| !committed.contains_key(id)));
        let lost: BTreeSet<(i64, Uuid)> = committed
            .values()
            .filter(|c| !arrived.contains(&c.message_id) && !self.dead.contains(&c.message_id))
            .map(|c| (c.position, c.message_id))
            .collect();
        let unfounded: BTreeSet<Uuid> = self.marked_sent.difference(&arrived).copied().collect();
        report.lost = lost.into_iter().map(|(_, id)| id).collect();
        report.unknown = unknown.into_iter().collect();
        report.altered = altered.into_iter().collect();
        report.sent_without_delivery = unfounded.into_iter().collect();
        report.committed_twice = committed_twice.into_iter().collect();
        report
    }
}

impl Report {
    /// No message was lost, invented, altered, reordered, or marked without a delivery. Duplicates are allowed.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.unknown.is_empty()
            && self.altered.is_empty()
            && self.reordered.is_empty()
            && self.sent_without_delivery.is_empty()
            && self.committed_twice.is_empty()
    }

    /// Panics with the report unless it is clean.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

/// Maximum number of named messages for each kind of violation; the others are counted.
const NAMED: usize = 5;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, delivered {}, distinct {}, duplicates {}, replayed {}, dead {}, lost {}, unknown {}, \
             altered {}, reordered {}, sent without delivery {}, committed twice {}",
            self.committed,
            self.delivered,
            self.distinct,
            self.duplicates,
            self.replayed,
            self.dead,
            self.lost.len(),
            self.unknown.len(),
            self.altered.len(),
            self.reordered.len(),
            self.sent_without_delivery.len(),
            self.committed_twice.len(),
        )?;
        let groups = [
            ("lost", &self.lost),
            ("unknown", &self.unknown),
            ("altered", &self.altered),
            ("sent without delivery", &self.sent_without_delivery),
            ("committed twice", &self.committed_twice),
        ];
        for (what, ids) in groups {
            for id in ids.iter().take(NAMED) {
                write!(f, "\n  {what}: {id}")?;
            }
            and_more(f, what, ids.len())?;
        }
        for r in self.reordered.iter().take(NAMED) {
            write!(
                f,
                "\n  reordered: {} of {} at {} after {}",
                r.message_id, r.key, r.position, r.after_position
            )?;
        }
        and_more(f, "reordered", self.reordered.len())
    }
}

fn and_more(f: &mut fmt::Formatter<'_>, what: &str, all: usize) -> fmt::Result {
    match all.checked_sub(NAMED) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "\n  {what}: and {more} more"),
    }
}

#[cfg(test)]
mod tests;
