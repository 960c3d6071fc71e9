//! Draining a backlog.

use super::{
    median, raw, save,
    stage::{SOON, Stage, cpu_seconds, mean, peak_memory},
};
use crate::Result;

#[derive(clap::Args)]
pub struct Args {
    /// Messages of the backlog, and of the raw publisher
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Times that relay and raw publisher take turns; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

struct Run {
    per_second: f64,
    cpu_us: f64,
    peak: f64,
    batch: f64,
    claim_ms: f64,
    confirm_ms: f64,
    settle_ms: f64,
    heap_only: f64,
}

pub async fn run(args: &Args) -> Result<()> {
    let stage = Stage::start().await?;
    println!(
        "| queue | raw, best of a sweep | relay | ratio | raw CPU | relay CPU | relay peak memory |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut report = Vec::new();
    for kind in ["classic", "quorum"] {
        let mut best = (raw::SWEEP[0], 0.0);
        for tuning in raw::SWEEP {
            stage.queue(kind).await?;
            let rate = raw::publish(&stage, args.messages / 4, tuning).await?;
            if rate > best.1 {
                best = (tuning, rate);
            }
        }
        let (mut raws, mut raw_cpu, mut relays) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            stage.queue(kind).await?;
            let before = cpu_seconds(std::process::id())?;
            raws.push(raw::publish(&stage, args.messages, best.0).await?);
            raw_cpu.push((cpu_seconds(std::process::id())? - before) * 1e6 / args.messages as f64);
            stage.queue(kind).await?;
            relays.push(drain(&stage, args).await?);
        }
        let of = |pick: fn(&Run) -> f64| median(relays.iter().map(pick).collect());
        let (raw, relay) = (median(raws), of(|r| r.per_second));
        let (raw_cpu, relay_cpu, peak) = (median(raw_cpu), of(|r| r.cpu_us), of(|r| r.peak));
        println!(
            "| {kind} | {raw:.0}/s ({} × {}) | {relay:.0}/s | {:.2} | {raw_cpu:.0} µs | {relay_cpu:.0} µs | {:.0} MiB |",
            best.0.channels,
            best.0.window,
            relay / raw,
            peak / f64::from(1 << 20),
        );
        println!(
            "|  a batch of {:.0} messages | | claim {:.1} ms, publish and confirm {:.1} ms, settle {:.1} ms; {:.0} % of the marks heap-only | | | | |",
            of(|r| r.batch),
            of(|r| r.claim_ms),
            of(|r| r.confirm_ms),
            of(|r| r.settle_ms),
            of(|r| r.heap_only) * 100.0,
        );
        report.push(serde_json::json!({
            "queue": kind, "messages": args.messages, "raw_per_second": raw, "raw_channels": best.0.channels,
            "raw_window": best.0.window, "relay_per_second": relay, "ratio": relay / raw,
            "raw_cpu_us_per_message": raw_cpu, "relay_cpu_us_per_message": relay_cpu, "relay_peak_bytes": peak,
        }));
    }
    save("relay", &report.into())
}

async fn drain(stage: &Stage, args: &Args) -> Result<Run> {
    stage.fill(args.messages, args.keys).await?;
    let (relay, port) = stage.relay().await?;
    let began = stage.now().await?;
    stage.drained(SOON * 5).await?;
    let took = stage.last_sent().await? - began;
    let heap_only = stage.heap_only().await?;
    Ok(Run {
        per_second: args.messages as f64 / took,
        cpu_us: cpu_seconds(relay.pid())? * 1e6 / args.messages as f64,
        peak: peak_memory(relay.pid())? as f64,
        batch: mean(port, "batch_size").await?,
        claim_ms: mean(port, "claim_seconds").await? * 1e3,
        confirm_ms: mean(port, "confirm_seconds").await? * 1e3,
        settle_ms: mean(port, "settle_seconds").await? * 1e3,
        heap_only,
    })
}
