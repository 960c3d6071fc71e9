//! One connection to PostgreSQL on which every wait has a bound.
//!
//! tokio-postgres has no query timeout, and a dropped future does not cancel its statement. So every await here is bounded,
//! and the server gets the same bounds (`statement_timeout`, `lock_timeout`, `idle_in_transaction_session_timeout`). After a
//! timeout nobody knows whether the statement ran, so the session must not be used again. The session has its own values
//! for all other settings too: `outbox::settings`.
//! <https://www.postgresql.org/docs/current/runtime-config-client.html>

use std::{
    collections::HashMap,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use tokio::{sync::mpsc, task::AbortHandle};
use tokio_postgres::{
    AsyncMessage, Client, Row, SimpleQueryMessage, Statement, config::SslMode, types::ToSql,
    types::Type,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    OutboxError,
    error::{COMMIT, SET_UP},
    hosts,
    settings::{self, Scope, Setting},
};
use crate::config::Database;

pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A statement of `sql/`, with the types of its parameters: without prepared statements (PgBouncer in transaction mode) the
/// client must give the types.
pub struct Query {
    pub action: &'static str,
    pub sql: &'static str,
    pub types: &'static [Type],
}

pub struct Session {
    client: Client,
    driver: AbortHandle,
    closed: CancellationToken,
    /// `None`: the session sends every statement whole and unnamed. A statement outside a transaction gets its own transaction.
    prepared: Option<Mutex<HashMap<&'static str, Statement>>>,
    /// The text that begins a transaction. It contains all settings if a pooler would lose the session's settings.
    begin: String,
    /// A transaction is open.
    open: AtomicBool,
    patience: Duration,
}

/// Where a session reports the notifications that it receives.
#[derive(Clone)]
pub struct NotificationSink {
    /// If the channel is full, it already holds a wake-up.
    pub wake: mpsc::Sender<()>,
    pub received: Arc<AtomicU64>,
}

/// A database or a role may have another default. With it, a settle would fail with 40001 after its publishes, again and
/// again.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long after the server's own timeouts the session waits for an answer before it gives the connection up.
const GRACE: Duration = Duration::from_secs(5);

impl Session {
    /// Connects, within twice `connect_timeout` for each server, and sets the session up. `name` shows in `pg_stat_activity`.
    pub async fn connect(database: &Database, name: &str) -> Result<Self, OutboxError> {
        Self::connect_with_sink(database, name, None).await
    }

    pub async fn connect_with_sink(
        database: &Database,
        name: &str,
        sink: Option<NotificationSink>,
    ) -> Result<Self, OutboxError> {
        let first = match Box::pin(Self::prepared(database, name, sink.clone(), "")).await {
            Err(error) if error.is_impatience() => error,
            done => return done,
        };
        // The server's default time-out (a millisecond, for example) may have ended the session before it could set its own.
        let options = settings::as_options(database);
        match Box::pin(Self::prepared(database, name, sink, &options)).await {
            // A pooler may refuse options, so report the first error.
            Err(_) => Err(first),
            done => done,
        }
    }

    /// Connects and sets the session up.
    async fn prepared(
        database: &Database,
        name: &str,
        sink: Option<NotificationSink>,
        options: &str,
    ) -> Result<Self, OutboxError> {
        let (mut session, version) = Self::bare(database, name, sink, options).await?;
        session.set_up(database, version).await?;
        Ok(session)
    }

    /// Connects, and leaves the settings as the server gives them. Also returns the server's major version; 0 if unknown.
    pub(super) async fn bare(
        database: &Database,
        name: &str,
        sink: Option<NotificationSink>,
        options: &str,
    ) -> Result<(Self, u32), OutboxError> {
        let mut config = database.current()?;
        // A connect_timeout in the URL takes precedence over the key.
        let connect_timeout = config
            .get_connect_timeout()
            .copied()
            .unwrap_or(database.connect_timeout);
        config
            .application_name(name)
            .connect_timeout(connect_timeout);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        config.tcp_user_timeout(database.statement_timeout + GRACE);
        if !options.is_empty() {
            let own = config.get_options().unwrap_or_default();
            let all = format!("{own}{options}");
            config.options(all.trim_start());
        }
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
        // Twice, because the driver's own bound covers only the TCP connect and not TLS and the login.
        let within = connect_timeout * 2;
        let (client, mut connection) = hosts::connect(&config, &tls, within).await?;
        let version = connection.parameter("server_version");
        let version =
            version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());

        let closed = CancellationToken::new();
        let on_close = closed.clone().drop_guard();
        let driving = async move {
            let _on_close = on_close;
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        if let Some(sink) = &sink {
                            sink.received.fetch_add(1, Ordering::Relaxed);
                            let _ = sink.wake.try_send(());
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
        };
        let driver = tokio::spawn(driving.in_current_span()).abort_handle();
        let session = Self {
            client,
            driver,
            closed,
            prepared: database.prepared_statements.then(Mutex::default),
            begin: BEGIN.to_owned(),
            open: AtomicBool::new(false),
            patience: database.statement_timeout + GRACE,
        };
        Ok((session, version.unwrap_or(0)))
    }

    /// See `outbox::settings`.
    async fn set_up(&mut self, database: &Database, version: u32) -> Result<(), OutboxError> {
        let scope = if self.prepared.is_some() {
            Scope::Session
        } else {
            Scope::Transaction
        };
        let needed = settings::needed(database, scope, version);
        let set = settings::statements(&needed, scope);
        let answer = match self.alone(scope, &format!("{set}{}", settings::LIST)).await {
            // Some servers do not let every role read pg_settings. The settings that the relay needs must still be accepted.
            Err(error) if error.is_statement_refused() => {
                tracing::debug!(error = %error, "the server's settings cannot be read");
                self.alone(scope, &set).await?
            }
            answer => answer?,
        };
        let others = settings::others(&answer, &needed, scope);
        let others = self.accepted(scope, others).await?;
        if scope == Scope::Transaction {
            let all = settings::statements(needed.iter().chain(&others), scope);
            self.begin = format!("{BEGIN}; {all}");
        }
        Ok(())
    }

    /// Tries the settings, and returns those that the server accepts: a fork of PostgreSQL may refuse to change some.
    async fn accepted(
        &self,
        scope: Scope,
        settings: Vec<Setting>,
    ) -> Result<Vec<Setting>, OutboxError> {
        let all = settings::statements(&settings, scope);
        match self.alone(scope, &all).await {
            Err(error) if error.is_statement_refused() => {}
            done => return done.map(|_| settings),
        }
        let mut accepted = Vec::with_capacity(settings.len());
        for setting in settings {
            match self
                .alone(scope, &settings::statements([&setting], scope))
                .await
            {
                Err(error) if error.is_statement_refused() => {
                    tracing::debug!(setting = setting.name, error = %error, "a setting stays as it is");
                }
                done => {
                    done?;
                    accepted.push(setting);
                }
            }
        }
        Ok(accepted)
    }

    /// Sends one message, as a transaction of its own. Settings for the session stay; settings for a transaction are only
    /// tried.
    async fn alone(&self, scope: Scope, sql: &str) -> Result<Vec<SimpleQueryMessage>, OutboxError> {
        let sql = match scope {
            Scope::Session => sql.to_owned(),
            Scope::Transaction => format!("{BEGIN}; {sql}; ROLLBACK"),
        };
        let done = self.bounded(SET_UP, self.client.simple_query(&sql)).await;
        if let Err(error) = &done
            && error.is_statement_refused()
            && scope == Scope::Transaction
        {
            // The server skipped the rest of the message, COMMIT included.
            self.rollback().await?;
        }
        done
    }

    /// Resolves when the server or the network ends the connection.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub async fn begin(&self) -> Result<(), OutboxError> {
        self.open.store(true, Ordering::Relaxed);
        self.batch("begin", &self.begin).await
    }

    /// Begins a transaction, and runs `first` in the same round trip. Every transaction begins with this function or `begin`,
    /// because the session must know that a transaction is open.
    pub async fn begin_with(&self, first: &str) -> Result<(), OutboxError> {
        self.open.store(true, Ordering::Relaxed);
        let sql = format!("{}; {first}", self.begin);
        self.batch("begin", &sql).await
    }

    /// Does the work in a transaction, and commits it. After an error it rolls back; the first error is the one to report, and a
    /// lost connection rolls back by itself.
    pub async fn commits<T>(
        &self,
        work: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        self.begin().await?;
        match work.await {
            Ok(done) => {
                self.commit().await?;
                Ok(done)
            }
            Err(error) => {
                let _ = self.rollback().await;
                Err(error)
            }
        }
    }

    /// Call this only if no statement of the transaction failed: COMMIT of a failed transaction answers ROLLBACK, without an
    /// error.
    pub async fn commit(&self) -> Result<(), OutboxError> {
        self.open.store(false, Ordering::Relaxed);
        self.batch(COMMIT, "COMMIT").await
    }

    pub async fn rollback(&self) -> Result<(), OutboxError> {
        self.open.store(false, Ordering::Relaxed);
        self.batch("rollback", "ROLLBACK").await
    }

    /// Checks whether an idle session is still usable. It returns an error if no answer comes `within` a short time, because a
    /// firewall or a NAT can drop connections silently. It also returns an error if the server was demoted in place: such a
    /// server still answers, but producers use another one.
    pub async fn probe(&self, within: Duration) -> Result<(), OutboxError> {
        let action = "probe the connection";
        let asking = self
            .client
            .simple_query("SELECT pg_catalog.current_setting('transaction_read_only')");
        let answer = self.bounded_by(within, action, asking).await?;
        let read_only = answer.iter().any(
            |message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")),
        );
        match read_only {
            true => Err(OutboxError::ReadOnly { action }),
            false => Ok(()),
        }
    }

    /// The process id of the server's side.
    pub(super) async fn backend(&self, within: Duration) -> Result<String, OutboxError> {
        let action = "ask for the server's process";
        let asking = self
            .client
            .simple_query("SELECT pg_catalog.pg_backend_pid()");
        let answer = self.bounded_by(within, action, asking).await?;
        let pid = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        pid.ok_or_else(|| OutboxError::Unusable {
            action,
            why: "the server returned no row".to_owned(),
        })
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

    /// Passes each row to `take` as it arrives; the session keeps no row.
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
        self.bounded(query.action, self.in_transaction(pin!(reading)))
            .await?
    }

    pub async fn execute(&self, query: &Query, params: Params<'_>) -> Result<u64, OutboxError> {
        match self.statement(query).await? {
            Some(statement) => {
                self.bounded(query.action, self.client.execute(&statement, params))
                    .await
            }
            // Boxed, so that futures of sessions with prepared statements stay small.
            None => {
                Box::pin(async {
                    let typed: Vec<_> = params
                        .iter()
                        .copied()
                        .zip(query.types.iter().cloned())
                        .collect();
                    let executing = pin!(self.client.execute_typed(query.sql, &typed));
                    self.bounded(query.action, self.in_transaction(executing))
                        .await
                })
                .await
            }
        }
    }

    /// If settings last for one transaction only, every statement needs a transaction. A statement outside a transaction gets
    /// its own, in the same round trip.
    async fn in_transaction<T>(
        &self,
        work: Pin<&mut impl Future<Output = Result<T, tokio_postgres::Error>>>,
    ) -> Result<T, tokio_postgres::Error> {
        if self.prepared.is_some() || self.open.load(Ordering::Relaxed) {
            return work.await;
        }
        // The three are sent in this order. The first error causes the others; COMMIT of a failed transaction is no error.
        // Boxed, to keep the callers' futures small.
        let (begun, done, ended) = Box::pin(async {
            tokio::join!(
                self.client.batch_execute(&self.begin),
                work,
                self.client.batch_execute("COMMIT")
            )
        })
        .await;
        begun?;
        let done = done?;
        ended.map(|()| done)
    }

    /// Runs several statements without parameters, in one message.
    pub async fn batch(&self, action: &'static str, sql: &str) -> Result<(), OutboxError> {
        self.bounded(action, self.client.batch_execute(sql)).await
    }

    /// Prepares every statement again before its next use. Somebody may have changed a table, a view or a function since: then
    /// the old statement fails again and again ("cached plan must not change result type").
    pub fn forget_statements(&self) {
        if let Some(cache) = &self.prepared {
            cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
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

    /// This is no async function, because each async layer would hold the work once more.
    fn bounded<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> impl Future<Output = Result<T, OutboxError>> {
        self.bounded_by(self.patience, action, work)
    }

    async fn bounded_by<T>(
        &self,
        after: Duration,
        action: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(after, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(OutboxError::Database { action, source }),
            Err(_) => {
                self.driver.abort();
                Err(OutboxError::Timeout { action, after })
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
