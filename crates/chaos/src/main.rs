//! The fault matrix against real servers and real processes, judged from a ledger. `cargo xtask chaos` builds the relay
//! and runs this.
//!
//! - [`row`], [`outcome`]: what a row is, and how it ends · [`rows`]: the rows, by what breaks
//! - [`arena`]: the site of one row · [`traffic`]: producers and what they committed
//! - [`flow`]: traffic through a relay while something breaks, and the judgement
//! - [`pace`]: how slow the machine is, and how much longer the bounds are
//! - [`consumer`]: a consumer with an inbox · [`usage`]: what a process uses
//! - [`report`], [`logs`]: what a person looks at

mod arena;
mod consumer;
mod flow;
mod logs;
mod outcome;
mod pace;
mod report;
mod row;
mod rows;
mod soak;
mod traffic;
mod usage;

use std::{
    collections::VecDeque,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use clap::Parser;

use crate::{
    arena::Setup,
    row::{Kind, Line, Name, Result, Row},
};

#[derive(Parser)]
struct Args {
    /// The relay, built with its failpoints
    #[arg(long, default_value = "target/debug/outboxd")]
    outboxd: PathBuf,
    /// Where migrations and grants are
    #[arg(long, default_value = ".")]
    repository: PathBuf,
    /// Only these rows: 24, H2 (a hostile neighbour)
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Name>,
    /// A row that cannot be run here has failed
    #[arg(long)]
    strict: bool,
    /// Except for these
    #[arg(long, value_delimiter = ',', value_name = "ROWS", requires = "strict")]
    may_skip: Vec<Name>,
    /// Also the rows, and the variants of rows, that take minutes
    #[arg(long)]
    long: bool,
    /// Rows that run at the same time, each with servers of its own; they spend most of it waiting
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    jobs: u16,
    /// Instead of the matrix: random faults for so many minutes
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<f64>,
    /// Of the random faults; without it one is drawn, and printed
    #[arg(long, requires = "minutes")]
    seed: Option<u64>,
    /// Messages a second, while there are random faults
    #[arg(long, default_value_t = 2000, requires = "minutes")]
    rate: u32,
    /// Where report.json is written
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.enable_all().build()?)
}

fn run(args: Args) -> Result<bool> {
    pace::watch();
    std::fs::create_dir_all(&args.out)?;
    // What failed earlier would be taken for what failed now.
    match std::fs::remove_dir_all(args.out.join("logs")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let setup = Setup {
        outboxd: args.outboxd.canonicalize()?,
        repository: args.repository.canonicalize()?,
        logs: Arc::default(),
        long: args.long,
        servers: Arc::default(),
    };
    if let Some(minutes) = args.minutes {
        return soak(&runtime()?, &setup, minutes, &args);
    }
    matrix(&args, &setup)
}

fn matrix(args: &Args, setup: &Setup) -> Result<bool> {
    let waiting = Mutex::new(asked_for(args)?);
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    };
    report::header();
    let (ended, lines_of_rows) = mpsc::channel();
    let mut lines = Vec::new();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..args.jobs {
            let (next, ended) = (&next, ended.clone());
            threads.push(scope.spawn(move || -> Result<()> {
                let runtime = runtime()?;
                while let Some((name, row)) = next() {
                    ended.send(attempt(args, setup, name, row, &runtime)?)?;
                }
                Ok(())
            }));
        }
        drop(ended);
        for line in lines_of_rows {
            report::line(&line);
            lines.push(line);
            lines.sort_by_key(Line::name);
            // After each row: a run that is cut off has left what it saw.
            written(args, &lines)?;
        }
        for thread in threads {
            thread.join().map_err(|panic| said(&*panic))??;
        }
        Ok::<_, test_support::Error>(())
    })?;
    if args.jobs > 1 {
        late_ones_alone(args, setup, &mut lines)?;
        written(args, &lines)?;
    }
    println!("\nwritten: {}/report.json", args.out.display());
    let may_skip = args.strict.then_some(&args.may_skip[..]);
    Ok(report::summary(&lines, may_skip))
}

/// Runs a row, with logs of its own.
fn attempt(
    args: &Args,
    setup: &Setup,
    name: Name,
    row: &'static Row,
    runtime: &tokio::runtime::Runtime,
) -> Result<Line> {
    let setup = Setup {
        logs: Arc::default(),
        ..setup.clone()
    };
    let line = if row.long && !args.long && args.rows.is_empty() {
        let why = "takes minutes: run it with --long, or by its number";
        let skipped = Ok(row::Outcome::skipped(why));
        Line::new(name, row.fault, 0.0, skipped)
    } else {
        runtime.block_on(one(name, row, &setup))
    };
    line.with_logs(&setup.logs, &args.out)
}

/// What was late while other rows kept the machine busy is run once more, and what comes of that counts.
fn late_ones_alone(args: &Args, setup: &Setup, lines: &mut [Line]) -> Result<()> {
    let asked_for = asked_for(args)?;
    for line in lines.iter_mut().filter(|line| line.late) {
        let Some((name, row)) = asked_for.iter().find(|(name, _)| *name == line.name()) else {
            continue;
        };
        let late = line.notes.join("\n");
        *line = attempt(args, setup, *name, row, &runtime()?)?;
        let notes = &mut line.notes;
        notes.push(format!("this was run alone; beside other rows: {late}"));
        report::line(line);
    }
    Ok(())
}

/// The rows, then the neighbours; or those that were asked for.
fn asked_for(args: &Args) -> Result<VecDeque<(Name, &'static Row)>> {
    let mut all = VecDeque::new();
    for (kind, rows) in [
        (Kind::Fault, rows::all()),
        (Kind::Neighbour, rows::neighbours()),
    ] {
        all.extend(rows.into_iter().map(|row| (Name(kind, row.number), row)));
    }
    let known = |name: &Name| all.iter().any(|(known, _)| known == name);
    if let Some(name) = args.rows.iter().find(|name| !known(name)) {
        return Err(format!("{name}: the matrix has no such row").into());
    }
    all.retain(|(name, _)| args.rows.is_empty() || args.rows.contains(name));
    Ok(all)
}

fn written(args: &Args, lines: &[Line]) -> Result<()> {
    report::json(&args.out.join("report.json"), lines)
}

fn soak(
    runtime: &tokio::runtime::Runtime,
    setup: &Setup,
    minutes: f64,
    args: &Args,
) -> Result<bool> {
    let plan = soak::Plan {
        seed: args.seed.unwrap_or_else(rand::random),
        duration: Duration::from_secs_f64(minutes * 60.0),
        rate: args.rate,
    };
    println!(
        "soak: seed {}, {minutes} minutes, {} messages a second",
        plan.seed, plan.rate
    );
    let began = Instant::now();
    let work = std::panic::AssertUnwindSafe(soak::run(setup, plan));
    let ended = runtime.block_on(futures_util::FutureExt::catch_unwind(work));
    let ended = ended.unwrap_or_else(|panic| Err(said(&*panic).into()));
    let seconds = began.elapsed().as_secs_f64();
    let line = Line::new(Name(Kind::Fault, 0), "random faults", seconds, ended);
    let line = line.with_logs(&setup.logs, &args.out)?;
    report::header();
    report::line(&line);
    let lines = [line];
    written(args, &lines)?;
    if !report::summary(&lines, None) {
        println!(
            "again: cargo xtask chaos --minutes {minutes} --seed {}",
            plan.seed
        );
        return Ok(false);
    }
    Ok(true)
}

/// A panic of a row (a wait that ran out) is its failure, and nobody else's.
async fn one(name: Name, row: &'static Row, setup: &Setup) -> Line {
    let began = Instant::now();
    let work = std::panic::AssertUnwindSafe((row.run)(setup));
    let (ended, notes) = pace::row(futures_util::FutureExt::catch_unwind(work)).await;
    let ended = ended.unwrap_or_else(|panic| Err(said(&*panic).into()));
    let seconds = began.elapsed().as_secs_f64();
    let mut line = Line::new(name, row.fault, seconds, ended);
    line.notes.extend(notes);
    line
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}
