//! `cargo xtask matrix`: the tests and the crash rows, against other versions of the two servers.
//!
//! docs/internals/compatibility.md keeps the results. A run replaces the lines of its own pairs, after each of them.

mod servers;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Instant, SystemTime},
};

use clap::builder::PossibleValuesParser;
use programs::{Result, Tools, install};
use serde::Deserialize;

use crate::{shell::output, test};
use servers::{POSTGRES, SUITES};

const DOCUMENT: &str = "docs/internals/compatibility.md";

/// Rows of the fault matrix in which a process or a server dies.
const ROWS: &str = "1,2,3,4,5,6,7,8,9,11,31";

/// The tests of the suite, and those of crates/outbox against a database.
const TESTS: [&str; 7] = [
    "--locked",
    "--features",
    "outboxd/failpoints",
    "--test",
    "suite",
    "--test",
    "postgres",
];

#[derive(clap::Args)]
#[command(
    after_help = "Without either list: every PostgreSQL with the oldest RabbitMQ, and every RabbitMQ with the newest \
                  PostgreSQL."
)]
pub struct Args {
    /// Only these major versions of PostgreSQL
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(POSTGRES.map(major)))]
    postgres: Vec<String>,
    /// Only the RabbitMQ of these suites of Debian
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(SUITES))]
    rabbitmq: Vec<String>,
}

/// A version of PostgreSQL, and the suite of a RabbitMQ.
type Pair = (&'static str, &'static str);

pub fn run(args: &Args) -> Result<()> {
    install(Tools::Matrix)?;
    let mut failed = Vec::new();
    for pair in pairs(&args.postgres, &args.rabbitmq) {
        let (line, failures) = tried(pair)?;
        println!("{line}");
        let page = fs::read_to_string(DOCUMENT)?;
        fs::write(DOCUMENT, with_line(&page, pair, &line)?)?;
        let (postgres, suite) = pair;
        let name = |failure| format!("{postgres} × {suite}: {failure}");
        failed.extend(failures.into_iter().map(name));
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed:\n  {}", failed.join("\n  ")).into())
    }
}

fn major(version: &'static str) -> &'static str {
    version.split('.').next().unwrap_or(version)
}

fn all() -> impl Iterator<Item = Pair> {
    let of = |suite| POSTGRES.map(move |version| (version, suite));
    SUITES.into_iter().flat_map(of)
}

/// Each version is in it.
fn in_cross((version, suite): Pair) -> bool {
    suite == SUITES[0] || version == POSTGRES[POSTGRES.len() - 1]
}

/// All pairs of two lists. If a list is missing, only those of the cross.
fn pairs(postgres: &[String], suites: &[String]) -> Vec<Pair> {
    let asked = |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
    let both = !postgres.is_empty() && !suites.is_empty();
    all()
        .filter(|(version, suite)| asked(postgres, major(version)) && asked(suites, suite))
        .filter(|pair| both || in_cross(*pair))
        .collect()
}

/// Runs everything against one pair. Returns its line of the page, and its failures.
fn tried((version, suite): Pair) -> Result<(String, Vec<String>)> {
    let rabbitmq = servers::rabbitmq(suite)?;
    let env = [
        ("OUTBOXD_TEST_PG_BIN", servers::postgres(version)?),
        ("OUTBOXD_TEST_RABBITMQ_HOME", rabbitmq.home),
    ];
    let began = Instant::now();
    let tests = test::tests(&TESTS, &env, None)?;
    let mut failures = tests.failures();
    let (passed, failed_rows) = crash_rows(&env, &format!("target/matrix/{version}-{suite}"))?;
    let rows = format!("{passed} passed; {} failed", failed_rows.len());
    failures.extend(failed_rows);
    let describe = ["describe", "--always", "--dirty", "--exclude=*"];
    let commit = output(Command::new("git").args(describe))?;
    let line = format!(
        "{} {} | {} | {} | {rows} | {} | {:.10} | `{}` |",
        key((version, suite)),
        rabbitmq.version,
        rabbitmq.erlang,
        tests.counts(),
        began.elapsed().as_secs().div_ceil(60),
        humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit.trim(),
    );
    Ok((line, failures))
}

/// The number of rows that passed, and the others.
fn crash_rows(env: &[(&str, PathBuf)], out: &str) -> Result<(usize, Vec<String>)> {
    /// The report of crates/chaos.
    #[derive(Deserialize)]
    struct Report {
        rows: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        row: u32,
        fault: String,
        result: String,
    }
    let report = Path::new(out).join("report.json");
    // The results of an earlier run must not count for this one.
    if report.exists() {
        fs::remove_file(&report)?;
    }
    // It fails if a row fails, and the report says which.
    Command::new(std::env::current_exe()?)
        .args(["chaos", "--rows", ROWS, "--out", out])
        .envs(env.iter().map(|(name, value)| (name, value)))
        .status()?;
    let json = fs::read(report).map_err(|e| format!("the rows ended before the first: {e}"))?;
    let (passed, others): (Vec<Row>, Vec<Row>) = serde_json::from_slice::<Report>(&json)?
        .rows
        .into_iter()
        .partition(|row| row.result == "passed");
    let name = |row: Row| format!("row {} ({}): {}", row.row, row.fault, row.result);
    Ok((passed.len(), others.into_iter().map(name).collect()))
}

/// The beginning of a pair's line.
fn key((version, suite): Pair) -> String {
    let version = version.split(".0-").next().unwrap_or(version);
    format!("| {version} | {suite} |")
}

/// The page with this line of a pair.
fn with_line(page: &str, pair: Pair, line: &str) -> Result<String> {
    let (head, rows) = page.split_once("\n|---").ok_or("the page has no table")?;
    let (rule, rows) = rows.split_once('\n').ok_or("a table without rows")?;
    let mut text = format!("{head}\n|---{rule}\n");
    for one in all() {
        let known = rows.lines().find(|row| row.starts_with(&key(one)));
        let not_run = format!("{} | | not run | | | | |", key(one));
        let row = if one == pair { Some(line) } else { known };
        if let Some(row) = row.or(in_cross(one).then_some(&not_run)) {
            text.push_str(row);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_cross_that_holds_every_version() {
        let cross = pairs(&[], &[]);
        assert_eq!(cross.len(), POSTGRES.len() + SUITES.len() - 1);
        assert!(POSTGRES.iter().all(|p| cross.contains(&(p, SUITES[0]))));
        assert!(SUITES.iter().all(|s| cross.contains(&(POSTGRES[4], s))));
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(&list(&["14"]), &[]), [(POSTGRES[0], SUITES[0])]);
        let asked = pairs(&list(&["14", "16"]), &list(&["sid", "trixie"]));
        assert_eq!(asked.len(), 4, "{asked:?}");
    }

    #[test]
    fn a_pair_replaces_its_own_line_and_no_other() {
        let page = "# Page\n\n| PostgreSQL | Debian |\n|---|---|\n| 18.4 | sid | old |\n| 9.6 | sid | gone |\n";
        let first = (POSTGRES[0], SUITES[0]);
        let page = with_line(page, first, "| 14.23 | bookworm | new |").unwrap();
        assert!(
            page.contains(
                "|---|---|\n| 14.23 | bookworm | new |\n| 15.18 | bookworm | | | not run |"
            )
        );
        assert!(page.ends_with("| 18.4 | sid | old |\n") && !page.contains("gone"));
        let again = with_line(&page, first, "| 14.23 | bookworm | newer |").unwrap();
        assert_eq!(again, page.replace("new |", "newer |"));
        let other = with_line(&page, (POSTGRES[0], "sid"), "| 14.23 | sid | new |").unwrap();
        assert_eq!(other.lines().count(), page.lines().count() + 1);
    }
}
