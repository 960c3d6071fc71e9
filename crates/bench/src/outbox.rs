//! An outbox in a database of its own: filled, emptied, asked.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, distr::Alphanumeric, rngs::StdRng};
use test_support::Result;
use tokio_postgres::Client;

use crate::stage::Stage;

/// Bytes of a body, unless a workload says otherwise.
pub const BODY: usize = 512;
/// Of a body that are not its padding.
const FRAME: usize = 28;
/// Rows of one INSERT.
const PART: usize = 250_000;

pub struct Outbox {
    pub database: &'static str,
    pub client: Client,
    /// Where relays find it.
    pub url: String,
}

/// Messages to be written.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    pub n: usize,
    pub keys: usize,
    pub body: usize,
    /// Keys of two types never meet.
    pub aggregate_type: &'static str,
    pub exchange: Option<&'static str>,
}

impl Batch {
    pub fn new(n: usize, keys: usize) -> Self {
        Self {
            n,
            keys: keys.clamp(1, n.max(1)),
            body: BODY,
            aggregate_type: "order",
            exchange: None,
        }
    }
}

/// Messages that were written: all above a position.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    pub n: usize,
    after: i64,
}

/// The beginning of a statement, and how often it was called.
pub type Statement = (String, f64);

/// The most frequent ones, `per` something.
pub fn frequent(statements: &[Statement], per: f64) -> String {
    let shown = statements.iter().take(4);
    let shown: Vec<String> = shown
        .map(|(text, calls)| format!("`{text}` {:.4}", calls / per))
        .collect();
    shown.join(", ")
}

impl Outbox {
    pub async fn new(stage: &Stage, database: &'static str) -> Result<Self> {
        stage.postgres.create_database(database, "postgres").await?;
        let migration = std::fs::read_to_string("migrations/outbox/0001_outbox.sql")?;
        stage.postgres.execute(database, &migration).await?;
        Ok(Self {
            database,
            client: stage.postgres.connect(database).await?,
            url: stage.postgres.url(database),
        })
    }

    /// As if it had never held a message.
    pub async fn clear(&self) -> Result<()> {
        let sql = "SELECT pg_stat_reset(); \
                   TRUNCATE outbox.message, outbox.waiting, outbox.dead, outbox.relay; \
                   UPDATE outbox.lane SET low_water = 0, candidate = NULL, candidate_tx = NULL";
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Empties it, writes the batch, and lets PostgreSQL do what it would else do during the measurement.
    pub async fn fill(&self, batch: &Batch) -> Result<Filled> {
        self.clear().await?;
        let filled = self.add(batch).await?;
        self.settle_down().await?;
        Ok(filled)
    }

    pub async fn settle_down(&self) -> Result<()> {
        for statement in ["VACUUM (ANALYZE) outbox.message", "CHECKPOINT"] {
            self.client.batch_execute(statement).await?;
        }
        Ok(())
    }

    /// Writes the batch beside what is there.
    pub async fn add(&self, batch: &Batch) -> Result<Filled> {
        self.insert(batch, "NULL").await
    }

    /// Messages that were sent long ago, with the marks where a relay leaves them.
    pub async fn add_history(&self, batch: &Batch) -> Result<Filled> {
        let filled = self
            .insert(batch, "clock_timestamp() - interval '1 hour'")
            .await?;
        let sql = "UPDATE outbox.lane SET low_water = (SELECT max(id) FROM outbox.message)";
        self.client.batch_execute(sql).await?;
        Ok(filled)
    }

    async fn insert(&self, batch: &Batch, sent_at: &str) -> Result<Filled> {
        let after = self.position().await?;
        let sql = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers, exchange, sent_at) \
             SELECT $1, (i % $2)::text, 'created', \
                    ('{{\"id\":' || lpad(i::text, 12) || ',\"pad\":\"' || $3::text || '\"}}')::json, \
                    '{{\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}}'::json, $4, {sent_at} \
             FROM generate_series($5::int, $6::int) i"
        );
        let statement = self.client.prepare(&sql).await?;
        let keys = i32::try_from(batch.keys)?;
        let pad = padding(batch.body);
        for from in (0..batch.n).step_by(PART) {
            let to = i32::try_from((from + PART).min(batch.n))?;
            let from = i32::try_from(from + 1)?;
            let (aggregate_type, exchange) = (&batch.aggregate_type, &batch.exchange);
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [aggregate_type, &keys, &pad, exchange, &from, &to];
            self.client.execute(&statement, &parameters).await?;
        }
        Ok(Filled { n: batch.n, after })
    }

    /// The last position that was drawn.
    async fn position(&self) -> Result<i64> {
        let sql = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.message', 'id')), 0)::bigint";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }

    /// When the last of them was marked, by the database's clock. An error unless all of them are, each once, and nothing
    /// waits or is dead.
    pub async fn all_sent(&self, filled: &Filled) -> Result<f64> {
        self.none_failed().await?;
        self.last_mark(filled).await
    }

    /// The same, whatever became of other messages.
    pub async fn last_mark(&self, filled: &Filled) -> Result<f64> {
        let (there, sent, last) = self.sent(filled).await?;
        match last {
            Some(last) if there == filled.n && sent == filled.n => Ok(last),
            _ => Err(format!(
                "of {} messages {there} are there and {sent} are marked as sent; a rate of that means nothing",
                filled.n
            )
            .into()),
        }
    }

    /// Of the messages written: how many are there, how many are marked, and when the last one was.
    pub async fn sent(&self, filled: &Filled) -> Result<(usize, usize, Option<f64>)> {
        // By lane: the only index of the table begins with it.
        let sql = "SELECT sum(m.there)::bigint, sum(m.sent)::bigint, extract(epoch FROM max(m.last))::double precision \
                   FROM outbox.lane l CROSS JOIN LATERAL ( \
                       SELECT count(*) AS there, count(sent_at) AS sent, max(sent_at) AS last \
                       FROM outbox.message m WHERE m.lane = l.lane AND m.id > $1 AND m.id <= $2 \
                   ) m";
        let last = filled.after + i64::try_from(filled.n)?;
        let row = self.client.query_one(sql, &[&filled.after, &last]).await?;
        let count = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok((count(row.get(0)), count(row.get(1)), row.get(2)))
    }

    pub async fn none_failed(&self) -> Result<()> {
        let sql =
            "SELECT (SELECT count(*) FROM outbox.waiting), (SELECT count(*) FROM outbox.dead)";
        let row = self.client.query_one(sql, &[]).await?;
        let (waiting, dead): (i64, i64) = (row.get(0), row.get(1));
        if waiting + dead == 0 {
            return Ok(());
        }
        Err(format!(
            "{waiting} messages wait and {dead} are dead: `reason` and `last_error` in outbox.waiting and outbox.dead say why"
        )
        .into())
    }

    /// Waits until a running relay has sent all of them.
    pub async fn until_sent(&self, within: Duration) -> Result<()> {
        let sent = "SELECT NOT EXISTS (SELECT FROM outbox.message WHERE sent_at IS NULL)";
        self.until("every message is sent", sent, within).await
    }

    /// Asks until `sql` says true.
    pub async fn until(&self, what: &str, sql: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while !self.client.query_one(sql, &[]).await?.get::<_, bool>(0) {
            if Instant::now() > deadline {
                return Err(format!("{what}: not within {within:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Seconds since the epoch, by the database's clock.
    pub async fn now(&self) -> Result<f64> {
        let sql = "SELECT extract(epoch FROM clock_timestamp())::double precision";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }

    /// Statistics of a backend arrive when it next has nothing to do for a while.
    pub async fn statistics(&self, column: &str) -> Result<f64> {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sql = format!(
            "SELECT ({column})::double precision FROM pg_stat_user_tables \
             WHERE schemaname = 'outbox' AND relname = 'message'"
        );
        Ok(self.client.query_one(&sql, &[]).await?.get(0))
    }

    /// Counts the statements of sessions that begin from now on.
    pub async fn count_statements(&self) -> Result<()> {
        let sql = format!(
            "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; \
             ALTER DATABASE {} SET pg_stat_statements.track = 'top'",
            self.database
        );
        Ok(self.client.batch_execute(&sql).await?)
    }

    pub async fn forget_statements(&self) -> Result<()> {
        let sql = "SELECT pg_stat_statements_reset()";
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Statements of this database, the most frequent first.
    pub async fn statements(&self) -> Result<Vec<Statement>> {
        let sql = "SELECT left(regexp_replace(regexp_replace(query, '--[^\\n]*\\n', '', 'g'), '\\s+', ' ', 'g'), 60), \
                          sum(calls)::double precision \
                   FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                   GROUP BY 1 ORDER BY 2 DESC";
        let rows = self.client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// Large ones must not shrink when PostgreSQL compresses them.
fn padding(body: usize) -> String {
    let n = body.saturating_sub(FRAME);
    if body <= BODY {
        return "x".repeat(n);
    }
    let random = StdRng::seed_from_u64(1).sample_iter(Alphanumeric);
    random.take(n).map(char::from).collect()
}

/// The same body, for a publisher that has no outbox.
pub fn body(bytes: usize) -> Vec<u8> {
    format!("{{\"id\":{:>12},\"pad\":\"{}\"}}", 1, padding(bytes)).into_bytes()
}
