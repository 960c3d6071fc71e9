//! `cargo xtask bench instructions`: counts the instructions of the hot functions instead of their time, so that a
//! slower function shows on any machine, even a busy one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use programs::{Result, Tools, install};
use serde::{Deserialize, Serialize};

use crate::{shell::output, tools};

const FILE: &str = "benches/limits.toml";
/// A count may grow by this factor without a new record.
const TOLERATED: f64 = 1.05;

#[derive(clap::Args)]
pub struct Args {
    /// Rewrites benches/limits.toml: after a change that is worth its instructions, or with another compiler
    #[arg(long)]
    record: bool,
}

/// benches/limits.toml
#[derive(Serialize, Deserialize)]
struct Limits {
    /// Another compiler generates other instructions from the same code.
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

pub fn run(args: &Args) -> Result<()> {
    install(Tools::Instructions)?;
    let rustc = rustc()?;
    let counted = count(&runner()?)?;
    if args.record {
        return record(rustc, counted);
    }
    let text = std::fs::read_to_string(FILE).map_err(|e| format!("{FILE}: {e}; {RECORD}"))?;
    let limits: Limits = toml::from_str(&text).map_err(|e| format!("{FILE}: {e}"))?;
    let mut grown = Vec::new();
    println!("| function, for a batch of 500 | recorded | now | |\n|---|---|---|---|");
    for (name, now) in &counted {
        let Some(recorded) = limits.instructions.get(name) else {
            grown.push(format!("{name} is not in {FILE}"));
            continue;
        };
        let ratio = *now as f64 / *recorded as f64;
        println!(
            "| {name} | {recorded} | {now} | {:+.1} % |",
            (ratio - 1.0) * 100.0
        );
        if ratio > TOLERATED {
            grown.push(format!(
                "{name} takes {now} instructions, {recorded} were recorded"
            ));
        }
    }
    let gone = limits
        .instructions
        .keys()
        .filter(|name| !counted.contains_key(*name));
    grown.extend(gone.map(|name| format!("{name} is in {FILE} but was not counted")));
    if limits.rustc != rustc {
        println!(
            "SKIPPED: the comparison; {FILE} was recorded with {}, this is {rustc}. {RECORD}",
            limits.rustc
        );
        return Ok(());
    }
    if grown.is_empty() {
        Ok(())
    } else {
        Err(format!("{}\nIf the change is worth it: {RECORD}", grown.join("\n")).into())
    }
}

/// Release optimisation for the project's own code, on dependencies that the tests have already built: a release build
/// of everything takes minutes. One codegen unit, so that inlining does not depend on unrelated changes.
const AS_SHIPPED: [&str; 10] = [
    "outbox-core.opt-level=3",
    "outbox-core.codegen-units=1",
    "outbox-core.debug-assertions=false",
    "outbox-core.overflow-checks=false",
    // The benchmarks and the generic functions that are compiled into them.
    "outboxd.opt-level=3",
    "outboxd.codegen-units=1",
    "outboxd.debug-assertions=false",
    "outboxd.overflow-checks=false",
    // These crates do most of the work of an envelope; without optimisation they would hide the relay's own cost.
    "serde_json.opt-level=3",
    "uuid.opt-level=3",
];

const RECORD: &str = "`cargo xtask bench instructions --record` rewrites the file";

fn record(rustc: String, instructions: BTreeMap<String, u64>) -> Result<()> {
    let limits = Limits {
        rustc,
        instructions,
    };
    let head = "# Instructions of the hot functions for a batch of 500 messages (benches/instructions.rs).\n\
                # Written by `cargo xtask bench instructions --record`; without --record, more than 5 % above these fails.\n";
    std::fs::write(FILE, format!("{head}{}", toml::to_string(&limits)?))?;
    println!("written to {FILE}");
    Ok(())
}

/// Number of instructions of each benchmark.
fn count(runner: &Path) -> Result<BTreeMap<String, u64>> {
    let profile: Vec<String> = AS_SHIPPED
        .iter()
        .flat_map(|setting| {
            [
                "--config".to_owned(),
                format!("profile.dev.package.{setting}"),
            ]
        })
        .collect();
    let mut words = vec!["bench", "--quiet", "--locked", "--profile", "dev"];
    words.extend(profile.iter().map(String::as_str));
    words.extend([
        "-p",
        "outboxd",
        "--bench",
        "instructions",
        "--",
        "--output-format=json",
    ]);
    eprintln!("$ cargo {}", words.join(" "));
    let output = Command::new("cargo")
        .args(words)
        .env("GUNGRAUN_RUNNER", runner)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo bench: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let mut counted = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let summary: Summary = serde_json::from_str(line)
            .map_err(|e| format!("a summary of gungraun has another format: {e}"))?;
        let (name, instructions) = summary.read()?;
        counted.insert(name, instructions);
    }
    if counted.is_empty() {
        return Err("nothing was counted: does `valgrind --version` work?".into());
    }
    Ok(counted)
}

/// The fields that are read from gungraun's summary of a benchmark.
#[derive(Deserialize)]
struct Summary {
    function_name: String,
    id: Option<String>,
    profiles: Vec<serde_json::Value>,
}

impl Summary {
    fn read(&self) -> Result<(String, u64)> {
        let id = self.id.as_deref().unwrap_or_default();
        let name = format!("{}, {}", self.function_name, id.replace('_', " "));
        let instructions = self
            .profiles
            .first()
            .and_then(|profile| {
                profile
                    .pointer("/data/total/metrics/Ir/values/new")?
                    .as_u64()
            })
            .ok_or("a summary of gungraun without instructions")?;
        Ok((name, instructions))
    }
}

/// The runner that belongs to gungraun, in the version that Cargo.lock names.
fn runner() -> Result<PathBuf> {
    let lock: toml::Table = std::fs::read_to_string("Cargo.lock")?.parse()?;
    let packages = lock["package"]
        .as_array()
        .ok_or("Cargo.lock has no packages")?;
    let version = packages
        .iter()
        .find(|package| package["name"].as_str() == Some("gungraun-runner"))
        .and_then(|package| package["version"].as_str())
        .ok_or("Cargo.lock has no gungraun-runner")?;
    tools::installed("gungraun-runner", version, &[])
}

/// For example "rustc 1.90.0".
fn rustc() -> Result<String> {
    let text = output(Command::new("rustc").arg("--version"))?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}
