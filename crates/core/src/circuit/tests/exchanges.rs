//! The circuits of an exchange.

use super::{exchange::MANY, *};

const MANY_I: i64 = MANY as i64;
/// It was not tried.
const OTHER: Destination = Destination(100_000);
const NACKED: Reason = Reason::Nacked;

fn spread() -> Spread {
    Spread::of(to(HERE))
}

fn destinations(these: impl IntoIterator<Item = i64>) -> Vec<Destination> {
    these.into_iter().map(Destination).collect()
}

fn failing(these: impl IntoIterator<Item = i64>, reason: Reason) -> Spread {
    Spread {
        failed: destinations(these),
        why: Some(why(reason)),
        ..spread()
    }
}

fn taking(these: impl IntoIterator<Item = i64>) -> Spread {
    Spread {
        delivered: destinations(these),
        ..spread()
    }
}

impl World {
    fn spread(&mut self, spread: &Spread) -> Option<Held> {
        let (now, rng) = (self.now, &mut self.rng);
        self.circuits.report_exchange(spread, now, rng)
    }

    fn fail_all(&mut self, these: impl IntoIterator<Item = i64>) -> Option<Held> {
        self.spread(&failing(these, NACKED))
    }

    fn deliver(&mut self, these: impl IntoIterator<Item = i64>) {
        let held = self.spread(&taking(these));
        assert_eq!(held.is_some(), self.circuits.is_open(EXCHANGE));
    }

    /// A message that was held for the exchange is delivered.
    fn deliver_held(&mut self, n: i64) {
        let held = self.spread(&Spread {
            had_been_held: true,
            ..taking([n])
        });
        assert_eq!(held, None);
    }

    /// Many destinations fail and none works: both circuits are open.
    fn all_fail(reason: Reason) -> Self {
        let mut world = Self::new();
        assert_eq!(world.spread(&failing(1..MANY_I, reason)), None);
        let held = world.spread(&failing([MANY_I], reason)).unwrap();
        assert_eq!(held.destination, EXCHANGE);
        assert!(world.circuits.is_open(EXCHANGE) && world.circuits.is_open(UNTRIED));
        world
    }

    /// Many destinations fail and as many work.
    fn half_fail() -> Self {
        let mut world = Self::new();
        world.fail_all([1]);
        world.deliver(1001..=1000 + MANY_I);
        assert!(world.fail_all(1..=MANY_I).is_some());
        assert!(!world.circuits.is_open(UNTRIED));
        world
    }

    fn retries(&mut self, n: i64) -> bool {
        self.goes_to(Destination(n), Arrival::Again(Some(EXCHANGE)))
    }
}

#[test]
fn an_exchange_opens_when_many_destinations_fail_in_the_same_way() {
    World::all_fail(NACKED);
    World::all_fail(Reason::ExchangeMissing);
    World::half_fail();
    // The same destination counts once.
    let mut world = World::new();
    for _ in 0..10 {
        assert_eq!(world.fail_all(1..MANY_I), None);
    }
    // Another cause is not the same.
    let other = failing([MANY_I], Reason::ExchangeMissing);
    assert_eq!(world.spread(&other), None);
    // A destination that works again does not count.
    let mut world = World::new();
    world.fail_all(1..MANY_I);
    world.deliver([1]);
    assert_eq!(world.fail_all([MANY_I]), None);
}

#[test]
fn untried_destinations_wait_only_while_hardly_any_works() {
    // Nineteen fail, and one works, or two.
    for (works, waits) in [(1, true), (2, false)] {
        let mut world = World::new();
        world.fail_all([1]);
        world.deliver(1001..1001 + works);
        world.fail_all(2..=19);
        assert!(world.circuits.is_open(EXCHANGE));
        assert_eq!(!world.goes_to(OTHER, Arrival::New), waits, "{works}");
    }
}

#[test]
fn failures_that_are_far_apart_open_no_exchange() {
    let window = 2 * POLICY.backoff_max;
    let mut world = World::new();
    world.fail_all(1..MANY_I);
    world.now += window;
    assert_eq!(world.fail_all([1]), None);
    world.now += window + Duration::from_millis(1);
    assert_eq!(world.fail_all([MANY_I]), None);
    assert!(world.fail_all(1..MANY_I).is_some());
}

#[test]
fn a_message_that_failed_is_tried_again_only_as_a_probe() {
    for mut world in [World::all_fail(NACKED), World::half_fail()] {
        let mut again = 0;
        for _ in 0..1000 {
            world.now += Duration::from_millis(100);
            for n in 1..=MANY_I {
                if world.retries(n) {
                    again += 1;
                    assert!(world.fail_all([n]).is_some());
                }
            }
        }
        assert!((5..=40).contains(&again), "{again} in 100 s");
    }
}

#[test]
fn one_untried_destination_a_second_is_tried() {
    let mut world = World::all_fail(NACKED);
    let mut new = 0;
    for n in 0..1000 {
        world.now += Duration::from_millis(100);
        if world.goes_to(Destination(10_000 + n), Arrival::New) {
            new += 1;
            world.fail_all([10_000 + n]);
        }
    }
    assert!((90..=140).contains(&new), "{new} in 100 s");
}

#[test]
fn one_success_opens_the_way_for_the_untried_and_not_for_those_that_failed() {
    let mut world = World::all_fail(NACKED);
    assert!(!world.goes_to(OTHER, Arrival::New));
    world.deliver([200]);
    assert_eq!(
        world.circuits.releases(usize::MAX),
        [Task::ReleaseNewest(UNTRIED, 1)]
    );
    assert!(world.goes_to(OTHER, Arrival::New));
    assert!(!world.retries(1));
    // Those fail: the way closes.
    world.fail_all(301..=300 + MANY_I - 1);
    assert!(world.goes_to(OTHER, Arrival::New));
    world.fail_all([400]);
    assert!(!world.goes_to(OTHER, Arrival::New));
    // Their messages that were held and are delivered open it, too.
    world.deliver_held(500);
    assert!(!world.circuits.is_open(UNTRIED));
}

#[test]
fn a_destination_that_works_stays_out_until_it_fails() {
    let mut world = World::all_fail(NACKED);
    world.deliver([OTHER.0]);
    world.fail_all(300..400);
    assert!(world.circuits.is_open(UNTRIED));
    for _ in 0..100 {
        assert!(world.goes_to(OTHER, Arrival::New));
        world.deliver([OTHER.0]);
        assert!(world.circuits.is_open(UNTRIED), "its success is no news");
    }
    world.fail_all([OTHER.0]);
    assert!(!world.goes_to(OTHER, Arrival::New));
}

#[test]
fn a_destination_that_begins_to_work_brings_the_next_probe_forward() {
    let mut world = World::half_fail();
    for _ in 0..8 {
        world.now += POLICY.backoff_max;
        assert!(world.retries(1));
        world.fail_all([1]);
    }
    world.now += POLICY.backoff_initial / 2;
    world.deliver([2001]);
    assert!(!world.retries(1), "not at once");
    world.now += POLICY.backoff_initial / 2;
    assert!(world.retries(1));
    world.fail_all([1]);
    world.now += POLICY.backoff_initial;
    world.deliver([2001]);
    assert!(!world.retries(1), "its next success is no news");
}

#[test]
fn a_probe_that_succeeds_releases_the_others_in_windows_that_double() {
    let mut world = World::half_fail();
    world.deliver_held(1);
    assert!(world.retries(2));
    for window in [1, 2, 4, 8] {
        assert_eq!(
            world.circuits.releases(usize::MAX),
            [Task::Release(EXCHANGE, window)]
        );
        world.circuits.released(EXCHANGE, window, window);
    }
    world.circuits.released(EXCHANGE, 16, 3);
    assert!(world.circuits.is_empty());
}

#[test]
fn a_drain_whose_messages_mostly_fail_ends() {
    let mut world = World::half_fail();
    world.deliver_held(1);
    assert_eq!(world.fail_all([2, 3]), None);
    assert!(world.fail_all([4]).is_some(), "one works and three fail");
    assert!(!world.retries(4));
    world.deliver_held(1);
    world.deliver(5..=8);
    assert_eq!(world.fail_all(9..=20), None, "four work, twelve fail");
    assert!(world.fail_all([21, 22, 23]).is_some());
    assert!(world.goes_to(Destination(8), Arrival::New), "it stays out");
}

#[test]
fn the_second_message_of_a_destination_gets_it_a_circuit_that_takes_turns() {
    let mut world = World::half_fail();
    for n in 1..=3 {
        assert!(!world.goes_to(Destination(n), Arrival::New));
        assert!(!world.goes_to(Destination(n), Arrival::New));
        assert!(world.circuits.is_open(Destination(n)));
    }
    let mut turns = Vec::new();
    for _ in 0..100 {
        world.now += Duration::from_millis(100);
        for task in world.tasks() {
            match task {
                Task::Probe(EXCHANGE, _) | Task::ProbeNewest(_) => {}
                Task::Probe(destination, _) => turns.push(destination.0),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((8..=11).contains(&turns.len()), "one a second: {turns:?}");
    turns.truncate(3);
    turns.sort_unstable();
    assert_eq!(turns, [1, 2, 3]);
    // The probe goes out, and its success drains this destination alone.
    let here = Destination(1);
    assert!(!world.goes_to(here, Arrival::Again(Some(here))));
    assert!(world.goes_to(here, Arrival::Probe(Some(here))));
    let (now, rng) = (world.now, &mut world.rng);
    world.circuits.report(here, &delivered(), now, rng);
    world.deliver([1]);
    assert_eq!(
        world.circuits.releases(usize::MAX),
        [Task::Release(here, 1)]
    );
    assert!(world.goes_to(here, Arrival::New) && !world.retries(2));
}

#[test]
fn without_a_circuit_of_the_exchange_no_destination_rests() {
    let mut world = World::half_fail();
    for n in 1..=3 {
        assert!(!world.goes_to(Destination(n), Arrival::New));
    }
    world.deliver_held(9);
    world.now += POLICY.backoff_max;
    let probes = |tasks: &[Task]| {
        let is_probe = |task: &&Task| matches!(task, Task::Probe(..));
        tasks.iter().filter(is_probe).count()
    };
    assert_eq!(probes(&world.tasks()), 1, "the exchange drains");
    world.circuits.released(EXCHANGE, 1, 0);
    world.now += POLICY.backoff_max;
    assert_eq!(probes(&world.tasks()), 3);
}

#[test]
fn messages_that_another_relay_held_for_an_exchange_are_probed() {
    for here in [EXCHANGE, UNTRIED] {
        let mut world = World::new();
        let by_another = Held {
            destination: here,
            failures: 4,
            why: why(NACKED),
        };
        world
            .circuits
            .found(by_another.clone(), world.now, &mut world.rng);
        let again = Arrival::Again(Some(here));
        let held = world
            .circuits
            .admit(to(HERE), again, world.now, &mut world.rng);
        assert_eq!(held, Admission::Hold(by_another));
        assert!(world.goes_to(HERE, Arrival::Probe(Some(here))));
        world.deliver([200]);
        assert!(world.goes_to(Destination(200), Arrival::New));
    }
    // It knows no other destination, so one failure is enough.
    let mut world = World::new();
    world.deliver_held(1);
    assert_eq!(
        world.circuits.releases(usize::MAX),
        [Task::Release(EXCHANGE, 1)]
    );
    assert!(world.fail_all([2]).is_some());
}

#[test]
fn a_missing_exchange_gives_its_messages_up_and_a_nack_never_does() {
    for (reason, gives_up) in [(Reason::ExchangeMissing, true), (NACKED, false)] {
        let mut world = World::all_fail(reason);
        world.now += POLICY.backoff_max;
        world.tasks();
        assert!(world.goes_to(OTHER, Arrival::Last));
        assert!(world.goes_to(Destination(1), Arrival::Probe(Some(EXCHANGE))));
        let held = world.spread(&failing([1], reason)).unwrap();
        assert_eq!(held.failures, 1);
        let tasks = world.tasks();
        assert_eq!(tasks.contains(&Task::GiveUp(EXCHANGE, 1)), gives_up);
    }
    assert!(!why(Reason::Unroutable).is_shared());
}

#[test]
fn the_number_of_remembered_destinations_is_bounded() {
    const TOO_MANY: i64 = 2 * exchange::REMEMBERED as i64;
    let mut world = World::all_fail(NACKED);
    world.fail_all(0..TOO_MANY);
    world.deliver(100_000..100_000 + TOO_MANY);
    let known = &world.circuits.exchanges[&EXCHANGE];
    let works = (100_000..100_000 + TOO_MANY).filter(|n| known.works(Destination(*n)));
    let fails = (0..TOO_MANY).filter(|n| known.fails(Destination(*n)));
    let remembered = (works.count(), fails.count());
    assert_eq!(remembered, (exchange::REMEMBERED, exchange::REMEMBERED));
    for n in 0..2 * EXCHANGES as i64 {
        let exchange = Destination(n);
        world.spread(&Spread {
            exchange,
            ..failing([1], NACKED)
        });
    }
    assert_eq!(world.circuits.exchanges.len(), EXCHANGES);
    // They are forgotten, unless their circuits are open.
    world.now += 2 * POLICY.backoff_max + Duration::from_millis(1);
    world.deliver([1]);
    assert_eq!(world.circuits.exchanges.len(), 1);
}

#[test]
fn without_room_no_circuit_of_an_exchange_opens() {
    let mut world = World::new();
    for n in 0..MOST as i64 {
        let held = Held {
            destination: Destination(1_000_000 + n),
            failures: 0,
            why: why(NACKED),
        };
        world.circuits.found(held, world.now, &mut world.rng);
    }
    assert_eq!(world.fail_all(1..=MANY_I), None);
    world.deliver_held(1);
    assert!(!world.circuits.states.contains_key(&EXCHANGE));
    assert!(!world.circuits.states.contains_key(&UNTRIED));
}

#[test]
fn an_exchange_and_its_routing_keys_have_different_numbers() {
    let own = [Destination::exchange("e"), Destination::untried("e")];
    assert_ne!(own[0], own[1]);
    for key in ["", "e", "#"] {
        assert!(!own.contains(&Destination::of("e", key)));
    }
    assert_ne!(Destination::exchange("other"), own[0]);
    let to = Target::of("e", "k");
    assert_eq!([to.exchange, to.untried], own);
    assert_eq!(to.destination, Destination::of("e", "k"));
}
