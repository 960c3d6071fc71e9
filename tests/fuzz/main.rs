//! What comes from outside, at its worst: rows, configuration, broker URIs. Nothing may panic or hang, what is accepted
//! must be right, and what is refused must be refused for its own reason, without a secret.
//!
//! Each target first replays its corpus (`tests/fuzz/corpus/<target>/`), then draws new inputs. `cargo xtask fuzz` draws
//! for longer. An input that fails is shrunk and written into the corpus, for a person to look at and commit.

mod config;
mod corpus;
mod row;
mod uri;

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseResult, TestError, TestRng, TestRunner},
};
use serde::{Serialize, de::DeserializeOwned};

/// Drawn in an ordinary test run.
const CASES: u32 = 512;
/// One input takes microseconds; this is a loop, or worse than linear. Of this thread's own work, whatever else runs.
const SLOW: Duration = Duration::from_secs(5);

fn fuzz<I>(target: &str, inputs: &impl Strategy<Value = I>, judge: impl Fn(&I) -> TestCaseResult)
where
    I: Debug + Serialize + DeserializeOwned,
{
    let judge = |input: &I| {
        let begun = worked();
        judge(input)?;
        let took = worked() - begun;
        proptest::prop_assert!(took < SLOW, "took {:?}", took);
        Ok(())
    };
    for (path, input) in corpus::read::<I>(target) {
        if let Err(error) = judge(&input) {
            panic!("{}: {error}", path.display());
        }
    }

    let seed = number("OUTBOXD_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("{target}: seed {seed}");
    let until = number("OUTBOXD_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut drawn: u64 = 0;
    for round in 0.. {
        // A runner counts its successes, so each round has one of its own.
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seeded(seed, round));
        let mut runner = TestRunner::new_with_rng(config.clone(), rng);
        match runner.run(inputs, |input| judge(&input)) {
            Ok(()) => drawn += u64::from(CASES),
            Err(TestError::Fail(why, input)) => {
                let path = corpus::write(target, &input);
                panic!(
                    "{target}, seed {seed}: {why}\nwritten to {}\n{input:?}",
                    path.display()
                );
            }
            Err(TestError::Abort(why)) => panic!("{target}, seed {seed}: {why}"),
        }
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
    }
    println!("{target}: {drawn} inputs");
}

/// How long this thread has worked so far.
fn worked() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).unwrap().into()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number")),
    )
}

fn seeded(seed: u64, round: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&round.to_le_bytes());
    bytes
}
