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

use clap::{Parser, Subcommand};
use test_support::Result;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask bench",
    args_conflicts_with_subcommands = true,
    after_help = "`cargo xtask bench instructions` counts the instructions of the hot functions."
)]
struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    suite: suite::Choice,
}

#[derive(Subcommand)]
enum Other {
    /// A consumer with the inbox beside the same one without it; what a history of keys weighs, and what pruning costs
    Inbox(inbox::Args),
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    match &args.other {
        Some(Other::Inbox(args)) => Box::pin(inbox::run(args)).await,
        None => Box::pin(suite::run(&args.suite)).await,
    }
}
