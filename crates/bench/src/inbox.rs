//! The cost of the inbox: one consumer with it and without it, and an inbox with a history.

use test_support::Result;

use crate::{
    consumers::{Kind, Run, Site},
    growth,
    load::Load,
    report::{Measure, Target, Unit},
    statistics::{each, median_of},
    workload::Bench,
};

pub async fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let site = Site::new(&bench.stage, "payments").await?;
    let mut measures = Vec::new();
    for (what, kind, share) in [
        ("inbox, no duplicates", Kind::Inbox, 0.0),
        (
            "inbox, no duplicates, with a stored result",
            Kind::InboxWithResult,
            0.0,
        ),
        ("inbox, 10 % duplicates", Kind::Inbox, 0.1),
        ("inbox, 50 % duplicates", Kind::Inbox, 0.5),
    ] {
        let load = Load::new(bench.sizes.inbox, share);
        let (without, with) = bench
            .in_turns(
                what,
                async || site.consume(Kind::Plain, &load, async |_| Ok(())).await,
                async || {
                    site.forget().await?;
                    site.consume(kind, &load, async |_| Ok(())).await
                },
            )
            .await?;
        let rates = |runs: &[Run]| each(runs, |r| r.per_second);
        let cost = |runs: &[Run]| {
            format!(
                "{:.0} µs of the consumer and {:.0} µs of PostgreSQL a message, {:.0} paid twice",
                median_of(runs, |r| r.cpu_us),
                median_of(runs, |r| r.server_cpu_us),
                median_of(runs, |r| r.doubled as f64)
            )
        };
        let (without_it, with_it) = (rates(&without), rates(&with));
        measures.push(
            Measure::of_runs(what, Unit::PerSecond, &without_it, &with_it, Target::None).note(
                format!("{}; without the inbox {}", cost(&with), cost(&without)),
            ),
        );
    }
    measures.extend(growth::run(bench, &site).await?);
    Ok(measures)
}
