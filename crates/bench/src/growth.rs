//! An inbox with a history: its size, what a message costs beside it, and what forgetting a day costs.

use std::time::{Duration, Instant};

use outbox::inbox::{Claimed, Inbox, Operation};
use test_support::Result;

use crate::{
    consumers::{CONSUMER, Kind, Progress, Site},
    load::Load,
    report::{Measure, Target, Unit},
    statistics::percentile,
    workload::Bench,
};

/// As long as `ConsumerOptions::retention` remembers.
const DAYS: u64 = 14;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Rows that one step deletes, as in the runner.
const STEP: u32 = 1000;
const CLAIMS: usize = 2000;

pub async fn run(bench: &Bench, fresh: &Site<'_>) -> Result<Vec<Measure>> {
    let (keys, messages) = (bench.sizes.large, bench.sizes.inbox);
    let old = Site::new(&bench.stage, "history").await?;
    bench.say(&format!("inbox: writing a history of {keys} keys"));
    insert(&old, keys, DAYS).await?;
    let analyze = "VACUUM (ANALYZE) inbox.message";
    old.client.batch_execute(analyze).await?;
    let size = sizes(&old).await?;
    let load = Load::new(messages, 0.0);
    let run = async |site: &Site<'_>| -> Result<(Vec<f64>, f64)> {
        let claims = claims(site).await?;
        let run = site.consume(Kind::Inbox, &load, async |_| Ok(()));
        Ok((claims, run.await?.per_second))
    };
    let (at_first, now) = bench
        .in_turns(
            "inbox, with a history",
            async || {
                fresh.forget().await?;
                run(fresh).await
            },
            async || run(&old).await,
        )
        .await?;
    let (claims_at_first, at_first): (Vec<_>, Vec<_>) = at_first.into_iter().unzip();
    let (claims_now, now): (Vec<_>, Vec<_>) = now.into_iter().unzip();

    bench.say("inbox: a day is pruned alone, then days beside a consumer, as long as it takes");
    let alone = prune(&old, 1, || true).await?;
    let run = old.consume(Kind::Inbox, &load, async |_| Ok(()));
    let undisturbed = run.await?.per_second;
    let (mut beside, mut disturbed) = (Pruned::default(), f64::NAN);
    old.consume(Kind::Inbox, &load, async |progress: &Progress| {
        progress.started().await;
        let (began, before) = (Instant::now(), progress.begun());
        beside = prune(&old, DAYS - 2, || progress.begun() < messages).await?;
        disturbed = (progress.begun() - before) as f64 / began.elapsed().as_secs_f64();
        Ok(())
    })
    .await?;

    // What was deleted leaves room for what comes: index pages that one vacuum empties are free after the next.
    for _ in 0..2 {
        old.client.batch_execute("VACUUM inbox.message").await?;
    }
    insert(&old, alone.rows + beside.rows, 0).await?;
    old.client.batch_execute("VACUUM inbox.message").await?;
    let again = sizes(&old).await?;

    let sum = |sizes: &[(String, f64)]| sizes.iter().map(|(_, bytes)| bytes).sum::<f64>();
    let parts: Vec<String> = size
        .iter()
        .map(|(what, bytes)| format!("{what} {:.0} B", bytes / keys as f64))
        .collect();
    let measure = |what, unit, baseline, measured| {
        Measure::new(
            format!("inbox, {what}"),
            unit,
            baseline,
            measured,
            Target::None,
        )
    };
    let claim = |what, p| {
        let (before, now) = (claims_at_first.concat(), claims_now.concat());
        let before = Some(percentile(&before, p));
        measure(what, Unit::Milliseconds, before, percentile(&now, p))
    };
    let beside_history = "inbox, with a history";
    Ok(vec![
        measure("disk of a key", Unit::Bytes, None, sum(&size) / keys as f64)
            .note(format!("{keys} keys of {DAYS} days: {}", parts.join(", ")))
            .note(format!(
                "{:+.1} % after {} were pruned and as many new ones came",
                (sum(&again) / sum(&size) - 1.0) * 100.0,
                alone.rows + beside.rows
            )),
        Measure::of_runs(
            beside_history,
            Unit::PerSecond,
            &at_first,
            &now,
            Target::None,
        )
        .note("beside an inbox that has seen nothing"),
        claim("a claim with a history, p50", 0.5),
        claim("a claim with a history, p99", 0.99),
        measure(
            "beside the pruning",
            Unit::PerSecond,
            Some(undisturbed),
            disturbed,
        )
        .note(format!(
            "{STEP} rows a step: {}; alone {}",
            beside.said(),
            alone.said()
        )),
    ])
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

#[derive(Default)]
struct Pruned {
    rows: usize,
    /// Milliseconds of each step.
    steps: Vec<f64>,
}

impl Pruned {
    fn said(&self) -> String {
        format!(
            "{} rows, {:.0}/s, a step {:.1} ms (p50) and {:.1} ms at most",
            self.rows,
            self.rows as f64 * 1e3 / self.steps.iter().sum::<f64>(),
            percentile(&self.steps, 0.5),
            percentile(&self.steps, 1.0)
        )
    }
}

/// Forgets the oldest days, step by step, while `more` says so.
async fn prune(site: &Site<'_>, days: u64, more: impl Fn() -> bool) -> Result<Pruned> {
    let client = site.stage.postgres.connect(site.database).await?;
    let inbox = Inbox::new(CONSUMER)?;
    let age = DAY * u32::try_from(DAYS - days)?;
    let mut pruned = Pruned::default();
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

/// Bytes on disk, of the table and of each index.
async fn sizes(site: &Site<'_>) -> Result<Vec<(String, f64)>> {
    let sql = "SELECT 'table', pg_table_size('inbox.message')::float8 UNION ALL \
               SELECT indexrelid::regclass::text, pg_relation_size(indexrelid)::float8 FROM pg_index \
               WHERE indrelid = 'inbox.message'::regclass";
    let rows = site.client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
