use super::*;

#[expect(
    clippy::disallowed_methods,
    reason = "only now() makes an Instant; the tests move it themselves"
)]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn after_a_failure_the_limit_starts_at_one_and_doubles() {
    let mut caution = Caution::default();
    caution.marked(500, 500);
    assert_eq!(caution.limit(), None);
    caution.failed([]);
    let mut allowed = Vec::new();
    for _ in 0..20 {
        let Some(n) = caution.limit() else { break };
        allowed.push(n);
        caution.marked(n, 500);
    }
    assert_eq!(allowed, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
}

#[test]
fn a_smaller_claim_does_not_raise_the_limit() {
    let mut caution = Caution::default();
    caution.failed([]);
    caution.marked(1, 500);
    caution.marked(1, 500);
    assert_eq!(caution.limit(), Some(2));
    caution.marked(0, 500);
    assert_eq!(caution.limit(), Some(2));
    caution.failed([]);
    assert_eq!(caution.limit(), Some(1));
}

#[test]
fn the_first_batch_of_one_ends_the_caution() {
    let mut caution = Caution::default();
    caution.failed([]);
    caution.marked(1, 1);
    assert_eq!(caution.limit(), None);
}

#[test]
fn a_whole_batch_ends_the_caution() {
    let mut caution = Caution::default();
    caution.failed([]);
    caution.marked(1, 4);
    assert_eq!(caution.limit(), Some(2));
    caution.marked(2, 4);
    assert_eq!(caution.limit(), None, "4 are a batch");
}

fn at(id: i64) -> Position {
    Position { lane: 0, id }
}

#[test]
fn a_published_and_unmarked_message_stays_a_suspect_until_it_is_settled() {
    let mut caution = Caution::default();
    caution.failed([at(1), at(2)]);
    caution.settled([at(7)]);
    caution.marked(1, 1);
    assert_eq!(caution.limit(), None);
    assert!(caution.suspects(at(1)) && caution.suspects(at(2)) && !caution.suspects(at(7)));
    caution.settled([at(1)]);
    assert!(!caution.suspects(at(1)) && caution.suspects(at(2)));
    caution.settled([at(2)]);
    assert!(!caution.suspects(at(2)));
    assert!(caution.order.is_empty());
}

const FILED: Kind = Kind::Filed;
const NEW: Kind = Kind::New { key: None };

fn of_key(key: i64) -> Kind {
    Kind::New { key: Some(key) }
}

/// Half of them are filed.
#[test]
fn a_claim_passes_over_most_of_the_messages_of_its_lanes_that_are_set_aside() {
    let mut caution = Caution::default();
    let rng = &mut rand::rng();
    let mut now = now();
    assert_eq!(
        caution.passed_over(&[0], 500, now, rng),
        PassedOver::default()
    );
    let kind = |id: i64| if id % 2 == 0 { FILED } else { NEW };
    for id in 0..100 {
        caution.set_aside(at(id), kind(id), now);
    }
    caution.set_aside(Position { lane: 1, id: 100 }, NEW, now);
    let mut read = HashSet::new();
    let mut most = 0;
    for claim in 1..=1000 {
        now += Duration::from_millis(1);
        let PassedOver {
            filed, new, lanes, ..
        } = caution.passed_over(&[0], 500, now, rng);
        assert!(filed.iter().all(|id| kind(*id) == FILED) && lanes == [0]);
        assert!(new.iter().all(|id| *id < 100 && kind(*id) == NEW));
        let passed_over: HashSet<i64> = filed.into_iter().chain(new).collect();
        assert!(passed_over.len() >= 100 - READ_AGAIN);
        most = most.max(passed_over.len());
        for id in (0..100).filter(|id| !passed_over.contains(id)) {
            assert!(!caution.set_aside(at(id), kind(id), now));
            read.insert(id);
        }
        assert!(
            claim < 100 || read.len() == 100,
            "each within 100 claims: {}",
            read.len()
        );
    }
    assert_eq!(most, 100, "sometimes none is read");
}

#[test]
fn at_most_half_of_what_a_claim_reads_is_read_again() {
    let mut caution = Caution::default();
    let now = now();
    for id in 0..100 {
        caution.set_aside(at(id), NEW, now);
    }
    for (reads, most) in [(1, 1), (2, 1), (4, 2), (10, 5), (500, READ_AGAIN)] {
        let claims = (0..1000).map(|_| {
            let passed = caution.passed_over(&[0], reads, now, &mut rand::rng());
            100 - passed.new.len()
        });
        let again: HashSet<usize> = claims.collect();
        assert_eq!(again, (0..=most).collect(), "{reads}");
    }
}

#[test]
fn a_key_is_passed_over_as_a_whole_until_its_first_message_has_its_turn() {
    let mut caution = Caution::default();
    let rng = &mut rand::rng();
    let now = now();
    for id in 0..1000 {
        caution.set_aside(at(id), of_key(7), now);
    }
    let mut turns = HashSet::new();
    for _ in 0..1000 {
        let passed = caution.passed_over(&[0], 500, now, rng);
        assert!(passed.new.is_empty() && passed.filed.is_empty());
        let lane: &[Lane] = if passed.keys.is_empty() { &[] } else { &[0] };
        assert_eq!(passed.lanes, lane);
        turns.insert(passed.keys);
    }
    assert_eq!(turns, HashSet::from([vec![], vec![7]]));
}

#[test]
fn a_message_whose_commit_was_refused_waits_until_it_is_filed() {
    let mut caution = Caution::default();
    assert_eq!(caution.uncommitted(at(1)), None);
    caution.failed([at(1)]);
    caution.commit_refused(&[at(1), at(3)], "which?".to_owned());
    assert_eq!(caution.uncommitted(at(1)), None, "it may be the other one");
    caution.commit_refused(&[at(1)], "no".to_owned());
    caution.commit_refused(&[at(2)], "still no".to_owned());
    assert_eq!(caution.uncommitted(at(1)), Some("still no"));
    assert_eq!(caution.refused_commits(), 3);
    caution.settled([at(1)]);
    assert_eq!(caution.uncommitted(at(1)), None);
    assert_eq!(caution.refused_commits(), 3, "it is filed, and not marked");
    caution.marked(1, 500);
    assert_eq!(caution.refused_commits(), 0);
    assert_eq!(caution.uncommitted(at(2)), Some("still no"));
}

#[test]
fn a_message_that_could_not_be_filed_stays_one_until_it_is_settled() {
    let mut caution = Caution::default();
    caution.not_filed([at(1)]);
    assert_eq!(caution.limit(), None);
    caution.failed([at(1), at(2)]);
    assert!(caution.suspects(at(1)) && caution.needs_filing(at(1)));
    assert!(caution.suspects(at(2)) && !caution.needs_filing(at(2)));
    caution.not_filed([at(2)]);
    assert!(caution.needs_filing(at(2)));
    caution.settled([at(1), at(2)]);
    assert!(!caution.suspects(at(1)) && !caution.needs_filing(at(2)));
}

#[test]
fn a_message_is_set_aside_once_and_until_it_is_settled() {
    let mut caution = Caution::default();
    let now = now();
    assert!(!caution.is_aside(at(1)));
    assert!(caution.set_aside(at(1), NEW, now) && !caution.set_aside(at(1), NEW, now));
    assert!(caution.is_aside(at(1)) && !caution.is_aside(at(2)));
    assert!(caution.set_aside(at(2), NEW, now));
    assert_eq!(caution.aside(), 2);
    caution.settled([at(1)]);
    assert_eq!(caution.aside(), 1);
    assert!(caution.set_aside(at(1), NEW, now));
}

#[test]
fn a_message_that_was_not_marked_is_known_until_it_is_settled_or_its_retry_is_long_past() {
    let mut caution = Caution::default();
    let now = now();
    let later = now + Duration::from_secs(5);
    assert!(!caution.some_are_not_marked());
    caution.not_marked([at(1), at(2)], later);
    // An earlier time does not shorten it.
    caution.not_marked([at(2)], now);
    caution.settled([at(1), at(7)]);
    caution.forget(now);
    assert!(caution.some_are_not_marked());
    caution.settled([at(2)]);
    assert!(!caution.some_are_not_marked());
    caution.not_marked([at(3)], later);
    caution.forget(later);
    assert!(!caution.some_are_not_marked());
    caution.set_aside(at(4), NEW, now);
    assert!(caution.some_are_not_marked());
}

/// Another relay settled it, or a person deleted it.
#[test]
fn a_message_that_is_set_aside_and_never_met_again_is_forgotten() {
    let mut caution = Caution::default();
    let rng = &mut rand::rng();
    let began = now();
    caution.set_aside(at(1), NEW, began);
    caution.set_aside(at(2), NEW, began);
    caution.set_aside(Position { lane: 1, id: 3 }, NEW, began);
    let mut now = began;
    while now < began + MET_WITHIN {
        now += Duration::from_secs(1);
        caution.passed_over(&[0], 500, now, rng);
        // Claims read the other, and do not find it.
        caution.set_aside(at(2), NEW, now);
        caution.forget(now);
    }
    assert!(
        !caution.is_aside(Position { lane: 1, id: 3 }),
        "no claim of its lane"
    );
    for _ in 0..60 {
        now += Duration::from_secs(1);
        caution.passed_over(&[0], 500, now, rng);
        caution.set_aside(at(2), NEW, now);
        caution.forget(now);
    }
    assert!(!caution.is_aside(at(1)) && caution.is_aside(at(2)));
}

/// Each has its turn late.
#[test]
fn a_message_that_claims_pass_over_is_not_forgotten() {
    let mut caution = Caution::default();
    let rng = &mut rand::rng();
    let mut now = now();
    for id in 0..2_000 {
        caution.set_aside(at(id), NEW, now);
    }
    for _ in 0..120 {
        now += Duration::from_secs(1);
        let passed: HashSet<i64> = caution
            .passed_over(&[0], 500, now, rng)
            .new
            .into_iter()
            .collect();
        for id in (0..2_000).filter(|id| !passed.contains(id)) {
            caution.set_aside(at(id), NEW, now);
        }
        caution.forget(now);
    }
    assert_eq!(caution.aside(), 2_000);
}

#[test]
fn messages_that_are_set_aside_are_bounded() {
    let mut caution = Caution::default();
    let most = i64::try_from(MOST).unwrap();
    let now = now();
    assert!((0..most).all(|id| caution.set_aside(at(id), NEW, now)));
    assert!(!caution.set_aside(at(most), NEW, now));
    assert_eq!(caution.aside(), MOST);
}

#[test]
fn suspects_are_bounded_and_the_oldest_are_forgotten() {
    let mut caution = Caution::default();
    let most = i64::try_from(MOST).unwrap();
    caution.failed((0..most).map(at));
    assert!(caution.suspects(at(0)));
    caution.failed([at(0), at(most)]);
    assert!(!caution.suspects(at(0)) && caution.suspects(at(1)) && caution.suspects(at(most)));
    assert_eq!(caution.suspects.len(), MOST);
    assert_eq!(caution.order.len(), MOST);
}

#[test]
fn messages_whose_commit_was_refused_are_bounded() {
    let mut caution = Caution::default();
    let most = i64::try_from(MOST).unwrap();
    for id in 0..=most {
        caution.commit_refused(&[at(id)], String::new());
    }
    assert!(caution.uncommitted(at(most - 1)).is_some());
    assert_eq!(caution.uncommitted(at(most)), None);
}

#[test]
fn messages_that_were_not_marked_are_bounded() {
    let mut caution = Caution::default();
    let most = i64::try_from(MOST).unwrap();
    caution.not_marked((0..=most).map(at), now() + Duration::from_secs(5));
    caution.settled((0..most).map(at));
    assert!(!caution.some_are_not_marked(), "the last one is not kept");
}
