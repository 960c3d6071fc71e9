//! One connection to PostgreSQL on which nothing waits for ever.
//!
//! tokio-postgres has no query timeout, and a dropped future does not cancel its statement. So every await here is
//! bounded, the server is given the same bounds (`statement_timeout`, `lock_timeout`,
//! `idle_in_transaction_session_timeout`), and after a timeout the session is not to be used again: whether the
//! statement ran is unknown.
//! <https://www.postgresql.org/docs/current/runtime-config-client.html>

use std::{
    collections::HashMap,
    future::Future,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::TryStreamExt;
use tokio::task::AbortHandle;
use tokio_postgres::{
    AsyncMessage, Client, Row, Statement, config::SslMode, types::ToSql, types::Type,
};
use tokio_util::sync::CancellationToken;

use super::{OutboxError, hosts};
use crate::config::Database;

pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A statement of `sql/`, with its parameters' types: without prepared statements (PgBouncer in transaction mode)
/// they must be said.
pub struct Query {
    pub action: &'static str,
    pub sql: &'static str,
    pub types: &'static [Type],
}

pub struct Session {
    client: Client,
    driver: AbortHandle,
    closed: CancellationToken,
    /// `None`: every statement is sent whole, unnamed.
    prepared: Option<Mutex<HashMap<&'static str, Statement>>>,
    /// What a pooled connection must be told in each transaction; empty when the session was told once.
    begin: String,
    patience: Duration,
}

/// Pins the plans: a batch is a few hundred index probes, and a plan that sorts a lane or compiles itself costs
/// more than the batch.
const PLANNER: &str = "jit = off; enable_bitmapscan = off; enable_seqscan = off; plan_cache_mode = force_generic_plan";

/// How long past the server's own timeouts an answer may take before the connection is given up.
const GRACE: Duration = Duration::from_secs(5);

impl Session {
    /// Connects, within twice `connect_timeout` for each server, and sets the session up. `name` shows in `pg_stat_activity`.
    pub async fn connect(database: &Database, name: &str) -> Result<Self, OutboxError> {
        Self::connect_with_notifications(database, name, None).await
    }

    pub async fn connect_with_notifications(
        database: &Database,
        name: &str,
        notifications: Option<tokio::sync::mpsc::Sender<()>>,
    ) -> Result<Self, OutboxError> {
        let action = "connect";
        let mut config = database.current()?;
        config
            .application_name(name)
            .connect_timeout(database.connect_timeout);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        config.tcp_user_timeout(database.statement_timeout + GRACE);
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => crate::tls::no_postgres_tls()?,
            _ => crate::tls::postgres_tls(
                database.ca_file.as_deref(),
                database
                    .cert_file
                    .as_deref()
                    .zip(database.key_file.as_deref()),
            )?,
        };
        // Twice: the driver's own bound is for the TCP connect alone, not for what follows it.
        let within = database.connect_timeout * 2;
        let (client, mut connection) = hosts::connect(&config, &tls, within).await?;

        let closed = CancellationToken::new();
        let on_close = closed.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _on_close = on_close;
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    // A full channel already holds a wake-up.
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        if let Some(sender) = &notifications {
                            let _ = sender.try_send(());
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::debug!(error = %error, "PostgreSQL connection ended");
                        return;
                    }
                    None => return,
                }
            }
        })
        .abort_handle();

        let ms = |d: Duration| d.as_millis();
        let settings = format!(
            "search_path = pg_catalog; statement_timeout = {}; lock_timeout = {}; \
             idle_in_transaction_session_timeout = {}; {PLANNER}",
            ms(database.statement_timeout),
            ms(database.lock_timeout),
            ms(database.idle_in_transaction_timeout),
        );
        let set = |word: &str| {
            settings
                .split("; ")
                .map(|s| format!("{word} {s}; "))
                .collect::<String>()
        };
        let session = Self {
            client,
            driver,
            closed,
            prepared: database.prepared_statements.then(Mutex::default),
            begin: if database.prepared_statements {
                "BEGIN".to_owned()
            } else {
                format!("BEGIN; {}", set("SET LOCAL"))
            },
            patience: database.statement_timeout + GRACE,
        };
        if database.prepared_statements {
            session.batch(action, &set("SET")).await?;
        }
        Ok(session)
    }

    /// Resolves when the server or the network ends the connection.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub async fn begin(&self) -> Result<(), OutboxError> {
        self.batch("begin", &self.begin).await
    }

    /// Only for a transaction in which no statement failed: COMMIT of a failed one answers ROLLBACK, without error.
    pub async fn commit(&self) -> Result<(), OutboxError> {
        self.batch("commit", "COMMIT").await
    }

    pub async fn rollback(&self) -> Result<(), OutboxError> {
        self.batch("rollback", "ROLLBACK").await
    }

    pub async fn query(&self, query: &Query, params: Params<'_>) -> Result<Vec<Row>, OutboxError> {
        let mut rows = Vec::new();
        let take = |row| {
            rows.push(row);
            Ok(())
        };
        self.each(query, params, take).await?;
        Ok(rows)
    }

    /// Row by row, each as it arrives: what `take` does not keep is not held.
    pub async fn each(
        &self,
        query: &Query,
        params: Params<'_>,
        mut take: impl FnMut(Row) -> Result<(), OutboxError>,
    ) -> Result<(), OutboxError> {
        let statement = self.statement(query).await?;
        let reading = async {
            let params = params.iter().copied();
            let rows = match &statement {
                Some(statement) => self.client.query_raw(statement, params).await?,
                None => {
                    let typed = params.zip(query.types.iter().cloned());
                    self.client.query_typed_raw(query.sql, typed).await?
                }
            };
            let mut rows = pin!(rows);
            while let Some(row) = rows.try_next().await? {
                if let Err(error) = take(row) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        };
        self.bounded(query.action, reading).await?
    }

    pub async fn execute(&self, query: &Query, params: Params<'_>) -> Result<u64, OutboxError> {
        match self.statement(query).await? {
            Some(statement) => {
                self.bounded(query.action, self.client.execute(&statement, params))
                    .await
            }
            None => {
                let typed: Vec<_> = params
                    .iter()
                    .copied()
                    .zip(query.types.iter().cloned())
                    .collect();
                self.bounded(query.action, self.client.execute_typed(query.sql, &typed))
                    .await
            }
        }
    }

    /// Several statements without parameters, in one message.
    pub async fn batch(&self, action: &'static str, sql: &str) -> Result<(), OutboxError> {
        self.bounded(action, self.client.batch_execute(sql)).await
    }

    async fn statement(&self, query: &Query) -> Result<Option<Statement>, OutboxError> {
        let Some(cache) = &self.prepared else {
            return Ok(None);
        };
        let cached = cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(query.sql)
            .cloned();
        if let Some(statement) = cached {
            return Ok(Some(statement));
        }
        let statement = self
            .bounded(
                query.action,
                self.client.prepare_typed(query.sql, query.types),
            )
            .await?;
        cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(query.sql, statement.clone());
        Ok(Some(statement))
    }

    async fn bounded<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(self.patience, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(OutboxError::Database { action, source }),
            Err(_) => {
                self.driver.abort();
                Err(OutboxError::Timeout {
                    action,
                    after: self.patience,
                })
            }
        }
    }
}

impl Drop for Session {
    /// Closes the socket at once; the server rolls back and frees the locks.
    fn drop(&mut self) {
        self.driver.abort();
    }
}
