//! The workloads, one after the other, on one pair of servers.

use std::{cell::Cell, time::Instant};

use clap::ValueEnum;
use test_support::Result;

use crate::{
    costs,
    document::{self, Performance},
    drain, idle, inbox, long_life,
    machine::Machine,
    report::{self, Measure},
    shapes,
    sizes::Sizes,
    stage::{Queue, Stage},
    steady,
    workload::{Bench, Workload},
    writers,
};

#[derive(clap::Parser)]
#[command(
    bin_name = "cargo xtask bench",
    after_help = "`cargo xtask bench instructions` counts the instructions of the hot functions."
)]
pub struct Args {
    /// Only these; those that share their tables or runs come together
    workloads: Vec<Workload>,
    /// Everything at small sizes and once, to see that it works; the numbers mean nothing
    #[arg(long, conflicts_with_all = ["scale", "runs"])]
    quick: bool,
    /// Of the large counts (2,000,000 and 10,000,000 messages) and of the long stretches of time
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Times that baseline and relay take turns; medians are shown
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

impl Bench {
    /// The measures of a group; `wanted` of the large outbox only.
    async fn measure(&self, group: Workload, wanted: &[Workload]) -> Result<Vec<Measure>> {
        match group {
            Workload::DrainQuorum | Workload::Cpu => {
                Box::pin(drain::run(self, Queue::Quorum)).await
            }
            Workload::DrainClassic => Box::pin(drain::run(self, Queue::Classic)).await,
            Workload::Wal => Box::pin(costs::wal(self)).await,
            Workload::Roundtrips => Box::pin(costs::round_trips(self)).await,
            Workload::Steady => Box::pin(steady::run(self)).await,
            Workload::IdleLatency => Box::pin(idle::latency(self)).await,
            Workload::Writers => Box::pin(writers::run(self)).await,
            Workload::LongReader => Box::pin(long_life::long_reader(self)).await,
            Workload::Backlog | Workload::History | Workload::Retention | Workload::Status => {
                Box::pin(long_life::large_outbox(self, wanted)).await
            }
            Workload::HotKey => Box::pin(shapes::hot_key(self)).await,
            Workload::Relays => Box::pin(shapes::relays(self)).await,
            Workload::LargeBodies => Box::pin(shapes::large_bodies(self)).await,
            Workload::FailingKeys => Box::pin(shapes::failing_keys(self)).await,
            Workload::IdleRelay => Box::pin(idle::relay(self)).await,
            Workload::Inbox => Box::pin(inbox::run(self)).await,
        }
    }
}

pub async fn run(args: &Args) -> Result<()> {
    if !(args.scale > 0.0 && args.scale <= 1.0) || args.runs == 0 {
        return Err("--scale is above 0 and at most 1, --runs at least 1".into());
    }
    let whole = args.workloads.is_empty();
    let wanted = if whole {
        Workload::value_variants()
    } else {
        &args.workloads
    };
    let sizes = if args.quick {
        Sizes::quick()
    } else {
        Sizes::full(args.scale, args.runs)
    };
    let bench = Bench {
        stage: Stage::start().await?,
        sizes,
        began: Instant::now(),
        drain_rate: Cell::new(None),
    };
    let mut performance = Performance {
        machine: Machine::describe(&bench.stage).await?,
        command: command(),
        seconds: 0,
        sizes,
        measures: Vec::new(),
        failed: Vec::new(),
    };
    println!("{}", report::HEAD);
    let mut done: Vec<Workload> = Vec::new();
    for workload in wanted {
        let group = workload.group();
        if done.contains(&group) {
            continue;
        }
        done.push(group);
        match bench.measure(group, wanted).await {
            Ok(measures) => {
                for measure in &measures {
                    println!("{}", measure.row());
                }
                performance.measures.extend(measures);
            }
            Err(error) => {
                // The others are worth having all the same.
                let name = workload.to_possible_value();
                let name = name.as_ref().map_or("", |value| value.get_name());
                bench.say(&format!("{name}: {error}"));
                performance.failed.push(format!("{name}: {error}"));
            }
        }
        performance.seconds = bench.began.elapsed().as_secs();
        // After each: what was measured survives whatever ends the run.
        performance.save()?;
    }
    println!("\n{}", report::notes(&performance.measures));
    eprintln!("written to {}", document::MEASURES);
    if !performance.failed.is_empty() {
        return Err(format!(
            "{}\nrun such a one alone: `cargo xtask bench NAME`",
            performance.failed.join("\n")
        )
        .into());
    }
    if whole && !args.quick {
        document::write(&performance)?;
    } else {
        eprintln!("{} is written by a whole run only", document::FILE);
    }
    Ok(())
}

/// As a person typed it.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask bench {}", words.join(" "))
}
