use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{message::Position, reason::Reason};

mod exchanges;

const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: 20,
    backoff_initial: Duration::from_secs(1),
    backoff_max: Duration::from_secs(300),
};
const HERE: Destination = Destination(7);
const EXCHANGE: Destination = Destination(-7);
const UNTRIED: Destination = Destination(-8);

fn to(destination: Destination) -> Target {
    Target {
        destination,
        exchange: EXCHANGE,
        untried: UNTRIED,
    }
}

fn position(id: i64) -> Position {
    Position { lane: 0, id }
}

fn why(reason: Reason) -> Why {
    Why {
        reason,
        error: String::new(),
    }
}

fn failed(count: usize, first: i64, reason: Reason) -> Tally {
    Tally {
        failed: Some((count, position(first), why(reason))),
        ..Tally::default()
    }
}

fn delivered() -> Tally {
    Tally {
        delivered: 1,
        ..Tally::default()
    }
}

struct World {
    circuits: Circuits,
    now: Instant,
    rng: StdRng,
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "only now() makes an Instant; the tests move it themselves"
    )]
    fn new() -> Self {
        Self {
            circuits: Circuits::new(POLICY),
            now: Instant::now(),
            rng: StdRng::seed_from_u64(1),
        }
    }

    fn open(reason: Reason) -> Self {
        let mut world = Self::new();
        assert!(world.report(&failed(2, 1, reason)).is_some());
        world
    }

    fn report(&mut self, tally: &Tally) -> Option<Held> {
        self.circuits.report(HERE, tally, self.now, &mut self.rng)
    }

    fn report_to(&mut self, destination: Destination, tally: &Tally) {
        let (now, rng) = (self.now, &mut self.rng);
        self.circuits.report(destination, tally, now, rng);
    }

    /// Another relay has held messages here.
    fn found(&mut self, destination: Destination, failures: u32, reason: Reason) -> Held {
        let why = why(reason);
        let held = Held {
            destination,
            failures,
            why,
        };
        self.circuits.found(held.clone(), self.now, &mut self.rng);
        held
    }

    fn goes(&mut self, arrival: Arrival) -> bool {
        self.goes_to(HERE, arrival)
    }

    fn goes_to(&mut self, destination: Destination, arrival: Arrival) -> bool {
        let (now, rng) = (self.now, &mut self.rng);
        self.circuits.admit(to(destination), arrival, now, rng) == Admission::Publish
    }

    fn tasks(&mut self) -> Vec<Task> {
        self.circuits.tasks(self.now, &mut self.rng)
    }

    /// Lets the back-off elapse, and fails the probe.
    fn fail_a_probe(&mut self, reason: Reason) {
        self.now += POLICY.backoff_max;
        assert!(matches!(
            self.tasks()[..],
            [Task::Probe(..)] | [Task::GiveUp(..), Task::Probe(..)]
        ));
        assert!(self.goes(Arrival::Probe(None)));
        assert!(self.report(&failed(1, 9, reason)).is_some());
    }
}

#[test]
fn one_failing_message_holds_no_other() {
    let mut world = World::new();
    for _ in 0..10 {
        assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
        assert!(world.goes(Arrival::New));
    }
    assert!(world.report(&failed(1, 6, Reason::Unroutable)).is_some());
    assert!(!world.goes(Arrival::New));
}

#[test]
fn failures_among_successes_hold_no_message() {
    let mut world = World::new();
    for id in 0..100 {
        assert_eq!(world.report(&failed(1, id, Reason::Unroutable)), None);
        assert_eq!(world.report(&delivered()), None);
        let mixed = Tally {
            delivered: 1,
            ..failed(50, id, Reason::Unroutable)
        };
        assert_eq!(world.report(&mixed), None);
    }
    assert!(world.circuits.is_empty());
}

#[test]
fn an_open_circuit_admits_a_probe_in_each_back_off_and_a_new_message_a_second() {
    let mut world = World::open(Reason::Nacked);
    let mut again = 0;
    let mut new = 0;
    for _ in 0..1000 {
        world.now += Duration::from_millis(100);
        if world.goes(Arrival::Again(None)) {
            again += 1;
            world.report(&failed(1, 9, Reason::Nacked));
        }
        new += u32::from(world.goes(Arrival::New));
    }
    assert!((5..=40).contains(&again), "{again} in 100 s");
    assert!((90..=140).contains(&new), "{new} in 100 s");
}

#[test]
fn a_success_releases_held_messages_in_windows_that_double() {
    let mut world = World::open(Reason::Unroutable);
    world.report(&delivered());
    assert!(world.goes(Arrival::New));
    for window in [1, 2, 4, 8] {
        assert_eq!(
            world.circuits.releases(usize::MAX),
            [Task::Release(HERE, window)]
        );
        world.circuits.released(HERE, window, window);
    }
    assert!(world.report(&failed(1, 3, Reason::Nacked)).is_some());
    assert!(!world.goes(Arrival::Again(None)), "it fails again");
    world.report(&delivered());
    world.circuits.released(HERE, 1, 0);
    assert!(world.circuits.is_empty());
}

#[test]
fn failed_probes_count_and_a_nack_never_gives_up() {
    let mut world = World::open(Reason::Unroutable);
    world.fail_a_probe(Reason::Unroutable);
    world.fail_a_probe(Reason::Unroutable);
    assert_eq!(world.tasks(), [Task::GiveUp(HERE, 2)]);
    let mut world = World::open(Reason::Nacked);
    world.fail_a_probe(Reason::Nacked);
    world.fail_a_probe(Reason::Nacked);
    assert_eq!(world.tasks(), []);
}

/// No message was made due, so no answer of it comes.
#[test]
fn a_probe_that_was_refused_is_due_again_and_has_not_failed() {
    let mut world = World::open(Reason::Unroutable);
    world.now += POLICY.backoff_max;
    let [task] = &world.tasks()[..] else {
        panic!("one probe is due")
    };
    let again = world.now + POLICY.backoff_initial;
    world.circuits.put_back(task, again);
    let held = world.report(&failed(1, 7, Reason::Unroutable)).unwrap();
    assert_eq!(held.failures, 0, "a new message failed, and no probe");
    assert_eq!(world.tasks(), []);
    world.now = again;
    assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
    world.circuits.probed(HERE, None, world.now);
    assert!(world.circuits.is_empty(), "no message is held any more");
}

#[test]
fn a_refused_probe_forgets_no_earlier_one() {
    let mut world = World::open(Reason::Unroutable);
    world.now += POLICY.backoff_max;
    world.tasks();
    world.circuits.probed(HERE, Some(4), world.now);
    world.now += POLICY.backoff_max;
    let [task] = &world.tasks()[..] else {
        panic!("one probe is due")
    };
    world.circuits.put_back(task, world.now);
    let held = world.report(&failed(1, 4, Reason::Unroutable)).unwrap();
    assert_eq!(held.failures, 1);
}

#[test]
fn probes_take_turns_and_end_with_the_last_held_message() {
    let mut world = World::open(Reason::Unroutable);
    world.now += POLICY.backoff_initial;
    assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
    world.circuits.probed(HERE, Some(4), world.now);
    world.now += POLICY.backoff_max;
    assert_eq!(world.tasks(), [Task::Probe(HERE, 4)]);
    world.circuits.probed(HERE, None, world.now);
    assert!(!world.circuits.is_empty(), "the first has no answer yet");
    world.now += ANSWER;
    world.circuits.probed(HERE, None, world.now);
    assert!(world.circuits.is_empty());
}

#[test]
fn held_messages_of_another_relay_are_probed() {
    let mut world = World::new();
    world.found(HERE, 4, Reason::Nacked);
    world.now += POLICY.backoff_initial;
    assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
    let held = Tally {
        had_been_held: true,
        ..delivered()
    };
    let mut other = World::new();
    other.report(&held);
    assert_eq!(
        other.circuits.releases(usize::MAX),
        [Task::Release(HERE, 1)]
    );
}

#[test]
fn held_messages_are_probed_even_if_only_one_message_failed_last() {
    let mut world = World::new();
    assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
    world.found(HERE, 2, Reason::Unroutable);
    world.now += POLICY.backoff_max;
    assert_eq!(world.tasks(), [Task::Probe(HERE, i64::MIN)]);
}

#[test]
fn the_number_of_watched_destinations_is_bounded() {
    let mut world = World::new();
    for n in 0..2 * MOST as i64 + 100 {
        let tally = failed(1 + (n % 2) as usize, n, Reason::Unroutable);
        world.report_to(Destination(n), &tally);
        assert!(world.circuits.states.len() <= MOST);
    }
    let first_open = Destination(1);
    assert!(
        world.circuits.is_open(first_open),
        "an open circuit is not dropped for a single failure"
    );
    // There is no room, neither for a destination with messages that another relay held, nor for one that recovers.
    let unknown = Destination(-1);
    while world.circuits.has_room() {
        let n = world.circuits.states.len() as i64;
        let full = failed(2, n, Reason::Unroutable);
        world.report_to(Destination(1_000_000 + n), &full);
    }
    world.found(unknown, 0, Reason::Nacked);
    let released = Tally {
        had_been_held: true,
        ..delivered()
    };
    world.report_to(unknown, &released);
    assert!(!world.circuits.states.contains_key(&unknown));
}

#[test]
fn two_failures_in_one_wave_open_a_failing_circuit() {
    let mut world = World::new();
    assert_eq!(world.report(&failed(1, 5, Reason::Unroutable)), None);
    assert_eq!(
        world.circuits.open(),
        0,
        "one failed message does not open a circuit"
    );
    assert!(!world.circuits.is_open(HERE));
    assert!(world.report(&failed(2, 5, Reason::Unroutable)).is_some());
    assert_eq!(world.circuits.open(), 1);
    assert!(world.circuits.is_open(HERE));
}

#[test]
fn a_last_attempt_is_published_and_is_not_a_probe() {
    let mut world = World::open(Reason::Unroutable);
    assert!(!world.goes(Arrival::Again(None)));
    assert!(world.goes(Arrival::Last));
    let held = world.report(&failed(1, 9, Reason::Unroutable)).unwrap();
    assert_eq!(held.failures, 0);
}

#[test]
fn a_held_message_records_the_earlier_failed_probes() {
    let mut world = World::new();
    let by_another = world.found(HERE, 4, Reason::Unroutable);
    let admission = world
        .circuits
        .admit(to(HERE), Arrival::Again(None), world.now, &mut world.rng);
    assert_eq!(admission, Admission::Hold(by_another));
    world.fail_a_probe(Reason::Unroutable);
    assert_eq!(world.tasks(), [Task::GiveUp(HERE, 5)]);
    assert_eq!(world.tasks(), [], "once for each failed probe");
}

proptest! {
    #[test]
    fn two_destinations_have_two_numbers(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
        prop_assert_eq!(Destination::of(&a, &b) == Destination::of(&c, &d), (&a, &b) == (&c, &d));
    }
}

#[test]
fn a_claim_releases_for_a_few_destinations_and_all_take_turns() {
    let mut world = World::new();
    let destinations: Vec<i64> = vec![i64::MIN, -7, 0, 3, 40, 500, i64::MAX];
    let mut tally = failed(2, 1, Reason::Unroutable);
    tally.failed = None;
    tally.delivered = 1;
    tally.had_been_held = true;
    for destination in &destinations {
        world.report_to(Destination(*destination), &tally);
    }
    let mut released = Vec::new();
    for _ in 0..destinations.len() {
        let tasks = world.circuits.releases(2);
        assert_eq!(tasks.len(), 2);
        released.extend(tasks.iter().map(|task| match task {
            Task::Release(Destination(destination), 1) => *destination,
            other => panic!("{other:?}"),
        }));
    }
    released.sort_unstable();
    let twice: Vec<i64> = destinations.iter().flat_map(|d| [*d, *d]).collect();
    assert_eq!(released, twice);
    assert_eq!(world.circuits.releases(7).len(), 7);
}

#[test]
fn a_task_that_was_not_done_stays_due() {
    let mut world = World::open(Reason::Unroutable);
    world.fail_a_probe(Reason::Unroutable);
    world.now += POLICY.backoff_max;
    let tasks = world.tasks();
    assert!(
        matches!(tasks[..], [Task::GiveUp(..), Task::Probe(..)]),
        "{tasks:?}"
    );
    assert_eq!(world.tasks(), [], "none is due twice");
    let again = world.now + POLICY.backoff_initial;
    for task in &tasks {
        world.circuits.put_back(task, again);
    }
    assert!(matches!(world.tasks()[..], [Task::GiveUp(..)]));
    world.now = again;
    assert!(matches!(world.tasks()[..], [Task::Probe(..)]));
    world.circuits.put_back(&Task::Release(HERE, 1), again);
    assert_eq!(world.tasks(), []);
}
