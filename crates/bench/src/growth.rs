//! An inbox with a history: its size, what a message costs beside it, and what forgetting a day costs.

use std::time::{Duration, Instant};

use outbox::inbox::{Claimed, Inbox, Operation};
use test_support::Result;

use crate::{
    consumers::{CONSUMER, Kind, Progress, Site},
    load::Load,
    stage::Stage,
    statistics::{median, percentile},
};

/// As long as `ConsumerOptions::retention` remembers.
const DAYS: u64 = 14;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Rows that one step deletes, as in the runner.
const STEP: u32 = 1000;
const CLAIMS: usize = 2000;

pub async fn run(
    stage: &Stage,
    fresh: &Site<'_>,
    keys: usize,
    messages: usize,
    runs: usize,
) -> Result<serde_json::Value> {
    let old = Site::new(stage, "history").await?;
    let began = Instant::now();
    insert(&old, keys, DAYS).await?;
    let inserted = began.elapsed().as_secs_f64();
    old.client
        .batch_execute("VACUUM (ANALYZE) inbox.message")
        .await?;
    let full = Size::of(&old).await?;
    println!(
        "\n{keys} keys over {DAYS} days, inserted in {inserted:.0} s\n\n| | size | a key |\n|---|---|---|"
    );
    for (what, bytes) in full.parts() {
        println!(
            "| {what} | {:.0} MiB | {:.0} B |",
            mib(bytes),
            bytes / keys as f64
        );
    }

    // Beside an empty one in turns: the machine may have other work.
    let load = Load::new(messages, 0.0);
    let (mut at_first, mut now) = (Vec::new(), Vec::new());
    let (mut claims_at_first, mut claims_now) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        fresh.forget().await?;
        claims_at_first.append(&mut claims(fresh).await?);
        claims_now.append(&mut claims(&old).await?);
        let run = fresh.consume(Kind::Inbox, &load, async |_| Ok(()));
        at_first.push(run.await?.per_second);
        let run = old.consume(Kind::Inbox, &load, async |_| Ok(()));
        now.push(run.await?.per_second);
    }
    let ratio = median(now.iter().zip(&at_first).map(|(n, f)| n / f).collect());
    let (at_first, now) = (median(at_first), median(now));
    let mut ms = |p| {
        (
            percentile(&mut claims_at_first, p),
            percentile(&mut claims_now, p),
        )
    };
    let (p50, p99) = (ms(0.5), ms(0.99));
    println!("\n| | empty | {keys} keys | ratio |\n|---|---|---|---|");
    println!("| consumed with the inbox | {at_first:.0}/s | {now:.0}/s | {ratio:.2} |");
    println!(
        "| one claim, p50 | {:.2} ms | {:.2} ms | {:.2} |",
        p50.0,
        p50.1,
        p50.1 / p50.0
    );
    println!(
        "| one claim, p99 | {:.2} ms | {:.2} ms | {:.2} |",
        p99.0,
        p99.1,
        p99.1 / p99.0
    );

    // A day alone, then days beside the consumer, as long as it takes.
    let alone = prune(&old, 1, || true).await?;
    let idle = prune(&old, 1, || true).await?;
    let mut beside = None;
    let mut during = (0, 0.0);
    let undisturbed = old
        .consume(Kind::Inbox, &load, async |_| Ok(()))
        .await?
        .per_second;
    old.consume(Kind::Inbox, &load, async |progress: &Progress| {
        progress.started().await;
        let (began, before) = (Instant::now(), progress.begun());
        let pruned = prune(&old, DAYS - 2, || progress.begun() < messages).await?;
        during = (progress.begun() - before, began.elapsed().as_secs_f64());
        beside = Some(pruned);
        Ok(())
    })
    .await?;
    let beside = beside.ok_or("nothing was pruned beside the consumer")?;
    let disturbed = during.0 as f64 / during.1;
    println!(
        "\n| pruning, {STEP} rows a step | rows | rows/s | a step, p50 | longest step | consumer meanwhile |\n|---|---|---|---|---|---|"
    );
    println!(
        "| a day, alone | {} | {:.0}/s | {:.1} ms | {:.1} ms | |",
        alone.rows,
        alone.per_second(),
        alone.p50(),
        alone.longest()
    );
    println!(
        "| beside the consumer | {} | {:.0}/s | {:.1} ms | {:.1} ms | {disturbed:.0}/s, undisturbed {undisturbed:.0}/s: {:.2} |",
        beside.rows,
        beside.per_second(),
        beside.p50(),
        beside.longest(),
        disturbed / undisturbed
    );
    println!(
        "| nothing is old enough | {} | | | {:.1} ms | |",
        idle.rows,
        idle.longest()
    );

    // What was deleted leaves room for what comes: index pages that one vacuum empties are free after the next.
    for _ in 0..2 {
        old.client.batch_execute("VACUUM inbox.message").await?;
    }
    let pruned = Size::of(&old).await?;
    insert(&old, alone.rows + beside.rows, 0).await?;
    old.client.batch_execute("VACUUM inbox.message").await?;
    let again = Size::of(&old).await?;
    println!(
        "\n| | before | pruned and vacuumed | as many new keys later | growth |\n|---|---|---|---|---|"
    );
    let sizes = full
        .parts()
        .into_iter()
        .zip(pruned.parts())
        .zip(again.parts());
    for (((what, before), (_, after)), (_, later)) in sizes {
        println!(
            "| {what} | {:.0} MiB | {:.0} MiB | {:.0} MiB | {:+.1} % |",
            mib(before),
            mib(after),
            mib(later),
            (later / before - 1.0) * 100.0
        );
    }
    Ok(serde_json::json!({
        "keys": keys, "bytes": full.parts(), "bytes_pruned": pruned.parts(), "bytes_refilled": again.parts(),
        "empty_per_second": at_first, "history_per_second": now, "ratio": ratio,
        "claim_p50_ms": p50, "claim_p99_ms": p99,
        "prune_alone": alone.report(), "prune_beside_consumer": beside.report(), "prune_nothing": idle.report(),
        "consumer_undisturbed_per_second": undisturbed, "consumer_beside_prune_per_second": disturbed,
    }))
}

/// As a consumer leaves them: random ids in the order of their time. Through the indexes, not before them: an index that
/// is built over sorted rows is denser than one that grew.
async fn insert(site: &Site<'_>, keys: usize, days: u64) -> Result<()> {
    /// Keys of a statement.
    const PART: usize = 100_000;
    let seconds = (DAY * u32::try_from(days)?).as_secs_f64();
    for part in (0..keys).step_by(PART) {
        let sql = "INSERT INTO inbox.message (consumer, idempotency_key, fingerprint, state, claimed_at) \
                   SELECT $1::text, gen_random_uuid()::text, sha256(int8send(i)), 'applied', \
                          clock_timestamp() - (1 - i::float8 / $4) * $5 * interval '1 second' \
                   FROM generate_series($2::bigint, $3::bigint) i";
        let (from, to) = (
            i64::try_from(part)?,
            i64::try_from((part + PART).min(keys) - 1)?,
        );
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&CONSUMER, &from, &to, &(keys as f64), &seconds];
        site.client.execute(sql, &parameters).await?;
    }
    Ok(())
}

/// What each claim of a new key took, in milliseconds.
async fn claims(site: &Site<'_>) -> Result<Vec<f64>> {
    let mut client = site.stage.postgres.connect(site.database).await?;
    let inbox = Inbox::new(CONSUMER)?;
    let mut took = Vec::with_capacity(CLAIMS);
    for _ in 0..CLAIMS {
        let key = uuid::Uuid::new_v4().to_string();
        let operation = Operation::new(key, "order_placed", "application/json", b"{}")?;
        let transaction = client.transaction().await?;
        let began = Instant::now();
        let claimed = inbox.claim(&transaction, &operation).await?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        transaction.commit().await?;
        if claimed != Claimed::First {
            return Err(format!("a new key was claimed as {claimed:?}").into());
        }
    }
    Ok(took)
}

struct Pruned {
    rows: usize,
    /// Milliseconds of each step.
    steps: Vec<f64>,
}

impl Pruned {
    fn per_second(&self) -> f64 {
        self.rows as f64 * 1e3 / self.steps.iter().sum::<f64>()
    }

    fn p50(&self) -> f64 {
        percentile(&mut self.steps.clone(), 0.5)
    }

    fn longest(&self) -> f64 {
        self.steps.iter().copied().fold(0.0, f64::max)
    }

    fn report(&self) -> serde_json::Value {
        serde_json::json!({
            "rows": self.rows, "per_second": self.per_second(), "step_p50_ms": self.p50(), "longest_step_ms": self.longest(),
        })
    }
}

/// Forgets the oldest days, step by step, while `more` says so.
async fn prune(site: &Site<'_>, days: u64, more: impl Fn() -> bool) -> Result<Pruned> {
    let client = site.stage.postgres.connect(site.database).await?;
    let inbox = Inbox::new(CONSUMER)?;
    let age = DAY * u32::try_from(DAYS - days)?;
    let mut pruned = Pruned {
        rows: 0,
        steps: Vec::new(),
    };
    while more() {
        let began = Instant::now();
        let rows = inbox.prune(&client, age, STEP).await?;
        pruned.steps.push(began.elapsed().as_secs_f64() * 1e3);
        pruned.rows += usize::try_from(rows)?;
        if rows < STEP {
            break;
        }
    }
    Ok(pruned)
}

/// Bytes on disk.
struct Size {
    table: f64,
    indexes: Vec<(String, f64)>,
}

impl Size {
    async fn of(site: &Site<'_>) -> Result<Self> {
        let sql = "SELECT pg_table_size('inbox.message')::float8";
        let table = site.client.query_one(sql, &[]).await?.get(0);
        let sql = "SELECT indexrelid::regclass::text, pg_relation_size(indexrelid)::float8 FROM pg_index \
                   WHERE indrelid = 'inbox.message'::regclass ORDER BY 1";
        let rows = site.client.query(sql, &[]).await?;
        let indexes = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Self { table, indexes })
    }

    fn parts(&self) -> Vec<(String, f64)> {
        let all = self.table + self.indexes.iter().map(|(_, bytes)| bytes).sum::<f64>();
        let mut parts = vec![("table".to_owned(), self.table)];
        parts.extend(self.indexes.iter().cloned());
        parts.push(("all".to_owned(), all));
        parts
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
