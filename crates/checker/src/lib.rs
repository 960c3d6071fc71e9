//! An independent judge: what was committed against what arrived. Shares no code with the relay.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    io::BufRead,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What a producer writes down once its transaction is committed, where no fault reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub message_id: Uuid,
    /// `None`: no order is promised.
    pub key: Option<String>,
    /// `outbox.message.id`.
    pub position: i64,
    pub body_sha256: String,
}

/// What a consumer writes down for each delivery, in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    pub message_id: Uuid,
    pub body_sha256: String,
    /// Carried the `outbox-replay` header: asked for, so no duplicate.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reordered {
    pub key: String,
    pub message_id: Uuid,
    pub position: i64,
    pub after_position: i64,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub committed: usize,
    /// Deliveries in all, replays aside.
    pub delivered: usize,
    pub duplicates: usize,
    pub replayed: usize,
    pub dead: usize,
    /// Committed, and neither delivered nor dead.
    pub lost: Vec<Uuid>,
    /// Delivered, and never committed.
    pub unknown: Vec<Uuid>,
    /// Delivered with another body than committed.
    pub altered: Vec<Uuid>,
    pub reordered: Vec<Reordered>,
    /// Marked sent, and never delivered.
    pub sent_without_delivery: Vec<Uuid>,
}

/// Of a body, as the ledger has it.
pub fn sha256(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Ledger {
    pub fn check(&self) -> Report {
        let committed: HashMap<Uuid, &Committed> =
            self.committed.iter().map(|c| (c.message_id, c)).collect();
        let mut report = Report {
            committed: self.committed.len(),
            dead: self.dead.len(),
            ..Report::default()
        };
        let mut seen: HashSet<Uuid> = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        let (mut unknown, mut altered) = (BTreeSet::new(), BTreeSet::new());
        for delivery in &self.delivered {
            let Some(message) = committed.get(&delivery.message_id) else {
                unknown.insert(delivery.message_id);
                continue;
            };
            if message.body_sha256 != delivery.body_sha256 {
                altered.insert(delivery.message_id);
            }
            if delivery.replay {
                report.replayed += 1;
                seen.insert(delivery.message_id);
                continue;
            }
            report.delivered += 1;
            if !seen.insert(delivery.message_id) {
                report.duplicates += 1;
                continue;
            }
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
        report.unknown = unknown.into_iter().collect();
        report.altered = altered.into_iter().collect();
        let in_order: BTreeMap<i64, Uuid> = self
            .committed
            .iter()
            .map(|c| (c.position, c.message_id))
            .collect();
        for id in in_order.into_values() {
            if !seen.contains(&id) && !self.dead.contains(&id) {
                report.lost.push(id);
            }
            if !seen.contains(&id) && self.marked_sent.contains(&id) {
                report.sent_without_delivery.push(id);
            }
        }
        report
    }
}

impl Report {
    /// Nothing lost, invented, altered, reordered, or marked without an arrival. Duplicates are allowed.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.unknown.is_empty()
            && self.altered.is_empty()
            && self.reordered.is_empty()
            && self.sent_without_delivery.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, delivered {}, duplicates {}, replayed {}, dead {}, lost {}, unknown {}, altered {}, \
             reordered {}, sent without delivery {}",
            self.committed,
            self.delivered,
            self.duplicates,
            self.replayed,
            self.dead,
            self.lost.len(),
            self.unknown.len(),
            self.altered.len(),
            self.reordered.len(),
            self.sent_without_delivery.len(),
        )?;
        let groups = [
            ("lost", &self.lost),
            ("unknown", &self.unknown),
            ("altered", &self.altered),
            ("sent without delivery", &self.sent_without_delivery),
        ];
        for (what, ids) in groups {
            for id in ids.iter().take(5) {
                write!(f, "\n  {what}: {id}")?;
            }
        }
        for r in self.reordered.iter().take(5) {
            write!(
                f,
                "\n  reordered: {} of {} at {} after {}",
                r.message_id, r.key, r.position, r.after_position
            )?;
        }
        Ok(())
    }
}

/// Reads a producer's or consumer's JSON lines. A last line that a crash cut short is left out.
pub fn read_lines<T: for<'de> Deserialize<'de>>(lines: impl BufRead) -> std::io::Result<Vec<T>> {
    let lines: Vec<String> = lines.lines().collect::<Result<_, _>>()?;
    let last = lines.len().saturating_sub(1);
    let mut read = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(entry) => read.push(entry),
            Err(_) if i == last => {}
            Err(error) => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn committed(n: u128, key: &str) -> Committed {
        Committed {
            message_id: id(n),
            key: Some(key.to_owned()),
            position: i64::try_from(n).unwrap(),
            body_sha256: sha256(b"x"),
        }
    }

    fn delivered(n: u128) -> Delivered {
        Delivered {
            message_id: id(n),
            body_sha256: sha256(b"x"),
            replay: false,
        }
    }

    fn ledger(arrived: &[u128]) -> Ledger {
        Ledger {
            committed: vec![committed(1, "a"), committed(2, "b"), committed(3, "a")],
            delivered: arrived.iter().copied().map(delivered).collect(),
            ..Ledger::default()
        }
    }

    #[test]
    fn everything_once_and_in_order_is_clean() {
        let report = ledger(&[2, 1, 3]).check();
        assert!(report.is_clean(), "{report}");
        assert_eq!(
            (report.committed, report.delivered, report.duplicates),
            (3, 3, 0)
        );
    }

    #[test]
    fn a_duplicate_is_counted_and_no_violation() {
        let report = ledger(&[1, 2, 3, 1]).check();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.duplicates, 1);
    }

    #[test]
    fn a_lost_message_is_found_and_a_dead_one_is_not_lost() {
        let mut ledger = ledger(&[1, 2]);
        assert_eq!(ledger.check().lost, [id(3)]);
        ledger.dead.insert(id(3));
        assert!(ledger.check().is_clean());
    }

    #[test]
    fn a_mark_without_arrival_is_found_even_when_the_message_is_dead() {
        let mut ledger = ledger(&[1, 2]);
        ledger.dead.insert(id(3));
        ledger.marked_sent.insert(id(3));
        assert_eq!(ledger.check().sent_without_delivery, [id(3)]);
    }

    #[test]
    fn an_overtaken_message_is_found() {
        let report = ledger(&[3, 2, 1]).check();
        assert_eq!(report.reordered.len(), 1);
        assert_eq!(
            (
                report.reordered[0].position,
                report.reordered[0].after_position
            ),
            (1, 3)
        );
    }

    #[test]
    fn an_altered_and_an_invented_message_are_found() {
        let mut ledger = ledger(&[1, 2, 3, 9]);
        ledger.delivered[0].body_sha256 = sha256(b"y");
        let report = ledger.check();
        assert_eq!((report.altered, report.unknown), (vec![id(1)], vec![id(9)]));
    }

    #[test]
    fn a_replay_is_no_duplicate_and_may_come_out_of_order() {
        let mut ledger = ledger(&[1, 2, 3, 1]);
        ledger.delivered[3].replay = true;
        let report = ledger.check();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.duplicates, report.replayed), (0, 1));
    }

    #[test]
    fn a_line_that_a_crash_cut_short_is_left_out_and_any_other_bad_line_is_an_error() {
        let line = serde_json::to_string(&delivered(1)).unwrap();
        let cut = format!("{line}\n{}", &line[..20]);
        assert_eq!(
            read_lines::<Delivered>(cut.as_bytes()).unwrap(),
            [delivered(1)]
        );
        let bad = format!("{}\n{line}\n", &line[..20]);
        assert!(read_lines::<Delivered>(bad.as_bytes()).is_err());
    }
}
