//! Memory at two backlogs.

use super::{
    save,
    stage::{SOON, Stage, peak_memory},
};
use crate::Result;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 1_000)]
    small: usize,
    #[arg(long, default_value_t = 1_000_000)]
    large: usize,
}

pub async fn run(args: &Args) -> Result<()> {
    let stage = Stage::start().await?;
    println!("| backlog | relay's peak memory |\n|---|---|");
    let mut report = Vec::new();
    for n in [args.small, args.large] {
        stage.queue("classic").await?;
        stage.fill(n, 10_000.min(n)).await?;
        let (relay, _) = stage.relay().await?;
        stage.drained(SOON * 10).await?;
        let peak = peak_memory(relay.pid())?;
        println!("| {n} | {:.1} MiB |", peak as f64 / f64::from(1 << 20));
        report.push(serde_json::json!({ "backlog": n, "peak_bytes": peak }));
    }
    save("memory", &report.into())
}
