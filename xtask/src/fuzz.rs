//! `cargo xtask fuzz`: the fuzz targets (tests/fuzz) for longer than a test run.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::Result;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Of an earlier run, to see it again
    #[arg(long)]
    seed: Option<u64>,
}

/// For the build, the corpus, and a round that has begun.
const GRACE: Duration = Duration::from_secs(600);

pub fn run(args: &Args) -> Result<()> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::from_le_bytes(uuid::Uuid::new_v4().into_bytes()[..8].try_into()?),
    };
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
                let where_ = "what failed is in tests/fuzz/corpus/*/found-*.json: look at it, and commit it with its fix";
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
