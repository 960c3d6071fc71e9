//! What a message costs PostgreSQL: write-ahead log, and statements.

use test_support::{Proxy, Result};

use crate::{
    flow,
    outbox::{Batch, Filled, Outbox, frequent},
    relay::{DEFAULTS, Settings},
    report::{Measure, Target, Unit},
    stage::{Queue, Stage},
    statistics::{median, median_of},
    workload::Bench,
};

const DELETING: Settings = &[("OUTBOXD__RETENTION__SENT", "0s")];

/// Bytes of WAL a message, and the kinds of records that make most of them.
struct Wal {
    bytes: f64,
    kinds: String,
    /// Of all of PostgreSQL's processes, without the vacuum.
    cpu_us: f64,
}

pub async fn wal(bench: &Bench) -> Result<Vec<Measure>> {
    let outbox = Outbox::new(&bench.stage, "wal").await?;
    // Full-page images depend on when the last checkpoint was, and a record with one leaves its own data out.
    for statement in [
        "CREATE EXTENSION pg_walinspect",
        "ALTER SYSTEM SET full_page_writes = off",
        "ALTER SYSTEM SET wal_keep_size = '1GB'",
        "SELECT pg_reload_conf()",
    ] {
        outbox
            .client
            .batch_execute(statement)
            .await
            .map_err(|e| format!("{statement}: {e} (pg_walinspect comes with PostgreSQL 15)"))?;
    }
    let measured = Box::pin(lives(bench, &outbox)).await;
    // Whatever came of it: the workloads after this one are not to run without.
    for statement in [
        "ALTER SYSTEM RESET full_page_writes",
        "ALTER SYSTEM RESET wal_keep_size",
        "SELECT pg_reload_conf()",
    ] {
        outbox.client.batch_execute(statement).await?;
    }
    measured
}

/// What is done to a message, by what it writes to the log.
struct Life {
    insert: Wal,
    mark: Wal,
    delete: Wal,
    prune: Wal,
}

async fn lives(bench: &Bench, outbox: &Outbox) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let n = bench.sizes.counted;
    let batch = Batch::new(n, bench.sizes.keys);
    let relayed = async |settings: Settings| -> Result<Wal> {
        let filled = outbox.fill(&batch).await?;
        stage.queue(Queue::Quorum).await?;
        let wal = written(stage, outbox, n, async || {
            if settings == DELETING {
                flow::part(stage, outbox, n, settings).await?;
            } else {
                flow::drain(stage, outbox, &filled, settings).await?;
            }
            Ok(())
        })
        .await?;
        let expected = if settings == DELETING { 0 } else { n };
        holds(outbox, &filled, expected).await?;
        outbox.none_failed().await?;
        stage.queued(n).await?;
        Ok(wal)
    };
    let inserted = async || -> Result<Wal> {
        outbox.clear().await?;
        written(stage, outbox, n, async || {
            outbox.add(&batch).await?;
            Ok(())
        })
        .await
    };
    let pruned = async || -> Result<Wal> {
        outbox.clear().await?;
        let filled = outbox.add_history(&batch).await?;
        outbox.settle_down().await?;
        let prune = ["prune", "--older-than", "1m"];
        let wal = written(stage, outbox, n, async || {
            stage.command(outbox, &prune).await?;
            Ok(())
        })
        .await?;
        holds(outbox, &filled, 0).await?;
        Ok(wal)
    };
    let (plain, relays) = bench
        .in_turns(
            "wal",
            async || {
                outbox.fill(&batch).await?;
                written(stage, outbox, n, async || read_and_delete(outbox).await).await
            },
            async || {
                Ok(Life {
                    insert: inserted().await?,
                    mark: relayed(DEFAULTS).await?,
                    delete: relayed(DELETING).await?,
                    prune: pruned().await?,
                })
            },
        )
        .await?;
    let baseline = median_of(&plain, |wal| wal.bytes);
    let plain_cpu = median_of(&plain, |wal| wal.cpu_us);
    let measure = |what: &str, baseline: Option<f64>, target: Target, pick: fn(&Life) -> &Wal| {
        let bytes = median_of(&relays, |life| pick(life).bytes);
        let cpu = median_of(&relays, |life| pick(life).cpu_us);
        let measure = Measure::new(what, Unit::Bytes, baseline, bytes, target)
            .note(format!("PostgreSQL's CPU a message: {cpu:.1} µs"));
        match relays.first() {
            Some(first) => measure.note(pick(first).kinds.clone()),
            None => measure,
        }
    };
    let plain_kinds = plain.first().map_or("", |wal| wal.kinds.as_str());
    let (relative, most) = (Some(baseline), Target::RatioAtMost);
    Ok(vec![
        measure("wal, marking", relative, most(1.5), |life| &life.mark).note(format!(
            "a message, of {n}; baseline: batches of 500 of a lane are read and deleted ({plain_kinds}), \
             PostgreSQL's CPU {plain_cpu:.1} µs"
        )),
        measure("wal, deleting (retention.sent = \"0s\")", relative, most(1.1), |life| &life.delete),
        measure("wal, insert", None, Target::None, |life| &life.insert)
            .note("a body of 512 bytes is in it; its transaction's end, 34 bytes or more, is not"),
        measure("wal, retention", None, Target::None, |life| &life.prune)
            .note("of rows that were inserted as sent"),
    ])
}

/// An error unless so many of the messages are there.
async fn holds(outbox: &Outbox, filled: &Filled, expected: usize) -> Result<()> {
    let (there, ..) = outbox.sent(filled).await?;
    if there == expected {
        Ok(())
    } else {
        Err(format!("{there} rows are left, not {expected}").into())
    }
}

/// What `work`, and the vacuum after it, write to the log.
async fn written(
    stage: &Stage,
    outbox: &Outbox,
    n: usize,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<Wal> {
    let now = async || -> Result<String> {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        Ok(outbox.client.query_one(sql, &[]).await?.get(0))
    };
    let from = now().await?;
    let cpu = stage.server_cpu_seconds()?;
    work().await?;
    let cpu = stage.server_cpu_seconds()? - cpu;
    outbox
        .client
        .batch_execute("VACUUM outbox.message, outbox.lane, outbox.waiting")
        .await?;
    let to = now().await?;
    // Only what has reached the disk can be looked at.
    let flush = "SELECT pg_switch_wal()";
    outbox.client.batch_execute(flush).await?;
    let sql = "SELECT \"resource_manager/record_type\", record_size::double precision \
               FROM pg_get_wal_stats($1::text::pg_lsn, $2::text::pg_lsn, true) ORDER BY 2 DESC";
    let rows = outbox.client.query(sql, &[&from, &to]).await?;
    let each = |bytes: f64| bytes / n as f64;
    let kinds: Vec<String> = rows
        .iter()
        .take(4)
        .map(|row| format!("{} {:.0} B", row.get::<_, String>(0), each(row.get(1))))
        .collect();
    Ok(Wal {
        bytes: each(rows.iter().map(|row| row.get::<_, f64>(1)).sum()),
        kinds: kinds.join(", "),
        cpu_us: each(cpu * 1e6),
    })
}

/// What a queue in a table cannot do without: read the rows, delete them, commit.
async fn read_and_delete(outbox: &Outbox) -> Result<()> {
    const BATCH: i64 = 500;
    let client = &outbox.client;
    let read = client
        .prepare("SELECT * FROM outbox.message WHERE lane = $1 AND id > $2 ORDER BY id LIMIT $3")
        .await?;
    let delete = client
        .prepare("DELETE FROM outbox.message WHERE lane = $1 AND id = ANY ($2)")
        .await?;
    for lane in 0..64_i16 {
        let mut after = 0_i64;
        loop {
            let rows = client.query(&read, &[&lane, &after, &BATCH]).await?;
            let ids: Vec<i64> = rows.iter().map(|row| row.get("id")).collect();
            let Some(last) = ids.last() else { break };
            after = *last;
            client.execute(&delete, &[&lane, &ids]).await?;
        }
    }
    Ok(())
}

pub async fn round_trips(bench: &Bench) -> Result<Vec<Measure>> {
    let stage = &bench.stage;
    let mut outbox = Outbox::new(stage, "roundtrips").await?;
    let direct = stage.postgres.port();
    let proxy = Proxy::start(([127, 0, 0, 1], direct).into()).await?;
    let port = |port: u16| format!(":{port}/");
    outbox.url = outbox.url.replace(&port(direct), &port(proxy.port()));
    outbox.count_statements().await?;
    let batch = Batch::new(bench.sizes.drain, bench.sizes.keys);
    let n = batch.n as f64;
    let (mut turns, mut counted) = (Vec::new(), Vec::new());
    let mut statements = Vec::new();
    for run in 1..=bench.sizes.runs {
        bench.say(&format!("roundtrips: run {run} of {}", bench.sizes.runs));
        outbox.forget_statements().await?;
        let before = proxy.turns();
        bench
            .drained(&outbox, &batch, Queue::Quorum, DEFAULTS)
            .await?;
        turns.push((proxy.turns() - before) as f64 / n);
        statements = outbox.statements().await?;
        counted.push(statements.iter().map(|(_, calls)| calls).sum::<f64>() / n);
    }
    let target = Target::AtMost(0.01);
    Ok(vec![
        Measure::new("roundtrips", Unit::Number, None, median(&turns), target)
            .note(format!(
                "times a message that the relay spoke to PostgreSQL after it had answered, counted on the wire, the start of the \
                 relay and its polls included, of {}; {:.4} statements, by pg_stat_statements",
                batch.n,
                median(&counted)
            ))
            .note(frequent(&statements, n)),
    ])
}
