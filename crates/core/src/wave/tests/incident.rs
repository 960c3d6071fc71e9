//! An incident from its beginning to its end: claims of fifty messages, and the maintenance's steps for the held ones.

use super::*;
use crate::{circuit::Task, reason::Reason};

const STEP: Duration = Duration::from_millis(100);
const BATCH: usize = 50;

/// A message as `outbox.message` and `outbox.waiting` show it.
#[derive(Clone)]
struct Row {
    routing_key: String,
    sent: bool,
    filed: bool,
    attempts: u32,
    /// `None` while it is held.
    due: Option<Instant>,
    waited: Waited,
}

struct Incident {
    life: Life,
    rows: Vec<Row>,
    /// Publishes that failed. A healthy queue beside a full one got each of them.
    copies: usize,
}

impl Incident {
    fn new(circuits: Circuits, routing_keys: impl Iterator<Item = String>) -> Self {
        let life = Life {
            circuits,
            ..Life::new()
        };
        let mut incident = Self {
            life,
            rows: Vec::new(),
            copies: 0,
        };
        incident.insert(routing_keys);
        incident
    }

    fn insert(&mut self, routing_keys: impl Iterator<Item = String>) {
        let now = self.life.now;
        self.rows.extend(routing_keys.map(|routing_key| Row {
            routing_key,
            sent: false,
            filed: false,
            attempts: 0,
            due: Some(now),
            waited: Waited::default(),
        }));
    }

    fn step(&mut self, fails: fn(&str) -> bool) {
        self.life.now += STEP;
        let now = self.life.now;
        let due = |row: &Row| !row.sent && row.due.is_some_and(|due| due <= now);
        let candidates = (0..).zip(&self.rows).filter(|(_, row)| due(row));
        let candidates: Vec<Candidate> = candidates
            .take(BATCH)
            .map(|(n, row)| {
                let mut candidate = candidate(n, &row.routing_key);
                (candidate.filed, candidate.waited) = (row.filed, row.waited);
                candidate.message.attempts = row.attempts;
                candidate
            })
            .collect();
        let claim = self.life.lead(candidates, |outgoing| {
            let answered =
                outgoing
                    .into_iter()
                    .map(|outgoing| match fails(&outgoing.as_ref().routing_key) {
                        true => (outgoing, Answer::Nacked),
                        false => (outgoing, Answer::Delivered),
                    });
            answered.collect()
        });
        for body in &self.life.sent {
            let row = &self.rows[body.parse::<usize>().unwrap()];
            self.copies += usize::from(fails(&format!("order.{}", row.routing_key)));
        }
        for item in &claim.items {
            let row = &mut self.rows[item.position().id as usize];
            (row.filed, row.waited) = (true, Waited::default());
            match item.outcome() {
                Outcome::Sent => row.sent = true,
                Outcome::Retry {
                    attempts, delay, ..
                } => (row.attempts, row.due) = (*attempts, Some(now + *delay)),
                Outcome::Held { held, attempts } => {
                    (row.attempts, row.due) = (*attempts, None);
                    row.waited.destination = Some(held.destination);
                }
                other => panic!("{other:?}"),
            }
        }
        self.keep_house();
    }

    fn keep_house(&mut self) {
        let (now, rng) = (self.life.now, &mut self.life.rng);
        for task in self.life.circuits.tasks(now, rng) {
            match task {
                Task::Probe(destination, after) => {
                    let held = self.held(destination);
                    let next = held.iter().find(|n| **n as i64 > after);
                    let chosen = next.or(held.first()).copied();
                    if let Some(n) = chosen {
                        (self.rows[n].due, self.rows[n].waited.probe) = (Some(now), true);
                    }
                    let chosen = chosen.map(|n| n as i64);
                    self.life.circuits.probed(destination, chosen, now);
                }
                Task::ProbeNewest(destination) => {
                    let newest = self.held(destination).pop();
                    if let Some(n) = newest {
                        (self.rows[n].due, self.rows[n].waited.probe) = (Some(now), true);
                    }
                    let chosen = newest.map(|n| n as i64);
                    self.life.circuits.probed(destination, chosen, now);
                }
                Task::Release(destination, window) | Task::ReleaseNewest(destination, window) => {
                    let mut held = self.held(destination);
                    if matches!(task, Task::ReleaseNewest(..)) {
                        held.reverse();
                    }
                    for n in held.iter().take(window) {
                        self.rows[*n].due = Some(now);
                    }
                    let released = held.len().min(window);
                    let circuits = &mut self.life.circuits;
                    circuits.released(destination, window, released);
                }
                Task::GiveUp(..) => panic!("a nack gives no message up"),
            }
        }
    }

    fn held(&self, destination: Destination) -> Vec<usize> {
        let is_held = |row: &Row| row.due.is_none() && row.waited.destination == Some(destination);
        (0..self.rows.len())
            .filter(|n| is_held(&self.rows[*n]))
            .collect()
    }

    fn steps(&mut self, n: usize, fails: fn(&str) -> bool) {
        for _ in 0..n {
            self.step(fails);
        }
    }

    /// Steps until all messages to these routing keys are sent.
    fn steps_until_sent(&mut self, of: &str, fails: fn(&str) -> bool) -> usize {
        for n in 0..10_000 {
            let sent = |row: &Row| row.sent || !row.routing_key.starts_with(of);
            if self.rows.iter().all(sent) {
                return n;
            }
            self.step(fails);
        }
        panic!("not all of {of} are sent");
    }
}

fn keys(prefix: &str, n: usize) -> impl Iterator<Item = String> {
    (0..n).map(move |i| format!("{prefix}-{i}"))
}

fn all_fail(_: &str) -> bool {
    true
}

fn none_fails(_: &str) -> bool {
    false
}

fn full_fails(routing_key: &str) -> bool {
    routing_key.starts_with("order.full")
}

/// A minute in which every queue is beside a full one.
fn copies_of_a_minute(circuits: Circuits) -> Incident {
    let mut incident = Incident::new(circuits, keys("full", 500));
    incident.steps(600, all_fail);
    incident
}

#[test]
fn an_incident_of_many_destinations_copies_a_batch_and_then_few_and_ends_at_once() {
    let mut incident = copies_of_a_minute(Circuits::new(POLICY));
    // One untried message a second, and the probes of two circuits.
    let allowed = BATCH + 60 + 20;
    assert!(incident.copies <= allowed, "{} copies", incident.copies);
    assert!(incident.life.circuits.open() > 0);
    let steps = incident.steps_until_sent("full", none_fails);
    assert!(steps < 1000, "{steps} steps");
    incident.steps(100, none_fails);
    assert!(incident.life.circuits.is_empty());
}

/// The safeguard removed.
#[test]
fn without_a_circuit_of_the_exchange_each_destination_is_tried_again_and_again() {
    let incident = copies_of_a_minute(Circuits::with_many(POLICY, usize::MAX));
    assert!(incident.copies > 5 * 500, "{} copies", incident.copies);
}

#[test]
fn destinations_that_work_flow_beside_many_that_fail() {
    let mut incident = Incident::new(Circuits::new(POLICY), keys("full", 500));
    incident.steps(20, full_fails);
    for round in 0..20 {
        let good = format!("good{round}");
        incident.insert(keys(&good, 50).chain(keys(&format!("full{round}"), 50)));
        let steps = incident.steps_until_sent(&good, full_fails);
        // The first round needs a success that opens the way.
        assert!(steps <= if round == 0 { 150 } else { 10 }, "{steps} steps");
    }
    let orders = 500 + 20 * 50;
    let seconds = incident.rows.len();
    assert!(incident.copies <= orders + seconds, "{}", incident.copies);
    incident.steps_until_sent("full", none_fails);
}

/// Each of these has many messages, so it has a circuit of its own, and recovers alone.
#[test]
fn destinations_recover_one_by_one() {
    fn but_one(routing_key: &str) -> bool {
        routing_key != "order.full-7"
    }
    let messages = (0..10).flat_map(|_| keys("full", 30));
    let mut incident = Incident::new(Circuits::new(POLICY), messages);
    incident.steps(300, all_fail);
    let copies = incident.copies;
    let one = (0..2000).find(|_| {
        incident.step(but_one);
        let mut rows = incident.rows.iter();
        rows.all(|row| row.sent || row.routing_key != "full-7")
    });
    assert!(one.is_some(), "it waits for the others");
    assert!(
        incident.copies - copies <= 2 * 200 + BATCH,
        "{}",
        incident.copies
    );
}

#[test]
fn returned_messages_hold_no_other_destination() {
    let mut life = Life::new();
    let returned = Answer::Unroutable {
        code: 312,
        text: String::new(),
    };
    let each = (0..40).map(|n| candidate(n, &format!("type{n}")));
    let claim = life.all(each.collect(), &returned);
    assert_eq!(outcomes(&claim), vec!["retry"; 40]);
    assert_eq!(life.circuits.open(), 0);
    let missing = Answer::Refused {
        code: 404,
        text: String::new(),
    };
    let each = (0..40).map(|n| candidate(n, &format!("type{n}")));
    let claim = life.all(each.collect(), &missing);
    assert_eq!(outcomes(&claim), vec!["held"; 40]);
    let opened = &life.changes.as_ref().unwrap().opened;
    let why = &opened[0].1;
    assert_eq!((opened.len(), why.reason), (1, Reason::ExchangeMissing));
    assert_eq!(opened[0].0.routing_key, None);
}
