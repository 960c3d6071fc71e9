//! `cargo xtask mutants`: checks that a test guards every decision of crates/core. cargo-mutants breaks the code in one
//! place at a time (an operator, a condition, a result) and runs the crate's tests. A change that no test notices
//! survives.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use programs::Result;
use serde::Deserialize;

use crate::tools;

const VERSION: &str = "27.1.0";
const OUTPUT: &str = "target/mutants";
const SOURCES: &str = "crates/core/src";
/// Known survivors, each with its reason.
const EXPLAINED: &str = "crates/core/mutants.toml";
/// Percentage of the compiling mutants that the tests must catch.
const WANTED: f64 = 95.0;

#[derive(clap::Args)]
pub struct Args {
    /// Only these files, for example `circuit plan`
    files: Vec<String>,
    /// Number of mutants that are built and tested at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Also runs the model's tests: slow, and meant for a survivor that no unit test can show
    #[arg(long)]
    model: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let explained = explained()?;
    mutate(args)?;
    let list = |name: &str| -> Result<Vec<Mutant>> {
        let path = format!("{OUTPUT}/mutants.out/{name}.txt");
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        Ok(text.lines().map(mutant).collect())
    };
    judge(
        &Tried {
            caught: list("caught")?,
            missed: list("missed")?,
            timeouts: list("timeout")?,
        },
        &explained,
    )
}

fn mutate(args: &Args) -> Result<()> {
    let program = tools::installed("cargo-mutants", VERSION, &[])?;
    std::fs::create_dir_all(OUTPUT)?;
    let jobs = args.jobs.to_string();
    let mut mutants = Command::new(program);
    mutants
        .args(["mutants", "--package", "outbox-core", "--jobs", &jobs])
        .args(["--output", OUTPUT, "--profile", "mutants"])
        .args(["--cargo-arg=--locked", "--no-shuffle"])
        // The default of five times the duration of the tests is too little on a busy machine. A hang is still found
        // after 90 seconds.
        .args(["--minimum-test-timeout", "90"]);
    if args.model {
        mutants.args(["--test-package", "outbox-core,model"]);
    } else {
        // Unit tests only, so that the crate itself is not built beside them.
        mutants.arg("--cargo-test-arg=--lib");
    }
    for file in &args.files {
        let file = file.trim_end_matches(".rs");
        mutants.args(["--file", &format!("{SOURCES}/{file}.rs")]);
    }
    if args.jobs == 1 {
        // Build the dependencies once and not in each run.
        let target = std::env::current_dir()?.join(OUTPUT).join("build");
        mutants.env("CARGO_TARGET_DIR", target);
    }
    // The unit tests contain the decisive cases, so the properties need few cases and no shrinking.
    mutants
        .env("PROPTEST_CASES", "16")
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
    let status = mutants.stdin(Stdio::null()).status()?;
    match status.code() {
        // 0: all caught. 2: some missed. 3: some timed out.
        Some(0 | 2 | 3) => Ok(()),
        Some(4) => Err("the tests fail without any mutant: run `cargo test -p outbox-core`".into()),
        _ => Err(format!("cargo mutants: {status}").into()),
    }
}

/// crates/core/mutants.toml
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Explained {
    #[serde(default)]
    survivor: Vec<Survivor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Survivor {
    /// For example "circuit.rs".
    file: String,
    /// The text of cargo-mutants without line and column, which change with every edit.
    mutant: String,
    /// Number of survivors with the same text.
    #[serde(default = "one")]
    times: usize,
    reason: String,
}

fn one() -> usize {
    1
}

fn explained() -> Result<Vec<Survivor>> {
    let text = std::fs::read_to_string(EXPLAINED).map_err(|e| format!("{EXPLAINED}: {e}"))?;
    let explained: Explained = toml::from_str(&text).map_err(|e| format!("{EXPLAINED}: {e}"))?;
    for survivor in &explained.survivor {
        if survivor.reason.trim().is_empty() {
            return Err(format!("{EXPLAINED}: \"{}\" has no reason", survivor.mutant).into());
        }
    }
    Ok(explained.survivor)
}

/// A mutant: its file, and its change without line and column.
type Mutant = (String, String);

/// Parses a line such as `crates/core/src/plan.rs:86:9: replace …`.
fn mutant(line: &str) -> Mutant {
    let mut parts = line.splitn(4, ':');
    let file = parts.next().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or(file);
    let change = parts.nth(2).unwrap_or_default().trim();
    (file.to_owned(), change.to_owned())
}

/// The lists of cargo-mutants. A mutant that does not compile is in none of them: no test could miss it.
#[derive(Default)]
struct Tried {
    caught: Vec<Mutant>,
    missed: Vec<Mutant>,
    /// A hanging test counts as one that fails.
    timeouts: Vec<Mutant>,
}

fn judge(tried: &Tried, explained: &[Survivor]) -> Result<()> {
    let caught = tried.caught.len() + tried.timeouts.len();
    let all = caught + tried.missed.len();
    if all == 0 {
        return Err("nothing was mutated: are the names those of files in crates/core/src?".into());
    }
    let percent = 100.0 * caught as f64 / all as f64;
    println!(
        "{all} compile: {} caught, {} missed, {} timeouts; {percent:.1} %",
        tried.caught.len(),
        tried.missed.len(),
        tried.timeouts.len()
    );
    let mut problems = unexplained(tried, explained);
    if percent < WANTED {
        problems.push(format!(
            "{percent:.1} % are caught, {WANTED} % are wanted: write tests"
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n").into())
    }
}

/// Survivors without a reason, and reasons without a survivor.
fn unexplained(tried: &Tried, explained: &[Survivor]) -> Vec<String> {
    let mut survivors: BTreeMap<&Mutant, usize> = BTreeMap::new();
    for mutant in &tried.missed {
        *survivors.entry(mutant).or_default() += 1;
    }
    let lists = [&tried.caught, &tried.missed, &tried.timeouts];
    let mut problems = Vec::new();
    for known in explained {
        let mutant = (known.file.clone(), known.mutant.clone());
        let left = survivors.remove(&mutant).unwrap_or(0);
        // A run may be about other files.
        let in_run = lists
            .iter()
            .any(|list| list.iter().any(|m| m.0 == known.file));
        if left != known.times && in_run {
            problems.push(format!(
                "{}: \"{}\" survives {left} times, {EXPLAINED} explains {}: correct it there",
                known.file, known.mutant, known.times
            ));
        }
    }
    problems.extend(survivors.iter().map(|((file, change), times)| {
        format!(
            "{file}: \"{change}\" survives (×{times}): write a test, or its reason into {EXPLAINED}"
        )
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str =
        "crates/core/src/plan.rs:86:9: replace Plan::next_wave -> Vec<usize> with vec![]";
    const CHANGE: &str = "replace Plan::next_wave -> Vec<usize> with vec![]";

    fn survivor(times: usize) -> Vec<Survivor> {
        vec![Survivor {
            file: "plan.rs".to_owned(),
            mutant: CHANGE.to_owned(),
            times,
            reason: "why".to_owned(),
        }]
    }

    fn judged(missed: usize, explained: usize) -> std::result::Result<(), String> {
        let tried = Tried {
            caught: vec![mutant(PLAN); 100],
            missed: vec![mutant(PLAN); missed],
            timeouts: Vec::new(),
        };
        let explained = if explained == 0 {
            Vec::new()
        } else {
            survivor(explained)
        };
        judge(&tried, &explained).map_err(|e| e.to_string())
    }

    #[test]
    fn a_survivor_needs_a_reason_and_a_reason_its_survivor() {
        let error = judged(1, 0).unwrap_err();
        assert!(
            error.contains("plan.rs: ") && error.contains(CHANGE),
            "{error}"
        );
        assert_eq!(judged(1, 1), Ok(()));
        assert!(judged(2, 1).is_err());
        assert!(judged(0, 1).is_err(), "it is caught now");
    }

    #[test]
    fn of_those_that_compile_95_percent_are_caught_and_a_hang_is_noticed() {
        let error = judged(6, 6).unwrap_err();
        assert!(error.contains("94.3 %"), "{error}");
        assert_eq!(judged(5, 5), Ok(()));
        let hangs = Tried {
            timeouts: vec![mutant(PLAN)],
            ..Tried::default()
        };
        assert!(judge(&hangs, &[]).is_ok());
        assert!(judge(&Tried::default(), &[]).is_err());
    }
}
