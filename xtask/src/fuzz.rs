//! `cargo xtask fuzz`: runs the fuzz targets (tests/fuzz) longer than a test run does.

use std::{
    hash::{BuildHasher, RandomState},
    process::Command,
    time::{Duration, Instant},
};

use programs::Result;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Seed of an earlier run, to repeat it
    #[arg(long)]
    seed: Option<u64>,
}

/// Time for the build, the corpus, and the round in progress at the end.
const GRACE: Duration = Duration::from_secs(600);

pub fn run(args: &Args) -> Result<()> {
    // Each `RandomState` has random keys.
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(()));
    println!("fuzz: {} minutes, --seed {seed}", args.minutes);
    let run = Duration::from_secs(args.minutes * 60);
    let mut targets = Command::new("cargo")
        .args(["test", "--locked", "-p", "outboxd", "--test", "fuzz"])
        .args(["--", "--nocapture"])
        .env("OUTBOXD_FUZZ_SECONDS", run.as_secs().to_string())
        .env("OUTBOXD_FUZZ_SEED", seed.to_string())
        .spawn()?;
    let until = Instant::now() + run + GRACE;
    loop {
        if let Some(status) = targets.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                let where_ = "the failed inputs are in tests/fuzz/corpus/*/found-*.json: inspect them, and commit them with the fix";
                Err(format!("fuzz, seed {seed}: {status}; {where_}").into())
            };
        }
        if Instant::now() > until {
            targets.kill()?;
            targets.wait()?;
            return Err(format!("fuzz, seed {seed}: an input hangs").into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
