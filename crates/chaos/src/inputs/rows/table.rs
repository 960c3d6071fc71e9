//! The rows of one case, written and judged.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use checker::sha256;
use test_support::{Daemon, eventually};
use tokio_postgres::Client;
use uuid::Uuid;

use super::specimens::{
    End::{self, Dead, Delivered, Waits},
    Variant,
};
use crate::{
    arena::{DATABASE, SOON, Setup},
    inputs::stage::{harms, unharmed},
    pace,
    row::{Outcome, Result, expect, within},
    stage::Stage,
};

/// A message of another key is delivered within this, whatever stands before it.
const PROMPT: Duration = Duration::from_secs(10);

/// A row that was committed.
pub struct Written {
    columns: String,
    pub message_id: Uuid,
    /// Of the body that the producer wrote.
    sha256: String,
    pub end: End,
}

/// The rows of one case, on the stage.
pub struct Table<'a> {
    setup: &'a Setup,
    pub stage: &'a Stage,
    pub client: Client,
    /// Of this case alone.
    aggregate_type: &'static str,
    /// With settings of this case; else the stage's relay.
    own_relay: Option<Daemon>,
    /// Harms of the relay before this case.
    harmed_before: usize,
    pub written: Vec<Written>,
    healthy: Vec<Uuid>,
}

pub async fn judged(
    setup: &Setup,
    aggregate_type: &'static str,
    variants: &[Variant],
) -> Result<Outcome> {
    let mut table = Table::new(setup, aggregate_type).await?;
    for (columns, end) in variants {
        table.insert(columns, *end).await?;
    }
    table.judged().await
}

impl<'a> Table<'a> {
    pub async fn new(setup: &'a Setup, aggregate_type: &'static str) -> Result<Self> {
        let stage = setup.stage.get(setup).await?;
        Ok(Self {
            setup,
            stage,
            client: stage.postgres.connect(DATABASE).await?,
            aggregate_type,
            own_relay: None,
            harmed_before: harms(&stage.relay).len(),
            written: Vec::new(),
            healthy: Vec::new(),
        })
    }

    /// From here on, a database and a relay of this case alone, with one more setting.
    pub async fn apart(&mut self, database: &str, setting: (&str, &str)) -> Result<()> {
        let stage = self.stage;
        self.setup.plan().another(&stage.postgres, database).await?;
        self.client = stage.postgres.connect(database).await?;
        let url = stage.postgres.url_for("relay", "relay", database);
        let mut env = stage.env.clone();
        for (name, value) in [("DATABASE_URL", url.as_str()), setting] {
            env.push((name.to_owned(), value.to_owned()));
        }
        let (logs, program) = (&self.setup.logs, &self.setup.outboxd);
        let relay = logs.start("relay", program, &["run"], &env)?;
        relay.line("connected to both servers", SOON).await;
        self.own_relay = Some(relay);
        self.harmed_before = 0;
        Ok(())
    }

    /// A row with these columns, each of a key of its own unless they name one; then a healthy one of another key.
    pub async fn insert(&mut self, columns: &str, end: End) -> Result<()> {
        let key = format!("bad {}", self.written.len());
        let row = self
            .client
            .query_one(&self.statement(&key, columns), &[])
            .await
            .map_err(|error| format!("{columns}: {error:?}"))?;
        let body: Vec<u8> = row.get(1);
        self.written.push(Written {
            columns: columns.to_owned(),
            message_id: row.get(0),
            sha256: sha256(&body),
            end,
        });
        let healthy = self.statement("healthy", "");
        self.healthy
            .push(self.client.query_one(&healthy, &[]).await?.get(0));
        Ok(())
    }

    pub fn statement(&self, key: &str, columns: &str) -> String {
        let mut values = vec![
            ("aggregate_type", format!("'{}'", self.aggregate_type)),
            ("aggregate_id", format!("'{key}'")),
            ("event_type", "'x'".to_owned()),
            ("payload", "'{}'".to_owned()),
        ];
        for (column, value) in assignments(columns) {
            values.retain(|(known, _)| *known != column);
            values.push((column, value.to_owned()));
        }
        let (columns, values): (Vec<&str>, Vec<String>) = values.into_iter().unzip();
        format!(
            "INSERT INTO outbox.message ({}) VALUES ({}) \
             RETURNING message_id, coalesce(binary_payload, convert_to(payload::text, 'UTF8'))",
            columns.join(", "),
            values.join(", ")
        )
    }

    /// Each row came to its end, and nobody else was kept from theirs.
    pub async fn judged(self) -> Result<Outcome> {
        let healthy = self.healthy.iter().copied();
        let began = Instant::now();
        let missing = self.stage.deliveries.missing(healthy).await;
        let took = began.elapsed();
        expect(missing == 0, || {
            format!("{missing} healthy messages of another key did not arrive")
        })?;
        within(took, PROMPT, pace::slowness(began), || {
            "the healthy messages of another key arrived late".to_owned()
        })?;
        for row in &self.written {
            let ended = self.ended(row).await;
            ended.map_err(|error| format!("{}: {error}", shown(&row.columns)))?;
        }
        let relay = self.own_relay.as_ref().unwrap_or(&self.stage.relay);
        unharmed(relay, self.harmed_before)?;
        self.outcome()
    }

    pub async fn ended(&self, row: &Written) -> Result<()> {
        let id = row.message_id;
        match row.end {
            Dead(expected) => {
                let (reason, attempts) = self.death(id).await?;
                expect(reason == expected && attempts == 1, || {
                    format!("dead with {reason} after {attempts} attempts, not {expected} after 1")
                })?;
            }
            Delivered => {
                let missing = self.stage.deliveries.missing([id]).await;
                expect(missing == 0, || "it was not delivered".into())?;
            }
            Waits => {
                let sql =
                    "SELECT FROM outbox.waiting WHERE message_id = $1 AND cause = 'scheduled'";
                eventually("it to wait", SOON, async || {
                    (self.client.query(sql, &[&id]).await.ok()?.len() == 1).then_some(())
                })
                .await;
            }
        }
        let deliveries = self.stage.deliveries.seen();
        let seen: Vec<_> = deliveries.iter().filter(|d| d.message_id == id).collect();
        let allowed = usize::from(matches!(row.end, Delivered));
        expect(seen.len() == allowed, || {
            format!("it was delivered {} times", seen.len())
        })?;
        expect(seen.iter().all(|d| d.body_sha256 == row.sha256), || {
            "its body was changed".into()
        })
    }

    /// Reason and attempts.
    pub async fn death(&self, id: Uuid) -> Result<(String, i32)> {
        let sql = "SELECT reason, attempts FROM outbox.dead WHERE message_id = $1";
        let row = tokio::time::timeout(SOON, async {
            loop {
                if let Some(row) = self.client.query_opt(sql, &[&id]).await? {
                    return Ok::<_, tokio_postgres::Error>(row);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .map_err(|_| format!("it is not dead after {SOON:?}"))??;
        Ok((row.get(0), row.get(1)))
    }

    /// Runs a command beside the relay.
    pub async fn command(&self, args: &[&str]) -> Result<String> {
        let ran = self
            .setup
            .outboxd(args, self.stage.env.iter().cloned())
            .await?;
        expect(ran.code == 0, || format!("{args:?}: {}", ran.said()))?;
        Ok(ran.said())
    }

    fn outcome(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let count =
            |fits: fn(&End) -> bool| self.written.iter().filter(|row| fits(&row.end)).count();
        let (dead, delivered) = (
            count(|end| matches!(end, Dead(_))),
            count(|end| matches!(end, Delivered)),
        );
        outcome.report.committed = self.written.len() + self.healthy.len();
        outcome.report.delivered = delivered + self.healthy.len();
        outcome.report.dead = dead;
        let reasons: HashSet<&str> = self
            .written
            .iter()
            .filter_map(|row| match row.end {
                Dead(reason) => Some(reason),
                Delivered | Waits => None,
            })
            .collect();
        let mut reasons: Vec<&str> = reasons.into_iter().collect();
        reasons.sort_unstable();
        let (waiting, variants) = (self.written.len() - dead - delivered, self.written.len());
        outcome.notes.push(format!(
            "{variants} variants: {delivered} delivered byte for byte, {waiting} waiting, {dead} dead {}",
            if dead == 0 { String::new() } else { format!("({})", reasons.join(", ")) }
        ));
        Ok(outcome)
    }
}

/// `a = x, b = y`: a comma begins another column only before a name and ` = `.
fn assignments(columns: &str) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    let mut rest = columns;
    while let Some((column, value)) = rest.split_once(" = ") {
        let end = value.match_indices(", ").map(|(at, _)| at).find(|at| {
            let next = value[at + 2..].split_once(" = ").map(|(name, _)| name);
            next.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        });
        let (value, after) = match end {
            Some(at) => (&value[..at], &value[at + 2..]),
            None => (value, ""),
        };
        found.push((column, value));
        rest = after;
    }
    found
}

/// The beginning of it.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::assignments;

    #[test]
    fn commas_within_a_value_do_not_end_it() {
        assert_eq!(
            assignments("a = f('x', 1), b_c = NULL, d = '{\"e\":1, \"f\":2}'"),
            [
                ("a", "f('x', 1)"),
                ("b_c", "NULL"),
                ("d", "'{\"e\":1, \"f\":2}'")
            ]
        );
        assert!(assignments("").is_empty());
    }
}
