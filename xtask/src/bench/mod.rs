//! `cargo xtask bench`: each number beside the raw ceiling of the same servers in the same run.

mod budget;
mod consumers;
mod costs;
mod document;
mod drain;
mod flow;
mod growth;
mod idle;
mod inbox;
mod instructions;
mod load;
mod long_life;
mod machine;
mod outbox;
mod plot;
mod process;
mod raw;
mod report;
mod shapes;
mod sizes;
mod stage;
mod steady;
mod suite;
mod writers;

use clap::Subcommand;

use crate::{Result, block_on, command, servers};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    suite: suite::Choice,
}

#[derive(Subcommand)]
enum Other {
    /// A consumer with the inbox beside the same one without it; what a history of keys weighs, and what pruning costs
    Inbox(inbox::Args),
    /// Instructions of the hot functions, counted by Valgrind and compared with benches/limits.toml
    Instructions(instructions::Args),
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(Other::Instructions(args)) = &args.other {
        return instructions::run(args);
    }
    servers::install(servers::Tools::None)?;
    command(
        "cargo",
        &["build", "--quiet", "--release", "--locked", "-p", "outboxd"],
    )?;
    // The publisher it is compared with must be optimised as well.
    if cfg!(debug_assertions) {
        let mut words = vec![
            "run",
            "--quiet",
            "--release",
            "--locked",
            "-p",
            "xtask",
            "--",
        ];
        let args: Vec<String> = std::env::args().skip(1).collect();
        words.extend(args.iter().map(String::as_str));
        return command("cargo", &words);
    }
    block_on(async {
        match &args.other {
            Some(Other::Inbox(args)) => Box::pin(inbox::run(args)).await,
            Some(Other::Instructions(_)) | None => Box::pin(suite::run(&args.suite)).await,
        }
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of one number of several runs.
fn median_of<T>(runs: &[T], pick: impl Fn(&T) -> f64) -> f64 {
    median(runs.iter().map(pick).collect())
}

/// `p` between 0 and 1.
fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values
        .get((last * p).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Also for machines: target/bench/NAME.json.
fn save(name: &str, report: &serde_json::Value) -> Result<()> {
    std::fs::create_dir_all("target/bench")?;
    let file = format!("target/bench/{name}.json");
    std::fs::write(&file, serde_json::to_vec_pretty(report)?)?;
    eprintln!("\nwritten to {file}");
    Ok(())
}
