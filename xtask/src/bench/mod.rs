//! `cargo xtask bench`: each number beside the raw ceiling of the same servers in the same run.

mod consumers;
mod growth;
mod inbox;
mod latency;
mod load;
mod memory;
mod raw;
mod relay;
mod stage;

use clap::Subcommand;

use crate::{Result, block_on, command, servers};

#[derive(Subcommand)]
pub enum Command {
    /// Drains a backlog, beside raw confirmed publishes of the same messages to the same kind of queue
    Relay(relay::Args),
    /// One event at a time on an idle system: commit to consumer, beside publish to consumer
    Latency(latency::Args),
    /// Peak memory of the relay for a small and a large backlog
    Memory(memory::Args),
    /// A consumer with the inbox beside the same one without it; what a history of keys weighs, and what pruning costs
    Inbox(inbox::Args),
}

pub fn run(bench: &Command) -> Result<()> {
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
        match bench {
            Command::Relay(args) => relay::run(args).await,
            Command::Latency(args) => latency::run(args).await,
            Command::Memory(args) => memory::run(args).await,
            Command::Inbox(args) => inbox::run(args).await,
        }
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
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
    println!("\nwritten to {file}");
    Ok(())
}
