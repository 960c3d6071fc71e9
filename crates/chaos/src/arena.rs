//! The site of one row, and the relays that run there.

use std::{path::PathBuf, sync::Arc};

use test_support::{
    Daemon, Held, Plan, Postgres, PostgresOptions, Proxy, RabbitMq, RabbitMqOptions, Ran, Recorder,
    Servers, Site, amqp, eventually,
};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

pub use test_support::SOON;

pub use crate::outcome::since;
use crate::{
    flow::{self, Flow},
    logs::Logs,
    row::Result,
    traffic::{Rate, Traffic},
};

/// Queue that is bound to everything.
pub const QUEUE: &str = "all";
/// Of a row on servers of its own.
pub const DATABASE: &str = "app";
/// The role that owns the database and the schemas. It may create roles, and is no superuser.
pub const OWNER: &str = "owner";
/// More rows than share servers.
const SHARING: usize = 40;

/// What every row is run with.
#[derive(Clone)]
pub struct Setup {
    /// The relay, with its failpoints compiled in.
    pub outboxd: PathBuf,
    /// Where migrations and grants are.
    pub repository: PathBuf,
    pub logs: Arc<Logs>,
    /// Also what takes minutes.
    pub long: bool,
    /// Servers for the rows that break no server; started by the first of them.
    pub servers: Arc<OnceCell<Servers>>,
}

impl Setup {
    pub fn plan(&self) -> Plan {
        Plan {
            repository: self.repository.clone(),
            owner: OWNER,
            logins: "CREATE ROLE relay LOGIN PASSWORD 'relay' IN ROLE outbox_relay; \
                     CREATE ROLE producer LOGIN PASSWORD 'producer' IN ROLE outbox_producer",
        }
    }

    /// Runs a command of the relay's program, with this environment and no other.
    pub async fn outboxd(
        &self,
        args: &[&str],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Ran> {
        test_support::run(&self.outboxd, args, env).await
    }
}

/// A migrated database, a broker with one queue, and the settings of the relays to come.
pub struct Arena<'a> {
    pub setup: &'a Setup,
    pub postgres: Held<Postgres>,
    pub rabbitmq: Held<RabbitMq>,
    pub database: String,
    pub vhost: String,
    env: Vec<(String, String)>,
}

/// Most messages that two workers may have in flight at a crash.
pub const WORKERS: usize = 2;
pub const BATCH: usize = 50;
pub const WINDOW: usize = WORKERS * BATCH;

/// Small batches, so that a bound is a bound; quick to notice, so that a row need not wait for production's time-outs.
const SETTINGS: [(&str, &str); 12] = [
    ("OUTBOXD__RELAY__WORKERS", "2"),
    ("OUTBOXD__RELAY__BATCH_SIZE", "50"),
    // Where no fault is about confirms, a busy machine's confirm must not be given up: its batch would come again.
    ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "30s"),
    ("OUTBOXD__RELAY__BACKOFF_INITIAL", "100ms"),
    ("OUTBOXD__RELAY__BACKOFF_MAX", "1s"),
    ("OUTBOXD__RELAY__SHUTDOWN_GRACE", "40s"),
    ("OUTBOXD__BROKER__HEARTBEAT", "5s"),
    ("OUTBOXD__BROKER__CONNECT_TIMEOUT", "2s"),
    ("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "2s"),
    ("OUTBOXD__LOG__FORMAT", "json"),
    // With a line for each attempt.
    ("OUTBOXD__LOG__LEVEL", "info,outboxd::relay::outages=debug"),
    ("OUTBOXD__ADMIN__LISTEN", "off"),
];

impl<'a> Arena<'a> {
    /// A database and a virtual host on servers that other rows use, too. They must not be broken.
    pub async fn shared(setup: &'a Setup) -> Result<Self> {
        let start = async || Servers::start(&setup.plan(), SHARING).await;
        let servers = setup.servers.get_or_try_init(start).await?;
        Self::at(setup, servers.site().await).await
    }

    /// Servers of its own, as plain as they come.
    pub async fn start(setup: &'a Setup) -> Result<Self> {
        let (postgres, rabbitmq) = (PostgresOptions::default(), RabbitMqOptions::default());
        Self::start_with(setup, postgres, rabbitmq).await
    }

    pub async fn start_with(
        setup: &'a Setup,
        postgres: PostgresOptions,
        rabbitmq: RabbitMqOptions,
    ) -> Result<Self> {
        let site = Site::own(&setup.plan(), DATABASE, postgres, rabbitmq).await?;
        Self::at(setup, site).await
    }

    async fn at(setup: &'a Setup, site: Site) -> Result<Self> {
        amqp::declare(&site.broker_url(), QUEUE).await?;
        let mut arena = Self {
            setup,
            env: SETTINGS
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            postgres: site.postgres,
            rabbitmq: site.rabbitmq,
            database: site.database,
            vhost: site.vhost,
        };
        let (database, broker) = (arena.database_url(), arena.broker_url());
        arena.set("DATABASE_URL", &database);
        arena.set("AMQP_URL", &broker);
        Ok(arena)
    }

    /// For the relay's role.
    pub fn database_url(&self) -> String {
        self.postgres.url_for("relay", "relay", &self.database)
    }

    pub fn broker_url(&self) -> String {
        self.rabbitmq.url(&self.vhost)
    }

    /// Runs rabbitmqctl with these words.
    pub async fn ctl(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split(' ').collect();
        self.rabbitmq.ctl(&words).await.map(drop)
    }

    /// A setting of the relays that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// All settings of the relays that are started from now on: those of an earlier moment.
    pub fn set_all(&mut self, env: Vec<(String, String)>) {
        self.env = env;
    }

    /// Confirms are given up soon: the fault is that they do not come.
    pub fn short_confirms(&mut self) {
        self.set("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "3s");
        self.set("OUTBOXD__RELAY__SHUTDOWN_GRACE", "10s");
    }

    /// No time-out ends a claim or gives up a confirm from now on: a relay must notice a fault in another way.
    pub fn patient(&mut self) {
        self.set("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "20m");
        self.set("OUTBOXD__RELAY__SHUTDOWN_GRACE", "40m");
        self.set("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "40m");
    }

    /// The relays' way to PostgreSQL is a proxy from now on.
    pub async fn database_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::before(&self.database_url()).await?;
        self.set("DATABASE_URL", &url);
        Ok(proxy)
    }

    /// The relays' way to RabbitMQ is a proxy from now on.
    pub async fn broker_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::before(&self.broker_url()).await?;
        self.set("AMQP_URL", &url);
        Ok(proxy)
    }

    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// Starts a relay; it may still be connecting.
    pub fn relay(&self) -> Result<Daemon> {
        let (logs, program) = (&self.setup.logs, &self.setup.outboxd);
        logs.start("relay", program, &["run"], &self.env)
    }

    /// As a superuser: who judges sees everything.
    pub async fn client(&self) -> Result<Client> {
        self.postgres.connect(&self.database).await
    }

    pub fn owner_url(&self) -> String {
        self.postgres.url_for(OWNER, OWNER, &self.database)
    }

    /// As the ordinary role that owns everything.
    pub async fn owner(&self) -> Result<Client> {
        flow::connect(&self.owner_url()).await
    }

    /// One number from SQL, asked on a connection of its own: the last one may have died with its server.
    pub async fn count(&self, of: &str) -> Result<i64> {
        let client = self.client().await?;
        let sql = format!("SELECT count(*) FROM {of}");
        Ok(client.query_one(&sql, &[]).await?.get(0))
    }

    pub async fn until_count(&self, what: &str, of: &str, reached: impl Fn(i64) -> bool) {
        eventually(what, SOON, async || {
            self.count(of).await.ok().filter(|n| reached(*n)).map(drop)
        })
        .await;
    }

    /// Waits for messages that the broker refused: those that are tried again, those that an open circuit holds, and the
    /// one that probes.
    pub async fn until_refused(&self, what: &str, reached: impl Fn(i64) -> bool) {
        let refused = "outbox.waiting WHERE cause IN ('retry', 'held', 'probe')";
        self.until_count(what, refused, reached).await;
    }

    /// Producers at the usual rate, and a consumer.
    pub async fn flow(&self) -> Result<Flow> {
        self.flow_at(Rate::default()).await
    }

    pub async fn flow_at(&self, rate: Rate) -> Result<Flow> {
        let database_url = self.owner_url();
        Ok(self.flow_over(&database_url, &self.broker_url(), rate))
    }

    /// A relay through which traffic flows.
    pub async fn flowing(&self) -> Result<(Flow, Daemon)> {
        let relay = self.relay()?;
        let flow = self.flow().await?;
        flow.steady(200).await?;
        Ok((flow, relay))
    }

    /// Producers and consumer take these ways to the servers. The first is the owner's.
    pub fn flow_over(&self, database_url: &str, broker_url: &str, rate: Rate) -> Flow {
        Flow::new(
            Traffic::start(database_url, rate),
            Recorder::start(broker_url, QUEUE),
            database_url.to_owned(),
        )
    }
}
