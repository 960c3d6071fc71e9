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
mod load;
mod long_life;
mod machine;
mod outbox;
mod process;
mod raw;
mod relay;
mod report;
mod run;
mod shapes;
mod sizes;
mod stage;
mod statistics;
mod steady;
mod workload;
mod writers;

use clap::Parser;
use test_support::Result;

#[tokio::main]
async fn main() -> Result<()> {
    Box::pin(run::run(&run::Args::parse())).await
}
