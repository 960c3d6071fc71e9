//! The workloads, one after the other, on one pair of servers.

use std::{cell::Cell, time::Instant};

use clap::ValueEnum;
use test_support::Result;

use crate::{
    costs,
    document::{self, Performance},
    drain, idle, long_life,
    machine::Machine,
    plot,
    report::{self, Findings, save},
    shapes,
    sizes::Sizes,
    stage::{Queue, Stage},
    steady,
    workload::{Bench, Workload},
    writers,
};

#[derive(clap::Args)]
pub struct Choice {
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

/// Workloads that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Drain(Queue),
    Wal,
    Roundtrips,
    Steady,
    IdleLatency,
    Writers,
    LongReader,
    LongLife,
    HotKey,
    Relays,
    LargeBodies,
    FailingKeys,
    IdleRelay,
}

impl Workload {
    fn group(self) -> Group {
        match self {
            Self::DrainQuorum | Self::Cpu => Group::Drain(Queue::Quorum),
            Self::DrainClassic => Group::Drain(Queue::Classic),
            Self::Wal => Group::Wal,
            Self::Roundtrips => Group::Roundtrips,
            Self::Steady => Group::Steady,
            Self::IdleLatency => Group::IdleLatency,
            Self::Writers => Group::Writers,
            Self::LongReader => Group::LongReader,
            Self::History | Self::Backlog | Self::Retention | Self::Status => Group::LongLife,
            Self::HotKey => Group::HotKey,
            Self::Relays => Group::Relays,
            Self::LargeBodies => Group::LargeBodies,
            Self::FailingKeys => Group::FailingKeys,
            Self::IdleRelay => Group::IdleRelay,
        }
    }
}

impl Bench {
    async fn measure(&self, group: Group, wanted: &[Workload]) -> Result<Findings> {
        match group {
            Group::Drain(queue) => Box::pin(drain::run(self, queue)).await,
            Group::Wal => Box::pin(costs::wal(self)).await,
            Group::Roundtrips => Box::pin(costs::round_trips(self)).await,
            Group::Steady => Box::pin(steady::run(self)).await,
            Group::IdleLatency => Box::pin(idle::latency(self)).await,
            Group::Writers => Box::pin(writers::run(self)).await,
            Group::LongReader => Box::pin(long_life::long_reader(self)).await,
            Group::LongLife => Box::pin(long_life::large_outbox(self, wanted)).await,
            Group::HotKey => Box::pin(shapes::hot_key(self)).await,
            Group::Relays => Box::pin(shapes::relays(self)).await,
            Group::LargeBodies => Box::pin(shapes::large_bodies(self)).await,
            Group::FailingKeys => Box::pin(shapes::failing_keys(self)).await,
            Group::IdleRelay => Box::pin(idle::relay(self)).await,
        }
    }
}

pub async fn run(args: &Choice) -> Result<()> {
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
        curves: Vec::new(),
    };
    println!("{}", report::HEAD);
    let mut done: Vec<Group> = Vec::new();
    for workload in wanted {
        let group = workload.group();
        if done.contains(&group) {
            continue;
        }
        done.push(group);
        match bench.measure(group, wanted).await {
            Ok(findings) => {
                for measure in &findings.measures {
                    println!("{}", measure.row());
                }
                performance.measures.extend(findings.measures);
                performance.curves.extend(findings.curves);
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
        save_quietly(&performance)?;
    }
    println!("\n{}", report::notes(&performance.measures));
    save("performance", &serde_json::to_value(&performance)?)?;
    for file in plot::write(&performance.measures, &performance.curves)? {
        eprintln!("written to {file}");
    }
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

fn save_quietly(performance: &Performance) -> Result<()> {
    std::fs::create_dir_all("target/bench")?;
    let file = "target/bench/performance.json";
    Ok(std::fs::write(
        file,
        serde_json::to_vec_pretty(performance)?,
    )?)
}

/// As a person typed it.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask bench {}", words.join(" "))
}
