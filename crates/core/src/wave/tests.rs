mod incident;

use std::time::Duration;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    claim::{self, Claim, Waited, sample_claim},
    envelope::EnvelopeOptions,
    plan::{Ordering, Plan},
    route::{Router, RoutingRules},
};

const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: 20,
    backoff_initial: Duration::from_secs(1),
    backoff_max: Duration::from_secs(300),
};

fn builder() -> EnvelopeBuilder {
    let rules = RoutingRules {
        exchange: "events".to_owned(),
        routing_key: "{aggregate_type}.{event_type}".to_owned(),
        ..RoutingRules::default()
    };
    let options = EnvelopeOptions {
        app_id: "outboxd".to_owned(),
        cloudevents_source: None,
        max_payload_bytes: 1 << 20,
    };
    EnvelopeBuilder::new(Router::new(rules).unwrap(), options)
}

/// Its body and its key are its position.
fn candidate(id: i64, event_type: &str) -> Candidate {
    let mut candidate = claim::sample(id, Some(id));
    candidate.message.event_type = event_type.to_owned();
    candidate.message.body = Some(id.to_string().into_bytes());
    candidate
}

/// A candidate without a possible envelope.
fn impossible(id: i64) -> Candidate {
    let mut candidate = candidate(id, "created");
    candidate.message.headers = Some("[]".to_owned());
    candidate
}

fn is_impossible(id: i64, outcome: &Outcome) -> bool {
    let reason = match outcome {
        Outcome::Dead { reason, .. } => Some(*reason),
        _ => None,
    };
    assert!(
        reason.is_none_or(|reason| reason == Reason::HeadersInvalid),
        "{id}"
    );
    reason.is_some()
}

/// One claim with one wave, against a broker that answers each message by its kind.
struct Life {
    circuits: Circuits,
    now: Instant,
    rng: StdRng,
    /// Bodies that the broker received, in order.
    sent: Vec<String>,
    changes: Option<Changes>,
    refused: Vec<Reason>,
}

impl Life {
    #[expect(clippy::disallowed_methods, reason = "only now() makes an Instant")]
    fn new() -> Self {
        Self {
            circuits: Circuits::new(POLICY),
            now: Instant::now(),
            rng: StdRng::seed_from_u64(1),
            sent: Vec::new(),
            changes: None,
            refused: Vec::new(),
        }
    }

    /// `publish` returns each message with its answer, in any order.
    fn lead<F>(&mut self, candidates: Vec<Candidate>, publish: F) -> Claim
    where
        F: for<'c> Fn(Vec<Outgoing<'c>>) -> Vec<(Outgoing<'c>, Answer)>,
    {
        let claim = sample_claim(candidates, vec![]);
        let mut plan = Plan::new(claim, Ordering::Pipelined);
        for item in plan.publishable() {
            let prepared = prepare(item, &builder(), 0, &POLICY, &mut self.rng);
            self.refused.extend(prepared.err());
        }
        let wave = plan.next_wave();
        let circuits = &mut self.circuits;
        let outgoing = admit(wave, circuits, &POLICY, self.now, &mut self.rng);
        self.sent = outgoing.iter().map(body).collect();
        let mut answered = publish(outgoing);
        decide(&mut answered, &POLICY, &mut self.rng);
        self.changes = watch(&mut answered, circuits, self.now, &mut self.rng);
        plan.into_claim()
    }

    fn all(&mut self, candidates: Vec<Candidate>, answer: &Answer) -> Claim {
        self.lead(candidates, |outgoing| {
            let answered = outgoing.into_iter();
            answered.map(|o| (o, answer.clone())).collect()
        })
    }
}

fn body(outgoing: &Outgoing<'_>) -> String {
    String::from_utf8(outgoing.as_ref().body.clone()).unwrap()
}

/// The broker returns every third message and names it.
fn own(outgoing: &Outgoing<'_>) -> Answer {
    let body = body(outgoing);
    match body.parse::<i64>().unwrap() % 3 {
        0 => Answer::Unroutable {
            code: 312,
            text: body,
        },
        _ => Answer::Delivered,
    }
}

fn is_own(id: i64, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Sent => id % 3 != 0,
        Outcome::Retry { error, .. } => id % 3 == 0 && *error == format!("312 {id}"),
        _ => false,
    }
}

fn answered(outgoing: Vec<Outgoing<'_>>) -> Vec<(Outgoing<'_>, Answer)> {
    let answered = outgoing.into_iter().map(|o| {
        let answer = own(&o);
        (o, answer)
    });
    answered.collect()
}

/// Each message has its own destination: two failures of one destination would hold messages.
fn mixed(impossible_ones: &[i64], last: i64) -> Vec<Candidate> {
    let one = |id| match impossible_ones.contains(&id) {
        true => impossible(id),
        false => candidate(id, &format!("type{id}")),
    };
    (1..=last).map(one).collect()
}

#[test]
fn around_a_message_that_is_refused_within_a_wave_each_gets_its_own_answer() {
    let mut life = Life::new();
    let claim = life.lead(mixed(&[4], 7), answered);
    assert_eq!(life.sent, ["1", "2", "3", "5", "6", "7"]);
    assert_eq!(life.refused, [Reason::HeadersInvalid]);
    for item in &claim.items {
        let id = item.position().id;
        let expected = match id {
            4 => is_impossible(id, item.outcome()),
            _ => is_own(id, item.outcome()),
        };
        assert!(expected, "{id}: {:?}", item.outcome());
    }
}

/// The message was only read: if its envelope is missing, no answer can mark the message as sent.
#[test]
fn a_message_without_an_envelope_is_not_published_and_stays_pending() {
    let mut life = Life::new();
    let mut plan = Plan::new(sample_claim(mixed(&[], 3), vec![]), Ordering::Pipelined);
    for item in plan.publishable().filter(|item| item.position().id != 2) {
        prepare(item, &builder(), 0, &POLICY, &mut life.rng).unwrap();
    }
    let outgoing = admit(
        plan.next_wave(),
        &mut life.circuits,
        &POLICY,
        life.now,
        &mut life.rng,
    );
    let sent: Vec<String> = outgoing.iter().map(body).collect();
    assert_eq!(sent, ["1", "3"]);
    decide(&mut answered(outgoing), &POLICY, &mut life.rng);
    let claim = plan.into_claim();
    assert_eq!(claim.items[0].outcome(), &Outcome::Sent);
    assert_eq!(claim.items[1].outcome(), &Outcome::Untouched);
}

proptest! {
    #[test]
    fn each_message_gets_its_own_answer_for_any_refusals_and_any_order(
        refused in prop::collection::hash_set(1..30i64, 0..10), turn in 0..30usize, reversed: bool,
    ) {
        let refused: Vec<i64> = refused.into_iter().collect();
        let claim = Life::new().lead(mixed(&refused, 29), |outgoing| {
            shuffled(answered(outgoing), turn, reversed)
        });
        for item in &claim.items {
            let (id, outcome) = (item.position().id, item.outcome());
            let expected = if refused.contains(&id) { is_impossible(id, outcome) } else { is_own(id, outcome) };
            prop_assert!(expected, "{}: {:?}", id, outcome);
        }
    }
}

fn shuffled<T>(mut of: Vec<T>, turn: usize, reversed: bool) -> Vec<T> {
    if !of.is_empty() {
        let turn = turn % of.len();
        of.rotate_left(turn);
    }
    if reversed {
        of.reverse();
    }
    of
}

fn outcomes(claim: &Claim) -> Vec<&'static str> {
    let name = |item: &Item| match item.outcome() {
        Outcome::Sent => "sent",
        Outcome::Retry { .. } => "retry",
        Outcome::Dead { .. } => "dead",
        Outcome::Behind => "behind",
        Outcome::Held { .. } => "held",
        Outcome::Untouched => "untouched",
    };
    claim.items.iter().map(name).collect()
}

fn name(routing_key: &str) -> Name {
    Name {
        exchange: "events".to_owned(),
        routing_key: Some(routing_key.to_owned()),
    }
}

#[test]
fn a_destination_that_fails_for_two_messages_holds_them_and_the_next_ones() {
    let mut life = Life::new();
    let two = vec![candidate(1, "full"), candidate(2, "full")];
    let claim = life.all(two, &Answer::Nacked);
    assert_eq!(outcomes(&claim), ["held", "held"]);
    let why = Why {
        reason: Reason::Nacked,
        error: Answer::Nacked.text(),
    };
    let held = Held {
        destination: Destination::of("events", "order.full"),
        failures: 0,
        why: why.clone(),
    };
    // The failed attempt counts.
    let expected = Outcome::Held { held, attempts: 1 };
    assert_eq!(claim.items[0].outcome(), &expected);
    let changes = Changes {
        opened: vec![(name("order.full"), why)],
        failing: 1,
        ..Changes::default()
    };
    assert_eq!(life.changes, Some(changes));

    let mut next = candidate(3, "full");
    next.filed = true;
    next.message.attempts = 5;
    let claim = life.all(vec![next, candidate(4, "good")], &Answer::Delivered);
    assert_eq!(life.sent, ["4"]);
    assert_eq!(outcomes(&claim), ["held", "sent"]);
    // The message was not published, so no attempt is counted.
    assert!(matches!(
        claim.items[0].outcome(),
        Outcome::Held { attempts: 5, .. }
    ));
    let unchanged = Changes {
        failing: 1,
        ..Changes::default()
    };
    assert_eq!(life.changes, Some(unchanged));
}

#[test]
fn with_the_first_success_a_destination_works_again() {
    let mut life = Life::new();
    life.all(
        vec![candidate(1, "full"), candidate(2, "full")],
        &Answer::Nacked,
    );
    let mut probe = candidate(1, "full");
    probe.filed = true;
    probe.waited.probe = true;
    let claim = life.all(vec![probe], &Answer::Delivered);
    assert_eq!(outcomes(&claim), ["sent"]);
    let changes = Changes {
        closed: vec![name("order.full")],
        ..Changes::default()
    };
    assert_eq!(life.changes, Some(changes));
    assert!(!life.circuits.is_empty(), "it drains");
}

#[test]
fn without_failures_the_circuits_are_not_called() {
    let mut life = Life::new();
    life.all(vec![candidate(1, "good")], &Answer::Delivered);
    assert_eq!(life.changes, None);
    let too_large = Answer::Refused {
        code: 406,
        text: String::new(),
    };
    for answer in [too_large, Answer::Unknown, Answer::Behind] {
        life.all(vec![candidate(1, "good")], &answer);
        assert_eq!(life.changes, None, "{answer:?}");
    }
}

#[test]
fn two_destinations_that_fail_once_each_are_left_alone() {
    let mut life = Life::new();
    let two = vec![candidate(1, "one"), candidate(2, "other")];
    let missing = Answer::Refused {
        code: 404,
        text: "no exchange".to_owned(),
    };
    let claim = life.all(two, &missing);
    assert_eq!(outcomes(&claim), ["retry", "retry"]);
    assert_eq!(life.changes, Some(Changes::default()));
}

/// The circuit remembers the first failed message: if the same message fails again, the destination may work.
#[test]
fn repeated_failures_of_one_message_hold_no_other() {
    let mut life = Life::new();
    for _ in 0..3 {
        let claim = life.all(vec![candidate(1, "one")], &Answer::Nacked);
        assert_eq!(outcomes(&claim), ["retry"]);
    }
    let claim = life.all(vec![candidate(2, "one")], &Answer::Nacked);
    assert_eq!(outcomes(&claim), ["held"]);
}

#[test]
fn a_destination_that_takes_one_of_its_messages_works() {
    let mut life = Life::new();
    let three = (1..=3).map(|id| candidate(id, "some")).collect();
    let claim = life.lead(three, |outgoing| {
        let answered = outgoing.into_iter().map(|o| match body(&o).as_str() {
            "2" => (o, Answer::Delivered),
            _ => (o, Answer::Nacked),
        });
        answered.collect()
    });
    assert_eq!(outcomes(&claim), ["retry", "sent", "retry"]);
    assert_eq!(life.changes, Some(Changes::default()));
}

/// The route has changed: the other messages that are held for the old destination are released.
#[test]
fn a_held_message_delivered_elsewhere_releases_the_others() {
    let mut life = Life::new();
    life.all(
        vec![candidate(1, "old"), candidate(2, "old")],
        &Answer::Nacked,
    );
    let mut moved = candidate(1, "new");
    moved.filed = true;
    moved.waited = Waited {
        destination: Some(Destination::of("events", "order.old")),
        ..Waited::default()
    };
    life.all(vec![moved], &Answer::Delivered);
    // The new destination never failed, so no line may name it.
    let changes = Changes {
        closed_earlier: 1,
        ..Changes::default()
    };
    assert_eq!(life.changes, Some(changes));
}

/// After a start the circuits have no state.
#[test]
fn a_delivered_held_message_makes_the_circuit_look_for_others() {
    let mut life = Life::new();
    let here = Destination::of("events", "order.full");
    for (held_for, news) in [(None, false), (Some(here), true)] {
        let mut due = candidate(1, "full");
        due.filed = true;
        due.waited.destination = held_for;
        life.all(vec![due], &Answer::Delivered);
        assert_eq!(life.changes.is_some(), news);
        assert_eq!(life.circuits.is_empty(), !news);
    }
    // The failure of a message that was not held tells nothing about others.
    let mut life = Life::new();
    life.all(vec![candidate(1, "full")], &Answer::Nacked);
    life.all(vec![candidate(1, "full")], &Answer::Delivered);
    assert!(life.circuits.is_empty());
}

#[test]
fn later_messages_of_a_key_wait_behind_a_held_one_unless_it_is_a_replay() {
    let of_key = |id, event_type: &str| Candidate {
        key_hash: Some(7),
        filed: true,
        ..candidate(id, event_type)
    };
    let mut life = Life::new();
    life.all(
        vec![candidate(1, "full"), candidate(2, "full")],
        &Answer::Nacked,
    );
    let three = vec![of_key(3, "full"), of_key(4, "good"), candidate(5, "good")];
    let claim = life.all(three, &Answer::Delivered);
    assert_eq!(outcomes(&claim), ["held", "behind", "sent"]);

    let mut replay = of_key(3, "full");
    replay.message.replay = true;
    let claim = life.all(vec![replay, of_key(4, "good")], &Answer::Delivered);
    assert_eq!(outcomes(&claim), ["held", "sent"]);

    let mut replay = of_key(4, "good");
    replay.message.replay = true;
    let claim = life.all(vec![of_key(3, "full"), replay], &Answer::Delivered);
    assert_eq!(outcomes(&claim), ["held", "sent"]);

    let mut other_lane = of_key(4, "good");
    other_lane.message.position.lane += 1;
    let claim = life.all(vec![of_key(3, "full"), other_lane], &Answer::Delivered);
    assert_eq!(outcomes(&claim), ["held", "sent"]);
}

#[test]
fn a_message_arrives_as_new_again_as_a_probe_or_for_the_last_time() {
    let arrives = |filed, probe, attempts| {
        let mut candidate = candidate(1, "x");
        candidate.filed = filed;
        candidate.waited.probe = probe;
        candidate.message.attempts = attempts;
        arrival(&candidate, 20)
    };
    assert_eq!(arrives(false, false, 0), Arrival::New);
    assert_eq!(arrives(true, false, 19), Arrival::Again(None));
    assert_eq!(arrives(true, true, 18), Arrival::Probe(None));
    assert_eq!(arrives(true, true, 19), Arrival::Last);
    assert_eq!(arrives(true, true, u32::MAX), Arrival::Last);
}

/// A message that dies at its last attempt is dead, not held: a held message would be tried again.
#[test]
fn a_dead_message_is_not_held() {
    let mut life = Life::new();
    let unroutable = Answer::Unroutable {
        code: 312,
        text: "NO_ROUTE".to_owned(),
    };
    let mut last = candidate(2, "gone");
    last.message.attempts = 19;
    let claim = life.all(vec![candidate(1, "gone"), last], &unroutable);
    assert_eq!(outcomes(&claim), ["held", "dead"]);
}

#[test]
fn only_answers_about_the_destination_open_its_circuit() {
    let refused = |code| Answer::Refused {
        code,
        text: String::new(),
    };
    for (code, fails) in [(403, true), (404, true), (406, false), (541, false)] {
        assert_eq!(destination_fails(&refused(code)).is_some(), fails, "{code}");
    }
    let unmarkable = Answer::Unmarkable {
        text: String::new(),
    };
    assert_eq!(destination_fails(&unmarkable), None);
}
