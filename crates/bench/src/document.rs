//! The generated part of docs/internals/experiments.md.

use std::time::Duration;

use test_support::Result;

use crate::{
    machine::Machine,
    report::{self, Measure},
    sizes::Sizes,
};

pub const FILE: &str = "docs/internals/experiments.md";
/// For programs.
pub const MEASURES: &str = "target/bench/performance.json";
const BEGIN: &str = "<!-- generated -->";
const END: &str = "<!-- /generated -->";

/// What the whole run found.
#[derive(serde::Serialize)]
pub struct Performance {
    pub machine: Machine,
    pub command: String,
    pub seconds: u64,
    pub sizes: Sizes,
    pub measures: Vec<Measure>,
    pub failed: Vec<String>,
}

impl Performance {
    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all("target/bench")?;
        Ok(std::fs::write(MEASURES, serde_json::to_vec_pretty(self)?)?)
    }
}

pub fn write(performance: &Performance) -> Result<()> {
    let text = std::fs::read_to_string(FILE).map_err(|e| format!("{FILE}: {e}"))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| {
        format!("{FILE} has no {BEGIN} … {END}: put the two lines where the table is to stand")
    })?;
    let table = generated(performance);
    std::fs::write(FILE, format!("{before}{BEGIN}\n{table}{END}{after}"))?;
    eprintln!("written to {FILE}");
    Ok(())
}

fn generated(performance: &Performance) -> String {
    let Performance {
        machine,
        command,
        seconds,
        sizes,
        measures,
        ..
    } = performance;
    let scale = if sizes.scale < 1.0 {
        format!(
            "**Measured at scale {}**: the counts of millions are smaller than the workloads below say; see the notes.\n\n",
            sizes.scale
        )
    } else {
        String::new()
    };
    let rows: Vec<String> = measures.iter().map(Measure::row).collect();
    format!(
        "{scale}`{command}`, {date}, {took}: medians of {runs} runs, baseline and relay in turns. Commit {commit}, {rustc}.\n\
         {cores} cores ({cpu}), {memory:.0} GiB, {system}; PostgreSQL {postgresql} and RabbitMQ {rabbitmq} run on them as well.\n\n\
         {head}\n{rows}\n\n{notes}",
        date = machine.date,
        took = minutes(*seconds),
        runs = sizes.runs,
        commit = machine.commit,
        rustc = machine.rustc,
        cores = machine.cores,
        cpu = machine.cpu,
        memory = machine.memory_gib,
        system = machine.system,
        postgresql = machine.postgresql,
        rabbitmq = machine.rabbitmq,
        head = report::HEAD,
        rows = rows.join("\n"),
        notes = report::notes(measures),
    )
}

/// "1 min 5 s"
fn minutes(seconds: u64) -> String {
    let took = Duration::from_secs(seconds).as_secs();
    format!("{} min {} s", took / 60, took % 60)
}
