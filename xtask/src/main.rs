//! Every task of this repository, so that nobody needs to remember commands: `cargo xtask --help`.

mod check;
mod circles;
mod commits;
mod files;
mod fuzz;
mod instructions;
mod layers;
mod lengths;
mod links;
mod matrix;
mod mutants;
mod named_tests;
mod run;
mod shell;
mod site;
mod syntax;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The product at work, with the proof: private servers, two relays, writers, a killed relay, a killed broker
    #[command(disable_help_flag = true)]
    Demo(run::Passed),
    /// All tests, against real servers that it starts itself
    Test(test::Args),
    /// Hostile rows, configurations and broker URIs, for longer than a test run
    Fuzz(fuzz::Args),
    /// The protocol's state machine: every reachable state, with all safeguards and without each of them
    #[command(disable_help_flag = true)]
    Model(run::Passed),
    /// Breaks crates/core in one place at a time, and checks that its tests notice
    Mutants(mutants::Args),
    /// Formatting, lints, generated documents, layers, and other cheap checks
    Check,
    /// Every fault of the matrix, against real servers and processes; a checker judges the results from a ledger
    #[command(disable_help_flag = true)]
    Chaos(run::Passed),
    /// The tests and the crash rows against other versions of PostgreSQL and RabbitMQ, which it fetches
    Matrix(matrix::Args),
    /// Measures the relay beside the raw ceiling of the same servers
    #[command(disable_help_flag = true)]
    Bench(run::Bench),
    /// Writes the generated documents, and builds all of docs/ as a site under target/site
    Docs,
    /// Installs the packages (Debian) that demo, test and bench need, if they are missing
    Setup,
}

fn main() -> ExitCode {
    // Every path in this program is relative to the repository.
    if let Err(error) = std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")) {
        eprintln!("xtask: {error}");
        return ExitCode::FAILURE;
    }
    let result = match Cli::parse().task {
        Task::Demo(args) => run::demo(&args),
        Task::Test(args) => test::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Model(args) => run::model(&args),
        Task::Mutants(args) => mutants::run(&args),
        Task::Check => check::run(),
        Task::Chaos(args) => run::chaos(&args),
        Task::Matrix(args) => matrix::run(&args),
        Task::Bench(args) => run::bench(&args),
        Task::Docs => run::write_docs(),
        Task::Setup => programs::install(programs::Tools::Tests),
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
