//! What producers pay: sixteen of them at full speed, by pgbench.

use std::time::Duration;

use test_support::Result;
use tokio_postgres::Client;

use crate::{
    drain::neighbours,
    outbox::{BODY, Outbox},
    relay::DEFAULTS,
    report::{Findings, Measure, Target, Unit},
    stage::{Queue, SOON},
    statistics::median_of,
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

/// One run of the writers.
struct Run {
    per_second: f64,
    /// Cores that were busy: the writers, PostgreSQL, the relay, RabbitMQ.
    cores: [f64; 4],
}

/// Everything of one turn.
struct Turn {
    outbox: Run,
    relayed: Run,
    notified: Run,
}

pub async fn run(bench: &Bench) -> Result<Findings> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "writers").await?;
    outbox.client.batch_execute(TABLES).await?;
    let write = async |table: &str| -> Result<Run> {
        outbox.clear().await?;
        for statement in [
            "TRUNCATE plain.message, notified.message",
            "VACUUM (ANALYZE) outbox.message",
            "CHECKPOINT",
        ] {
            outbox.client.batch_execute(statement).await?;
        }
        pgbench(bench, &outbox, table, None).await
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
                let notified = write("notified.message").await?;
                Ok(Turn {
                    outbox: without,
                    relayed,
                    notified,
                })
            },
        )
        .await?;
    let baseline = median_of(&plain, |run| run.per_second);
    let plain_rates: Vec<f64> = plain.iter().map(|run| run.per_second).collect();
    let measure = |what: &str, pick: fn(&Turn) -> &Run, target| {
        let rate = median_of(&turns, |turn| pick(turn).per_second);
        let rates: Vec<f64> = turns.iter().map(|turn| pick(turn).per_second).collect();
        let cores = [0, 1, 2, 3].map(|i| median_of(&turns, |turn| pick(turn).cores[i]));
        let unit = Unit::TransactionsPerSecond;
        Measure::new(what, unit, Some(baseline), rate, target)
            .note(neighbours(&plain_rates, &rates))
            .note(busy(cores))
    };
    let cores = [0, 1, 2, 3].map(|i| median_of(&plain, |run| run.cores[i]));
    let least = Target::RatioAtLeast(0.85);
    Ok(vec![
        measure("writers, no relay", |turn| &turn.outbox, least).note(format!(
            "{WRITERS} writers, one insert a transaction; plain: {}",
            busy(cores)
        )),
        measure(
            "writers, with a running relay",
            |turn| &turn.relayed,
            Target::None,
        ),
        measure(
            "writers, plain table with an unconditional NOTIFY",
            |turn| &turn.notified,
            Target::None,
        ),
    ]
    .into())
}

fn busy([writers, postgres, relay, broker]: [f64; 4]) -> String {
    format!(
        "busy cores: pgbench {writers:.2}, PostgreSQL {postgres:.2}, relay {relay:.2}, RabbitMQ {broker:.2}"
    )
}

/// Beside a relay that publishes what is written; to the end, and nothing is missing.
async fn relayed(bench: &Bench, outbox: &Outbox) -> Result<Run> {
    let stage = &bench.stage;
    stage.queue(Queue::Quorum).await?;
    let relay = stage.relay(outbox, DEFAULTS).await?;
    let run = pgbench(bench, outbox, "outbox.message", Some(&relay)).await?;
    let sent = "SELECT NOT EXISTS (SELECT FROM outbox.message WHERE sent_at IS NULL)";
    outbox
        .until("what was written is sent", sent, SOON * 5)
        .await?;
    relay.stop().await?;
    outbox.none_failed().await?;
    let written = outbox
        .client
        .query_one("SELECT count(*) FROM outbox.message", &[])
        .await?;
    stage
        .queued(usize::try_from(written.get::<_, i64>(0))?)
        .await?;
    Ok(run)
}

async fn pgbench(
    bench: &Bench,
    outbox: &Outbox,
    table: &str,
    relay: Option<&crate::relay::Relay>,
) -> Result<Run> {
    let stage = &bench.stage;
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
        tokio::process::Command::from(stage.postgres.program("pgbench", outbox.database));
    command
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args(["--client", &clients, "--time", &length, "--file"])
        .arg(script.path())
        .kill_on_drop(true);
    let used = || -> Result<[f64; 3]> {
        Ok([
            stage.server_cpu_seconds()?,
            relay.map_or(Ok(0.0), crate::relay::Relay::cpu_seconds)?,
            stage.broker_cpu_seconds()?,
        ])
    };
    let before = used()?;
    let own_before = children_seconds()?;
    let output = tokio::time::timeout(Duration::from_secs(seconds) + SOON, command.output())
        .await
        .map_err(|_| "pgbench did not end")?
        .map_err(|e| format!("pgbench: {e}; Debian's package postgresql has it"))?;
    let after = used()?;
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
    let per_second = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .ok_or("pgbench printed no \"tps =\"")?;
    let each = |n: usize| (after[n] - before[n]) / seconds as f64;
    let pgbench = (children_seconds()? - own_before) / seconds as f64;
    Ok(Run {
        per_second,
        cores: [pgbench, each(0), each(1), each(2)],
    })
}

/// Of this process's children that have ended.
fn children_seconds() -> Result<f64> {
    crate::process::waited_for_seconds(std::process::id())
}
