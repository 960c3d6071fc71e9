//! Tasks that run in separate programs. xtask compiles in seconds, because it needs neither the relay nor the clients
//! of its servers.

use programs::{Result, Tools, install};

use crate::{
    instructions,
    shell::{built, command},
    site,
};

/// Arguments for the task's program.
#[derive(clap::Args)]
pub struct Passed {
    /// Passed on; `--help` shows the options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn demo(passed: &Passed) -> Result<()> {
    install(Tools::None)?;
    eprintln!("compiling the relay and the demo; the first time, this takes minutes");
    // Without jemalloc: its C code takes long to compile, and the demo measures no speed.
    build(
        "dev",
        &["-p", "outboxd", "-p", "demo", "--no-default-features"],
    )?;
    start("dev", "demo", passed)
}

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    passed: Passed,
}

#[derive(clap::Subcommand)]
enum Other {
    /// Instructions of the hot functions, counted by Valgrind and compared with benches/limits.toml
    Instructions(instructions::Args),
}

pub fn bench(args: &Bench) -> Result<()> {
    if let Some(Other::Instructions(args)) = &args.other {
        return instructions::run(args);
    }
    install(Tools::None)?;
    // The publisher that the relay is compared with must be optimised too.
    build("release", &["-p", "outboxd", "-p", "bench"])?;
    start("release", "bench", &args.passed)
}

pub fn chaos(passed: &Passed) -> Result<()> {
    install(Tools::Tests)?;
    if let Err(error) = install(Tools::Chaos) {
        eprintln!("some rows will be skipped: {error}");
    }
    // Long runs need a release build: at their rates and sizes, a debug build would dominate the results.
    let lasts = |word: &String| word == "--long" || word.starts_with("--minutes");
    let profile = if passed.args.iter().any(lasts) {
        "release"
    } else {
        "dev"
    };
    build(
        profile,
        &[
            "-p",
            "outboxd",
            "-p",
            "chaos",
            "--features",
            "outboxd/failpoints",
        ],
    )?;
    start(profile, "chaos", passed)
}

pub fn model(passed: &Passed) -> Result<()> {
    build("dev", &["-p", "model"])?;
    start("dev", "model", passed)
}

pub fn write_docs() -> Result<()> {
    build("dev", &["-p", "reference"])?;
    command(&built("dev", "reference"), &[])?;
    site::build()
}

pub fn generated_documents_are_current() -> Result<()> {
    build("dev", &["-p", "reference"])?;
    command(&built("dev", "reference"), &["--check"])
}

fn build(profile: &str, packages: &[&str]) -> Result<()> {
    let build = ["build", "--locked", "--profile", profile];
    command("cargo", &[&build[..], packages].concat())
}

fn start(profile: &str, program: &str, passed: &Passed) -> Result<()> {
    let args: Vec<&str> = passed.args.iter().map(String::as_str).collect();
    command(&built(profile, program), &args)
}
