//! Every task of this repository, so that nobody needs to remember commands: `cargo xtask --help`.

mod bench;
mod chaos;
mod check;
mod demo;
mod docs;
mod fuzz;
mod layers;
mod links;
mod matrix;
mod model;
mod mutants;
mod named_tests;
mod servers;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

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

/// Runs a command to its end, in sight.
fn command(program: &str, args: &[&str]) -> Result<()> {
    eprintln!("$ {program} {}", args.join(" "));
    let status = std::process::Command::new(program).args(args).status();
    let status = status.map_err(|e| format!("{program}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program} {}: {status}", args.join(" ")).into())
    }
}

/// The relay, where cargo has put it.
fn built(profile: &str) -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    std::path::Path::new(&target).join(profile).join("outboxd")
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
