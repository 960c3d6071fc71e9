//! Every task of this repository, so that nobody needs to remember commands: `cargo xtask --help`.

mod bench;
mod chaos;
mod check;
mod circles;
mod commits;
mod demo;
mod docs;
mod fuzz;
mod layers;
mod lengths;
mod links;
mod matrix;
mod model;
mod mutants;
mod named_tests;
mod servers;
mod shell;
mod syntax;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use shell::{Result, block_on, built, command, output};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The product at work: private servers, two relays, writers, a killed relay, a killed broker, and the proof
    Demo(demo::Args),
    /// All tests, against real servers that it starts itself
    Test(test::Args),
    /// Rows, configuration and broker URIs at their worst, for longer than a test run
    Fuzz(fuzz::Args),
    /// The protocol's state machine, in every state it can reach; and without each of its safeguards
    Model(model::Args),
    /// Breaks the code of crates/core in each place, and asks whether its tests notice
    Mutants(mutants::Args),
    /// Formatting, lints, generated documents, layers, and what else is cheap to check
    Check,
    /// Every fault of the matrix, against real servers and processes, judged from a ledger
    #[command(disable_help_flag = true)]
    Chaos(chaos::Args),
    /// The tests and the crash rows against other versions of PostgreSQL and RabbitMQ, which it fetches
    Matrix(matrix::Args),
    /// Measures the relay beside the raw ceiling of the same servers
    Bench(bench::Args),
    /// Writes the generated documents, and builds all of docs/ as a site under target/site
    Docs,
    /// Installs what demo, test and bench need (Debian packages), and nothing that is there already
    Setup,
}

fn main() -> ExitCode {
    // Every path below is relative to the repository.
    if let Err(error) = std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")) {
        eprintln!("xtask: {error}");
        return ExitCode::FAILURE;
    }
    let result = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Model(args) => model::run(&args),
        Task::Mutants(args) => mutants::run(&args),
        Task::Check => check::run(),
        Task::Chaos(args) => chaos::run(&args),
        Task::Matrix(args) => matrix::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Docs => docs::write(),
        Task::Setup => servers::install(servers::Tools::Tests),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            let mut cause = error.source();
            while let Some(next) = cause {
                eprintln!("  because: {next}");
                cause = next.source();
            }
            ExitCode::FAILURE
        }
    }
}
