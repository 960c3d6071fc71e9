//! `cargo xtask mutants`: checks that a test guards every decision of crates/core. cargo-mutants breaks the code in one
//! place at a time (an operator, a condition, a result) and runs the crate's tests. A change that no test notices
//! survives.

use std::{
    collections::BTreeMap,
    path::Path,
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
    let path = Path::new(OUTPUT).join("mutants.out/outcomes.json");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let outcomes: Outcomes = serde_json::from_str(&text).map_err(|e| {
        format!(
            "{}: not in the format of cargo-mutants {VERSION}: {e}",
            path.display()
        )
    })?;
    judge(&outcomes.results(), &explained)
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

/// The fields that are read from outcomes.json.
#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    scenario: Scenario,
    summary: Summary,
}

#[derive(Deserialize)]
enum Scenario {
    Baseline,
    Mutant { name: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Summary {
    Success,
    Failure,
    CaughtMutant,
    MissedMutant,
    Timeout,
    Unviable,
}

/// A mutant: its file, its change, and its result.
struct Mutant {
    file: String,
    change: String,
    summary: Summary,
}

impl Outcomes {
    fn results(&self) -> Vec<Mutant> {
        let mutant = |outcome: &Outcome| match &outcome.scenario {
            Scenario::Baseline => None,
            Scenario::Mutant { name } => Some(mutant(name, outcome.summary)),
        };
        self.outcomes.iter().filter_map(mutant).collect()
    }
}

/// Parses a name such as `crates/core/src/plan.rs:86:9: replace …`.
fn mutant(name: &str, summary: Summary) -> Mutant {
    let mut parts = name.splitn(4, ':');
    let file = parts.next().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or(file).to_owned();
    let change = parts.nth(2).unwrap_or_default().trim().to_owned();
    Mutant {
        file,
        change,
        summary,
    }
}

#[derive(Default, Clone, Copy)]
struct Count {
    caught: usize,
    missed: usize,
    timeouts: usize,
}

impl Count {
    /// A mutant that does not compile does not count: no test could miss it.
    fn add(&mut self, summary: Summary) {
        match summary {
            Summary::CaughtMutant => self.caught += 1,
            Summary::MissedMutant => self.missed += 1,
            Summary::Timeout => self.timeouts += 1,
            Summary::Success | Summary::Failure | Summary::Unviable => {}
        }
    }

    fn viable(self) -> usize {
        self.caught + self.missed + self.timeouts
    }

    /// A hanging test counts as caught.
    fn percent(self) -> f64 {
        100.0 * (self.caught + self.timeouts) as f64 / self.viable().max(1) as f64
    }

    fn row(self, name: &str) {
        println!(
            "| {name} | {} | {} | {} | {} | {:.1} % |",
            self.viable(),
            self.caught,
            self.missed,
            self.timeouts,
            self.percent()
        );
    }
}

fn judge(mutants: &[Mutant], explained: &[Survivor]) -> Result<()> {
    let mut files: BTreeMap<&str, Count> = BTreeMap::new();
    let mut total = Count::default();
    for mutant in mutants {
        files.entry(&mutant.file).or_default().add(mutant.summary);
        total.add(mutant.summary);
    }
    println!("| file | viable | caught | missed | timeouts | |\n|---|---|---|---|---|---|");
    for (file, count) in &files {
        count.row(file);
    }
    total.row("all");
    if total.viable() == 0 {
        return Err("nothing was mutated: are the names those of files in crates/core/src?".into());
    }
    let mut problems = unexplained(mutants, explained, &files);
    if total.percent() < WANTED {
        problems.push(format!(
            "{:.1} % are caught, {WANTED} % are wanted: write tests",
            total.percent()
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n").into())
    }
}

/// Survivors without a reason, and reasons without a survivor.
fn unexplained(
    mutants: &[Mutant],
    explained: &[Survivor],
    files: &BTreeMap<&str, Count>,
) -> Vec<String> {
    let mut survivors: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for mutant in mutants {
        if mutant.summary == Summary::MissedMutant {
            *survivors.entry((&mutant.file, &mutant.change)).or_default() += 1;
        }
    }
    let mut problems = Vec::new();
    for survivor in explained {
        let left = survivors.remove(&(survivor.file.as_str(), survivor.mutant.as_str()));
        let left = left.unwrap_or(0);
        if left != survivor.times && files.contains_key(survivor.file.as_str()) {
            problems.push(format!(
                "{}: \"{}\" survives {left} times, {EXPLAINED} explains {}: correct it there",
                survivor.file, survivor.mutant, survivor.times
            ));
        }
    }
    problems.extend(survivors.iter().map(|((file, change), times)| {
        format!(
            "{file}: \"{change}\" survives{}: write a test, or its reason into {EXPLAINED}",
            if *times > 1 {
                format!(" {times} times")
            } else {
                String::new()
            }
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

    fn caught(n: usize) -> Vec<Mutant> {
        let caught = |_| mutant(PLAN, Summary::CaughtMutant);
        (0..n).map(caught).collect()
    }

    fn judged(summaries: &[Summary], explained: &[Survivor]) -> std::result::Result<(), String> {
        let mut mutants = caught(100);
        mutants.extend(summaries.iter().map(|summary| mutant(PLAN, *summary)));
        judge(&mutants, explained).map_err(|e| e.to_string())
    }

    #[test]
    fn the_output_of_cargo_mutants_is_parsed() {
        let text = r#"{"outcomes":[
            {"scenario":"Baseline","summary":"Success","phase_results":[]},
            {"scenario":{"Mutant":{"name":"crates/core/src/a.rs:1:2: replace a::b -> c with d","package":"p"}},
             "summary":"MissedMutant"}],"total_mutants":1}"#;
        let outcomes: Outcomes = serde_json::from_str(text).unwrap();
        let [only] = &outcomes.results()[..] else {
            panic!("one mutant")
        };
        assert_eq!(
            (only.file.as_str(), only.summary),
            ("a.rs", Summary::MissedMutant)
        );
        assert_eq!(only.change, "replace a::b -> c with d");
    }

    #[test]
    fn a_survivor_needs_a_reason_and_a_reason_its_survivor() {
        let missed = Summary::MissedMutant;
        let error = judged(&[missed], &[]).unwrap_err();
        assert!(error.contains(CHANGE), "{error}");
        assert_eq!(judged(&[missed], &survivor(1)), Ok(()));
        assert!(judged(&[missed, missed], &survivor(1)).is_err());
        assert!(judged(&[], &survivor(1)).is_err(), "it is caught now");
    }

    #[test]
    fn of_those_that_compile_95_percent_are_caught_and_a_hang_is_noticed() {
        let few = [Summary::MissedMutant; 6];
        let error = judged(&few, &survivor(6)).unwrap_err();
        assert!(error.contains("94.3 %"), "{error}");
        assert_eq!(judged(&few[..5], &survivor(5)), Ok(()));
        assert_eq!(judged(&[Summary::Timeout; 50], &[]), Ok(()));
        assert_eq!(judged(&[Summary::Unviable; 50], &[]), Ok(()));
    }
}
