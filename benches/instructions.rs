//! Counts the instructions of the functions that every message passes, once for each batch. `cargo xtask bench
//! instructions` compares the counts with benches/limits.toml.

use std::{hint::black_box, time::Duration};

use gungraun::{library_benchmark, library_benchmark_group, main};
use outbox_core::{
    backoff::RetryPolicy,
    claim::{Candidate, Claim, Ctid, HeldLane, Limits, Read, Snapshot, Waited},
    envelope::{Envelope, EnvelopeBuilder, EnvelopeOptions},
    low_water::{Mark, STRIDE},
    message::{Message, Position},
    outcome::{self, Answer, Outcome},
    plan::{Ordering, Plan},
    reason::Reason,
    route::{Router, RoutingRules},
    settlement::{self, Settlement},
};
use rand::{SeedableRng, rngs::StdRng};
use uuid::Uuid;

/// Same as `relay.batch_size`.
const BATCH: i64 = 500;
const LANES: i16 = 8;
const FRAME_MAX: u32 = 131_072;
const TRACE: &str = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tenant":"blue","attempt":1}"#;

fn message(id: i64, keys: i64) -> Message {
    let body = format!(r#"{{"id":{id},"pad":"{}"}}"#, "x".repeat(490)).into_bytes();
    Message {
        position: Position {
            lane: (id % i64::from(LANES)) as i16,
            id,
        },
        message_id: Uuid::from_u128(id as u128),
        aggregate_type: "order".to_owned(),
        aggregate_id: Some((id % keys).to_string()),
        event_type: "created".to_owned(),
        content_type: "application/json".to_owned(),
        headers: Some(TRACE.to_owned()),
        headers_size: TRACE.len() as u64,
        exchange: None,
        routing_key: None,
        created_at_us: 1_700_000_000_123_456,
        attempts: 0,
        replay: false,
        body_size: body.len() as u64,
        body: Some(body),
        damage: None,
    }
}

fn candidates(keys: i64) -> Vec<Candidate> {
    let candidate = |id| Candidate {
        message: message(id, keys),
        ctid: Ctid::default(),
        tx: 0,
        key_hash: Some(id % keys),
        filed: false,
        scheduled: false,
        after: None,
        waited: Waited::default(),
    };
    (1..=BATCH).map(candidate).collect()
}

fn builder(cloudevents_source: Option<&str>) -> (EnvelopeBuilder, Vec<Message>) {
    let router = Router::new(RoutingRules {
        exchange: "events".to_owned(),
        routing_key: "{aggregate_type}.{event_type}".to_owned(),
        mandatory: true,
        ..RoutingRules::default()
    });
    let options = EnvelopeOptions {
        app_id: "outboxd".to_owned(),
        cloudevents_source: cloudevents_source.map(str::to_owned),
        max_payload_bytes: 1 << 20,
    };
    let messages = (1..=BATCH).map(|id| message(id, BATCH)).collect();
    let router = router.expect("the default rules are routable");
    (EnvelopeBuilder::new(router, options), messages)
}

#[library_benchmark]
#[bench::plain(builder(None))]
#[bench::cloudevents(builder(Some("/shop")))]
fn envelopes((builder, mut messages): (EnvelopeBuilder, Vec<Message>)) -> Vec<Envelope> {
    let built = messages.iter_mut().map(|m| builder.build(m, FRAME_MAX));
    black_box(built.filter_map(Result::ok).collect())
}

// All waves of a batch in which each message is delivered.
#[library_benchmark]
#[bench::a_key_each(claim(BATCH))]
#[bench::ten_keys(claim(10))]
#[bench::hot_key(claim(1))]
fn waves(claim: Claim) -> Vec<Outcome> {
    let mut plan = Plan::new(claim, Ordering::Strict);
    loop {
        let wave = plan.next_wave();
        if wave.is_empty() {
            break;
        }
        for item in wave {
            item.record(Outcome::Sent);
        }
    }
    let items = plan.into_claim().items.into_iter();
    black_box(items.map(|item| item.outcome().clone()).collect())
}

/// All messages are delivered, or every tenth is returned.
fn answers(one_in_ten_fails: bool) -> Vec<Answer> {
    let answer = |id| {
        if one_in_ten_fails && id % 10 == 0 {
            Answer::Unroutable {
                code: 312,
                text: "NO_ROUTE".to_owned(),
            }
        } else {
            Answer::Delivered
        }
    };
    (1..=BATCH).map(answer).collect()
}

#[library_benchmark]
#[bench::delivered(answers(false))]
#[bench::some_returned(answers(true))]
fn decisions(answers: Vec<Answer>) -> Vec<Outcome> {
    let policy = RetryPolicy {
        max_attempts: 20,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(300),
    };
    let mut random = StdRng::seed_from_u64(1);
    let decided = answers
        .iter()
        .map(|answer| outcome::decide(answer, 0, &policy, &mut random));
    black_box(decided.collect())
}

fn claim(keys: i64) -> Claim {
    let lane = |lane| HeldLane {
        lane,
        mark: Mark {
            low_water: 0,
            candidate: None,
        },
        share: BATCH as usize,
    };
    let read = Read {
        candidates: candidates(keys),
        ..Read::default()
    };
    let limits = Limits {
        fresh: BATCH as usize,
        batch_size: BATCH as usize,
        batch_bytes: 16 << 20,
        max_payload_bytes: 8 << 20,
    };
    let snapshot = Snapshot {
        own_tx: 10,
        xmin: 10,
        drawn: 0,
        now_us: 1_700_000_000_123_456,
    };
    let lanes: Vec<HeldLane> = (0..LANES).map(lane).collect();
    Claim::new(&lanes, read, limits, snapshot)
}

fn decided(one_in_ten_fails: bool) -> Claim {
    let mut claim = claim(BATCH);
    let outcomes = decisions_of(&answers(one_in_ten_fails));
    for (item, outcome) in claim.items.iter_mut().zip(outcomes) {
        item.record(outcome);
    }
    claim
}

fn decisions_of(answers: &[Answer]) -> Vec<Outcome> {
    let retry = || Outcome::Retry {
        reason: Reason::Unroutable,
        attempts: 1,
        delay: Duration::from_secs(1),
        error: "312 NO_ROUTE".to_owned(),
    };
    let outcome = |answer: &Answer| match answer {
        Answer::Delivered => Outcome::Sent,
        _ => retry(),
    };
    answers.iter().map(outcome).collect()
}

#[library_benchmark]
#[bench::delivered(decided(false))]
#[bench::some_returned(decided(true))]
fn settlements(claim: Claim) -> Settlement {
    black_box(settlement::settlement(&claim, STRIDE))
}

library_benchmark_group!(
    name = batch,
    benchmarks = [envelopes, waves, decisions, settlements]
);
main!(library_benchmark_groups = batch);
