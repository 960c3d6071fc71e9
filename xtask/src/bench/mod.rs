//! `cargo xtask bench`: each number beside the raw ceiling of the same servers in the same run.

mod budget;
mod consumers;
mod costs;
mod curve;
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
mod relay;
mod report;
mod shapes;
mod sizes;
mod stage;
mod statistics;
mod steady;
mod suite;
mod workload;
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
