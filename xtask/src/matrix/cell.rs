//! Runs all tests against one pair of versions.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Instant, SystemTime},
};

use programs::Result;
use serde::Deserialize;

use super::{
    build::{Built, Executable},
    postgres::Postgres,
    rabbitmq::RabbitMq,
    report::{Cell, OUT, Part, Said},
};
use crate::test::THREADS;

/// Rows of the fault matrix in which a process or a server dies.
const ROWS: &str = "1,2,3,4,5,6,7,8,9,11,31";

struct Pair {
    env: [(&'static str, PathBuf); 2],
    /// Folder of the logs.
    folder: PathBuf,
}

pub fn run(built: &Built, postgres: &Postgres, rabbitmq: &RabbitMq) -> Result<Cell> {
    let pair = Pair {
        env: [
            ("OUTBOXD_TEST_PG_BIN", postgres.programs()?),
            ("OUTBOXD_TEST_RABBITMQ_HOME", rabbitmq.home()?),
        ],
        folder: Path::new(OUT).join(format!("{}-{}", postgres.version, rabbitmq.version)),
    };
    // The results of an earlier run must not count for this one.
    if pair.folder.exists() {
        fs::remove_dir_all(&pair.folder)?;
    }
    fs::create_dir_all(&pair.folder)?;
    let erlang = rabbitmq.erlang()?;
    println!(
        "\nPostgreSQL {} × RabbitMQ {} / Erlang {erlang}",
        postgres.version, rabbitmq.version
    );
    let began = Instant::now();
    let parts = vec![
        tests(&pair, "integration tests", &built.suite)?,
        tests(&pair, "tests of the crate outbox", &built.postgres)?,
        rows(&pair, built)?,
    ];
    Ok(Cell {
        postgres: postgres.version.clone(),
        rabbitmq: rabbitmq.version.clone(),
        erlang,
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: built.commit.clone(),
        seconds: began.elapsed().as_secs(),
        parts,
    })
}

/// Runs the tests of an executable. A failed test runs again alone: if it passes then, it lacked time or another shared
/// resource, and shows no difference between versions.
fn tests(pair: &Pair, name: &str, executable: &Executable) -> Result<Part> {
    let log = pair.log(&executable.path)?;
    let mut part = Part::new(name);
    let mut failed = Vec::new();
    let mut ended = false;
    pair.command(executable, &["--test-threads", THREADS], &log)?;
    for line in fs::read_to_string(&log)?.lines() {
        ended |= line.starts_with("test result:");
        let result = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "));
        match result {
            Some((_, "ok")) => part.passed += 1,
            Some((test, "FAILED")) => failed.push(test.to_owned()),
            Some((test, ignored)) if ignored.starts_with("ignored") => part.skipped.push(Said {
                name: test.to_owned(),
                why: ignored.to_owned(),
            }),
            _ => {}
        }
    }
    if !ended {
        return Err(format!("the {name} stopped early: see {}", log.display()).into());
    }
    for test in failed {
        let log = pair.folder.join(format!("{}.log", test.replace("::", ".")));
        let passed = pair.command(executable, &[&test, "--exact"], &log)?;
        part.again(test, passed, || last_panic(&log));
    }
    part.print();
    Ok(part)
}

/// A row of the matrix in the format of crates/chaos.
#[derive(Deserialize)]
struct Row {
    row: u32,
    fault: String,
    result: String,
    notes: Vec<String>,
}

fn rows(pair: &Pair, built: &Built) -> Result<Part> {
    let run = |numbers: &str, name: &str| -> Result<Vec<Row>> {
        #[derive(Deserialize)]
        struct Document {
            rows: Vec<Row>,
        }
        let out = std::path::absolute(pair.folder.join(name))?;
        let log = pair.folder.join(format!("{name}.log"));
        let (outboxd, out) = (
            built.outboxd.path.display().to_string(),
            out.display().to_string(),
        );
        let repository = built.outboxd.folder.display().to_string();
        let words = [
            "--outboxd",
            &outboxd,
            "--repository",
            &repository,
            "--rows",
            numbers,
            "--out",
            &out,
        ];
        pair.command(&built.chaos, &words, &log)?;
        let json = fs::read(Path::new(&out).join("report.json")).map_err(|e| {
            format!(
                "the rows ended before the first: {e}; see {}",
                log.display()
            )
        })?;
        Ok(serde_json::from_slice::<Document>(&json)?.rows)
    };
    let mut part = Part::new("crash rows");
    for Row {
        row,
        fault,
        result,
        notes,
    } in run(ROWS, "chaos")?
    {
        let (name, why) = (format!("row {row}, {fault}"), notes.join("; "));
        match result.as_str() {
            "passed" => part.passed += 1,
            "skipped" => part.skipped.push(Said { name, why }),
            _ => {
                let again = run(&row.to_string(), &format!("chaos-{row}"))?;
                let passed = again.iter().all(|row| row.result == "passed");
                part.again(name, passed, || why);
            }
        }
    }
    part.print();
    Ok(part)
}

impl Pair {
    fn log(&self, program: &Path) -> Result<PathBuf> {
        let name = program
            .file_name()
            .ok_or("a program without a name")?
            .to_string_lossy();
        // Removes the hash that cargo appends.
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        Ok(self.folder.join(format!("{name}.log")))
    }

    /// Writes the output to the log, and returns whether the command succeeded.
    fn command(&self, executable: &Executable, args: &[&str], log: &Path) -> Result<bool> {
        let log = File::create(log)?;
        let status = Command::new(&executable.path)
            .args(args)
            .current_dir(&executable.folder)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        Ok(status.success())
    }
}

/// The two lines of a failed test's panic.
fn last_panic(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .rposition(|line| line.contains(" panicked at "));
    let said = at.and_then(|at| lines.get(at + 1)).copied();
    said.unwrap_or("it ended without output").to_owned()
}
