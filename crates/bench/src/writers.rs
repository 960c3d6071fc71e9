//! What producers pay: sixteen of them at full speed, by pgbench.

use std::time::Duration;

use test_support::Result;
use tokio_postgres::Client;

use crate::{
    outbox::{BODY, Outbox},
    relay::DEFAULTS,
    report::{Measure, Target, Unit},
    stage::{Queue, SOON},
    statistics::each,
    workload::Bench,
};

const WRITERS: usize = 16;

/// A table of the same columns with its primary key, and the same with a notification at every commit.
const TABLES: &str = "
CREATE SCHEMA plain;
CREATE TABLE plain.message (LIKE outbox.message INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING GENERATED INCLUDING INDEXES);
CREATE SCHEMA notified;
CREATE TABLE notified.message (LIKE outbox.message INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING GENERATED INCLUDING INDEXES);
CREATE FUNCTION notified.wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('notified', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER wake AFTER INSERT ON notified.message FOR EACH STATEMENT EXECUTE FUNCTION notified.wake();
";

pub async fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "writers").await?;
    outbox.client.batch_execute(TABLES).await?;
    let write = async |table: &str| -> Result<f64> {
        outbox.clear().await?;
        for statement in [
            "TRUNCATE plain.message, notified.message",
            "VACUUM (ANALYZE) outbox.message",
            "CHECKPOINT",
        ] {
            outbox.client.batch_execute(statement).await?;
        }
        pgbench(bench, &outbox, table).await
    };
    let (plain, turns) = bench
        .in_turns(
            "writers",
            async || write("plain.message").await,
            async || {
                let without = write("outbox.message").await?;
                outbox.clear().await?;
                outbox.settle_down().await?;
                let relayed = relayed(bench, &outbox).await?;
                let listener: Client = stage.postgres.connect(outbox.database).await?;
                listener.batch_execute("LISTEN notified").await?;
                Ok([without, relayed, write("notified.message").await?])
            },
        )
        .await?;
    let measure = |what: &str, i: usize, target| {
        let rates = each(&turns, |turn| turn[i]);
        Measure::of_runs(what, Unit::TransactionsPerSecond, &plain, &rates, target)
    };
    let notified = "writers, plain table with an unconditional NOTIFY";
    Ok(vec![
        measure("writers, no relay", 0, Target::RatioAtLeast(0.85))
            .note(format!("{WRITERS} writers, one insert a transaction")),
        measure("writers, with a running relay", 1, Target::None),
        measure(notified, 2, Target::None),
    ])
}

/// Beside a relay that publishes what is written; to the end, and nothing is missing.
async fn relayed(bench: &Bench, outbox: &Outbox) -> Result<f64> {
    let stage = &bench.stage;
    stage.queue(Queue::Quorum).await?;
    let relay = stage.relay(outbox, DEFAULTS).await?;
    let run = pgbench(bench, outbox, "outbox.message").await?;
    outbox.until_sent(SOON * 5).await?;
    relay.stop().await?;
    outbox.none_failed().await?;
    let count = "SELECT count(*) FROM outbox.message";
    let written = outbox.client.query_one(count, &[]).await?;
    stage
        .queued(usize::try_from(written.get::<_, i64>(0))?)
        .await?;
    Ok(run)
}

/// Transactions a second.
async fn pgbench(bench: &Bench, outbox: &Outbox, table: &str) -> Result<f64> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(
        script.path(),
        format!(
            "\\set key random(1, {})\n\
             INSERT INTO {table} (aggregate_type, aggregate_id, event_type, payload, headers) VALUES \
             ('order', :key::int::text, 'created', '{{\"id\":           1,\"pad\":\"{}\"}}', \
             '{{\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}}');\n",
            bench.sizes.keys,
            "x".repeat(BODY - 28)
        ),
    )?;
    let seconds = bench.sizes.writers.as_secs().max(1);
    let (clients, length) = (WRITERS.to_string(), seconds.to_string());
    let mut command =
        tokio::process::Command::from(bench.stage.postgres.program("pgbench", outbox.database));
    command
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args(["--client", &clients, "--time", &length, "--file"])
        .arg(script.path())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(seconds) + SOON, command.output())
        .await
        .map_err(|_| "pgbench did not end")?
        .map_err(|e| format!("pgbench: {e}; Debian's package postgresql has it"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.lines().find_map(|line| {
        let (n, _) = line
            .strip_prefix("number of failed transactions: ")?
            .split_once(' ')?;
        n.parse::<u64>().ok()
    });
    if !output.status.success() || failed.is_some_and(|n| n > 0) {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pgbench: {}\n{text}{errors}", output.status).into());
    }
    let rate = |line: &str| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok();
    Ok(text
        .lines()
        .find_map(rate)
        .ok_or("pgbench printed no \"tps =\"")?)
}
