//! One connection to PostgreSQL on which nothing waits for ever.
//!
//! tokio-postgres has no query timeout, and a dropped future does not cancel its statement. So every await here is
//! bounded, the server is given the same bounds (`statement_timeout`, `lock_timeout`,
//! `idle_in_transaction_session_timeout`), and after a timeout the session is not to be used again: whether the
//! statement ran is unknown. All other settings are the session's own as well: `outbox::settings`.
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

use super::{
    OutboxError,
    error::SET_UP,
    hosts,
    settings::{self, Scope, Setting},
};
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
    /// `None`: every statement is sent whole, unnamed, and outside a transaction in one of its own.
    prepared: Option<Mutex<HashMap<&'static str, Statement>>>,
    /// What begins a transaction; with all settings where a pooler would lose those of the session.
    begin: String,
    /// A transaction was begun, and not ended.
    open: AtomicBool,
    patience: Duration,
}

/// Where the notifications that a session hears go.
#[derive(Clone)]
pub struct Ear {
    /// A full channel already holds a wake-up.
    pub wake: mpsc::Sender<()>,
    pub heard: Arc<AtomicU64>,
}

/// A database or a role may have another default: a settle would then fail with 40001 after its publishes, again and again.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long past the server's own timeouts an answer may take before the connection is given up.
const GRACE: Duration = Duration::from_secs(5);

impl Session {
    /// Connects, within twice `connect_timeout` for each server, and sets the session up. `name` shows in `pg_stat_activity`.
    pub async fn connect(database: &Database, name: &str) -> Result<Self, OutboxError> {
        Self::connect_with_ear(database, name, None).await
    }

    pub async fn connect_with_ear(
        database: &Database,
        name: &str,
        ear: Option<Ear>,
    ) -> Result<Self, OutboxError> {
        let first = match Box::pin(Self::prepared(database, name, ear.clone(), "")).await {
            Err(error) if error.is_impatience() => error,
            done => return done,
        };
        // A time-out of the server's own (a millisecond, say) may have ended it before it could set another.
        let options = settings::as_options(database);
        match Box::pin(Self::prepared(database, name, ear, &options)).await {
            // A pooler may refuse options; the first error is the one to report.
            Err(_) => Err(first),
            done => done,
        }
    }

    /// Connected and set up.
    async fn prepared(
        database: &Database,
        name: &str,
        ear: Option<Ear>,
        options: &str,
    ) -> Result<Self, OutboxError> {
        let (mut session, version) = Self::bare(database, name, ear, options).await?;
        session.set_up(database, version).await?;
        Ok(session)
    }

    /// Connected, with whatever settings the server gives it. Also the server's major version; 0 if it does not say.
    pub(super) async fn bare(
        database: &Database,
        name: &str,
        ear: Option<Ear>,
        options: &str,
    ) -> Result<(Self, u32), OutboxError> {
        let mut config = database.current()?;
        // What the URL says is nearer than the key.
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
        // Twice: the driver's own bound is for the TCP connect alone, not for what follows it.
        let within = connect_timeout * 2;
        let (client, mut connection) = hosts::connect(&config, &tls, within).await?;
        let version = connection.parameter("server_version");
        let version =
            version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());

        let closed = CancellationToken::new();
        let on_close = closed.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _on_close = on_close;
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        if let Some(ear) = &ear {
                            ear.heard.fetch_add(1, Ordering::Relaxed);
                            let _ = ear.wake.try_send(());
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
            // Not everybody may read pg_settings everywhere. What is needed must be granted all the same.
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

    /// Sets them, and returns those that the server takes: a fork of PostgreSQL may refuse one to change.
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

    /// One message, as a transaction. What it sets for a session stays; what it sets for a transaction is only tried.
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
            // The rest of the message was skipped, its end as well.
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

    /// Begins, and runs `first` in the same round trip. Every transaction begins here or there: the session must know that
    /// it has one.
    pub async fn begin_with(&self, first: &str) -> Result<(), OutboxError> {
        self.open.store(true, Ordering::Relaxed);
        let sql = format!("{}; {first}", self.begin);
        self.batch("begin", &sql).await
    }

    /// Only for a transaction in which no statement failed: COMMIT of a failed one answers ROLLBACK, without error.
    pub async fn commit(&self) -> Result<(), OutboxError> {
        self.open.store(false, Ordering::Relaxed);
        self.batch("commit", "COMMIT").await
    }

    pub async fn rollback(&self) -> Result<(), OutboxError> {
        self.open.store(false, Ordering::Relaxed);
        self.batch("rollback", "ROLLBACK").await
    }

    /// Asks an idle session whether it is still of use. An error when no answer comes `within` a short time: a firewall or a
    /// NAT forgets connections without a word. And an error when the server was demoted where it stands: it goes on
    /// answering, and the producers are at another one.
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

    /// Process id of the server's side.
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
        self.bounded(query.action, self.in_transaction(pin!(reading)))
            .await?
    }

    pub async fn execute(&self, query: &Query, params: Params<'_>) -> Result<u64, OutboxError> {
        match self.statement(query).await? {
            Some(statement) => {
                self.bounded(query.action, self.client.execute(&statement, params))
                    .await
            }
            // Boxed: a session of its own need not have room for it.
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

    /// Where settings last for a transaction, every statement needs one: outside any, one of its own, in the same round
    /// trip.
    async fn in_transaction<T>(
        &self,
        work: Pin<&mut impl Future<Output = Result<T, tokio_postgres::Error>>>,
    ) -> Result<T, tokio_postgres::Error> {
        if self.prepared.is_some() || self.open.load(Ordering::Relaxed) {
            return work.await;
        }
        // Sent in this order. The first error is the cause of the others; COMMIT of a failed transaction is none.
        // Boxed, too.
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

    /// No layer of its own: each would hold the work once more.
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
