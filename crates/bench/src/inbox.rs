//! What the inbox costs: the same consumer with it and without it.

use test_support::Result;

use crate::{
    consumers::{Kind, Run, Site},
    growth,
    load::Load,
    report::save,
    stage::Stage,
    statistics::median,
};

#[derive(clap::Args)]
pub struct Args {
    /// Messages of a run, repetitions included
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Times that the consumers take turns; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Keys of the history whose size, speed and pruning are measured; 0 leaves that out. The full size is 10000000: some
    /// 10 GB of disk, write-ahead log included
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
}

pub async fn run(args: &Args) -> Result<()> {
    let stage = Stage::start().await?;
    let site = Site::new(&stage, "payments").await?;
    println!(
        "| duplicates | with the inbox | without | ratio | CPU a message, with / without | PostgreSQL's CPU, with / without | paid twice, with / without |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut rates = Vec::new();
    for (percent, kind) in [
        (0, Kind::Inbox),
        (0, Kind::InboxWithResult),
        (10, Kind::Inbox),
        (50, Kind::Inbox),
    ] {
        let load = Load::new(args.messages, f64::from(percent) / 100.0);
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..args.runs {
            site.forget().await?;
            with.push(site.consume(kind, &load, async |_| Ok(())).await?);
            without.push(site.consume(Kind::Plain, &load, async |_| Ok(())).await?);
        }
        let of = |runs: &[Run], pick: fn(&Run) -> f64| median(runs.iter().map(pick).collect());
        let both = |pick: fn(&Run) -> f64| (of(&with, pick), of(&without, pick));
        let (rate, cpu, server) = (
            both(|r| r.per_second),
            both(|r| r.cpu_us),
            both(|r| r.server_cpu_us),
        );
        // Of neighbours in time, since the machine may have other work.
        let ratios = with.iter().zip(&without);
        let ratio = median(ratios.map(|(w, o)| w.per_second / o.per_second).collect());
        let doubled = with
            .iter()
            .zip(&without)
            .map(|(w, o)| (w.doubled, o.doubled));
        let doubled = doubled.max().unwrap_or_default();
        let result = if kind == Kind::InboxWithResult {
            ", each with a stored result"
        } else {
            ""
        };
        println!(
            "| {percent} %{result} | {:.0}/s | {:.0}/s | {ratio:.2} | {:.0} / {:.0} µs | {:.0} / {:.0} µs | {} / {} |",
            rate.0, rate.1, cpu.0, cpu.1, server.0, server.1, doubled.0, doubled.1
        );
        rates.push(serde_json::json!({
            "duplicates_percent": percent, "stored_result": kind == Kind::InboxWithResult, "messages": args.messages,
            "with_per_second": rate.0, "without_per_second": rate.1, "ratio": ratio,
            "with_cpu_us": cpu.0, "without_cpu_us": cpu.1,
            "with_postgres_cpu_us": server.0, "without_postgres_cpu_us": server.1,
            "with_paid_twice": doubled.0, "without_paid_twice": doubled.1,
        }));
    }
    let growth = if args.keys > 0 {
        growth::run(&stage, &site, args.keys, args.messages, args.runs).await?
    } else {
        serde_json::Value::Null
    };
    save(
        "inbox",
        &serde_json::json!({ "rates": rates, "growth": growth }),
    )
}
