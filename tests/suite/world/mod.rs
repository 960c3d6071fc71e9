//! The world of a test: a migrated database, a virtual host, relays, a consumer, and a ledger.

mod consumer;

use std::{
    collections::HashSet,
    panic::Location,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use checker::{Committed, Delivered, Ledger, Report, sha256};
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use test_support::{Daemon, Postgres, RabbitMq, eventually, pause_after};
use tokio::{
    sync::{OnceCell, watch},
    task::AbortHandle,
};
use tokio_postgres::Client;
use uuid::Uuid;

pub use consumer::{Consumer, Seen};

/// Time limit for a wait that should take a moment, long enough for a slow machine. Where a test waits for many things, this is
/// the longest time without progress.
pub const SOON: Duration = Duration::from_secs(180);

/// A relay time-out that no test reaches: the tested event must happen long before it.
pub const FAR: &str = "20m";
/// A time-out that must be above `FAR`.
pub const FARTHER: &str = "40m";

/// Number of virtual hosts that one call makes, because a call of rabbitmqctl takes seconds.
const VHOSTS: usize = 320;

pub struct Servers {
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
    next: AtomicUsize,
}

static SHARED: OnceCell<Servers> = OnceCell::const_new();

async fn shared() -> &'static Servers {
    SHARED
        .get_or_init(|| async {
            let (postgres, rabbitmq) = tokio::join!(migrated_postgres(), RabbitMq::start());
            let rabbitmq = rabbitmq.unwrap();
            let vhosts: Vec<String> = (0..VHOSTS).map(|n| format!("t{n}")).collect();
            rabbitmq.create_vhosts(&vhosts).await.unwrap();
            Servers {
                postgres,
                rabbitmq,
                next: AtomicUsize::new(0),
            }
        })
        .await
}

/// Servers with the roles, and a database `template` that has the outbox.
pub async fn migrated_postgres() -> Postgres {
    let postgres = Postgres::start().await.unwrap();
    prepare(&postgres).await;
    postgres
}

pub async fn prepare(postgres: &Postgres) {
    postgres
        .execute(
            "postgres",
            "CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'owner'",
        )
        .await
        .unwrap();
    postgres.create_database("template", "owner").await.unwrap();
    for file in [
        "migrations/outbox/0001_outbox.sql",
        "deploy/postgres/roles.sql",
        "migrations/inbox/0001_inbox.sql",
        "deploy/postgres/inbox_roles.sql",
    ] {
        let sql = std::fs::read_to_string(repository().join(file)).unwrap();
        postgres.psql("owner", "owner", "template", &sql).unwrap();
    }
    postgres
        .execute(
            "postgres",
            "CREATE ROLE relay LOGIN PASSWORD 'relay-canary-password' IN ROLE outbox_relay; \
             CREATE ROLE producer LOGIN PASSWORD 'producer' IN ROLE outbox_producer; \
             CREATE ROLE monitor LOGIN PASSWORD 'monitor' IN ROLE outbox_monitor; \
             CREATE ROLE payments LOGIN PASSWORD 'payments' IN ROLE inbox_consumer",
        )
        .await
        .unwrap();
    let tables = "CREATE TABLE account (id text PRIMARY KEY, cents bigint NOT NULL); \
                  GRANT SELECT, INSERT, UPDATE ON account TO payments";
    postgres.execute("template", tables).await.unwrap();
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_outboxd"))
}

/// A test's own database and virtual host.
pub struct World {
    servers: Where,
    pub database: String,
    pub vhost: String,
    pub client: Client,
    pub ledger: Mutex<Vec<Committed>>,
    relays: AtomicUsize,
}

enum Where {
    Shared(&'static Servers),
    Own(Box<Servers>),
}

/// A world on the shared servers.
pub async fn world() -> World {
    let servers = shared().await;
    let n = servers.next.fetch_add(1, Ordering::Relaxed);
    assert!(n < VHOSTS, "raise VHOSTS");
    World::new(Where::Shared(servers), format!("db{n}"), format!("t{n}")).await
}

/// A world on servers of its own, which the test may break.
pub async fn own_world() -> World {
    let (postgres, rabbitmq) = tokio::join!(migrated_postgres(), RabbitMq::start());
    let servers = Servers {
        postgres,
        rabbitmq: rabbitmq.unwrap(),
        next: AtomicUsize::new(0),
    };
    World::new(
        Where::Own(Box::new(servers)),
        "db".to_owned(),
        "/".to_owned(),
    )
    .await
}

impl World {
    async fn new(servers: Where, database: String, vhost: String) -> Self {
        let postgres = match &servers {
            Where::Shared(servers) => &servers.postgres,
            Where::Own(servers) => &servers.postgres,
        };
        // Two tests cannot copy a template at the same time.
        eventually("a copy of the template", SOON, async || {
            postgres.copy_database(&database, "template").await.ok()
        })
        .await;
        let client = postgres.connect(&database).await.unwrap();
        Self {
            servers,
            database,
            vhost,
            client,
            ledger: Mutex::default(),
            relays: AtomicUsize::new(0),
        }
    }

    fn servers(&self) -> &Servers {
        match &self.servers {
            Where::Shared(servers) => servers,
            Where::Own(servers) => servers,
        }
    }

    /// Only for a world with servers of its own.
    pub fn own(&mut self) -> &mut Servers {
        match &mut self.servers {
            Where::Shared(_) => panic!("these servers belong to all tests"),
            Where::Own(servers) => servers,
        }
    }

    pub fn postgres(&self) -> &Postgres {
        &self.servers().postgres
    }

    pub fn rabbitmq(&self) -> &RabbitMq {
        &self.servers().rabbitmq
    }

    /// The database URL of the relay's role.
    pub fn database_url(&self) -> String {
        self.postgres()
            .url_for("relay", "relay-canary-password", &self.database)
    }

    pub fn broker_url(&self) -> String {
        self.rabbitmq().url(&self.vhost)
    }

    /// The environment of every process under test; `more` adds to it and takes precedence.
    pub fn env(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = vec![
            ("DATABASE_URL".to_owned(), self.database_url()),
            ("AMQP_URL".to_owned(), self.broker_url()),
            ("OUTBOXD__ADMIN__LISTEN".to_owned(), "off".to_owned()),
            ("OUTBOXD__LOG__FORMAT".to_owned(), "json".to_owned()),
            ("OUTBOXD__RELAY__WORKERS".to_owned(), "2".to_owned()),
            (
                "OUTBOXD__RELAY__BACKOFF_INITIAL".to_owned(),
                "20ms".to_owned(),
            ),
            ("OUTBOXD__RELAY__BACKOFF_MAX".to_owned(), "200ms".to_owned()),
        ];
        for (name, value) in more {
            env.retain(|(known, _)| known != name);
            env.push(((*name).to_owned(), (*value).to_owned()));
        }
        env
    }

    /// Starts a relay; it may still be connecting.
    pub fn relay(&self, more: &[(&str, &str)]) -> Daemon {
        self.relays.fetch_add(1, Ordering::Relaxed);
        Daemon::start(&binary(), &["run"], &self.env(more)).unwrap()
    }

    /// Runs a command to its end; returns exit code, standard output and standard error.
    pub async fn outboxd(&self, args: &[&str], more: &[(&str, &str)]) -> Run {
        run(args, &self.env(more)).await
    }

    pub async fn channel(&self) -> Channel {
        let url = self.broker_url();
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        channel
    }

    pub async fn declare_exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let (name, table) = (short(name), FieldTable::default());
        self.channel()
            .await
            .exchange_declare(name, ExchangeKind::Topic, options, table)
            .await
            .unwrap();
    }

    /// Declares a durable queue and binds it to `events` (declared too).
    pub async fn bind(&self, queue: &str, pattern: &str, arguments: &[(&str, AMQPValue)]) {
        self.declare_exchange("events").await;
        let channel = self.channel().await;
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(short(name), value.clone());
        }
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(short(queue), options, table)
            .await
            .unwrap();
        let (binding, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(short(queue), short("events"), short(pattern), binding, none)
            .await
            .unwrap();
    }

    /// Binds a queue to everything and consumes it.
    pub async fn consumer(&self) -> Consumer {
        self.bind("all", "#", &[]).await;
        self.consume("all").await
    }

    pub async fn consume(&self, queue: &str) -> Consumer {
        Consumer::start(&self.broker_url(), queue).await
    }

    /// Writes events and records them: `(key, event type, body)`.
    pub async fn commit(&self, events: &[(Option<&str>, &str, &str)]) -> Vec<Uuid> {
        let mut ids = Vec::with_capacity(events.len());
        for (key, event_type, body) in events {
            ids.push(self.insert(*key, event_type, body, "").await);
        }
        ids
    }

    /// Writes `n` events over `keys` keys, in one transaction.
    pub async fn commit_many(&self, n: usize, keys: usize) {
        let rows = self
            .client
            .query(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 SELECT 'order', (i % $2)::text, 'created', json_build_object('i', i) \
                 FROM generate_series(1, $1::int) i RETURNING message_id, aggregate_id, id, payload::text",
                &[&i32::try_from(n).unwrap(), &i32::try_from(keys).unwrap()],
            )
            .await
            .unwrap();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            ledger.push(Committed {
                message_id: row.get(0),
                key: Some(row.get(1)),
                position: row.get(2),
                body_sha256: sha256(row.get::<_, String>(3).as_bytes()),
            });
        }
    }

    /// Writes one event with more columns: `columns` is `name = value, …` in SQL.
    pub async fn insert(
        &self,
        key: Option<&str>,
        event_type: &str,
        body: &str,
        columns: &str,
    ) -> Uuid {
        let (names, values): (Vec<&str>, Vec<&str>) = columns
            .split(';')
            .filter_map(|column| column.split_once('='))
            .map(|(n, v)| (n.trim(), v.trim()))
            .unzip();
        let more = |parts: &[&str]| {
            parts
                .iter()
                .map(|part| format!(", {part}"))
                .collect::<String>()
        };
        let sql = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload{}) \
             VALUES ('order', $1, $2, $3::text::json{}) RETURNING message_id, id",
            more(&names),
            more(&values)
        );
        let row = self
            .client
            .query_one(&sql, &[&key, &event_type, &body])
            .await
            .unwrap();
        let message_id = row.get(0);
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Committed {
                message_id,
                key: key.map(str::to_owned),
                position: row.get(1),
                body_sha256: sha256(body.as_bytes()),
            });
        message_id
    }

    /// Reads one number with SQL.
    pub async fn count(&self, sql: &str) -> i64 {
        self.client
            .query_one(&format!("SELECT count(*) FROM {sql}"), &[])
            .await
            .unwrap()
            .get(0)
    }

    /// Waits for this number of rows, as long as the number comes closer.
    #[track_caller]
    pub fn until(&self, what: &str, sql: &str, expected: i64) -> impl Future<Output = ()> {
        nearer(what, async move || (self.count(sql).await - expected).abs())
    }

    /// Waits until nothing is pending (every message is sent or dead), as long as pending messages become fewer.
    #[track_caller]
    pub fn drained(&self) -> impl Future<Output = ()> {
        let pending = "outbox.message m WHERE sent_at IS NULL \
                       AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id)";
        nearer("an empty outbox", async move || {
            self.count(pending).await + self.count("outbox.waiting").await
        })
    }

    /// The reason of a dead message.
    pub async fn reason(&self, id: Uuid) -> Option<String> {
        let rows = self
            .client
            .query(
                "SELECT reason FROM outbox.dead WHERE message_id = $1",
                &[&id],
            )
            .await
            .unwrap();
        rows.first().map(|row| row.get(0))
    }

    /// Compares the committed events with the deliveries of `consumer`. The last message may still be on its way among duplicates,
    /// so this waits for messages that are not dead before it calls them lost.
    pub async fn judge(&self, consumer: &Consumer) -> Report {
        let ids = async |sql: &str| {
            let rows = self.client.query(sql, &[]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        };
        let committed = self
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let dead: HashSet<Uuid> = ids("SELECT message_id FROM outbox.dead").await;
        let alive = committed.iter().map(|event| event.message_id);
        consumer
            .missing(alive.filter(|id| !dead.contains(id)))
            .await;
        Ledger {
            committed,
            delivered: consumer.seen().iter().map(|m| m.delivered()).collect(),
            dead,
            marked_sent: ids("SELECT message_id FROM outbox.message WHERE sent_at IS NOT NULL")
                .await,
        }
        .check()
    }
}

/// Waits until nothing is missing. The machine may be slow: the deadline starts again whenever fewer things are missing than ever
/// before.
#[track_caller]
fn nearer(what: &str, missing: impl AsyncFn() -> i64) -> impl Future<Output = ()> {
    let (what, caller) = (what.to_owned(), Location::caller());
    async move {
        let (mut least, mut at) = (i64::MAX, Instant::now());
        loop {
            let asked = Instant::now();
            let left = tokio::time::timeout(SOON, missing()).await;
            let left = left.unwrap_or_else(|_| panic!("no answer about {what} ({caller})"));
            if left == 0 {
                return;
            }
            if left < least {
                (least, at) = (left, Instant::now());
            }
            assert!(
                at.elapsed() < SOON,
                "waited {SOON:?} for {what} and {least} were missing all the time ({caller})"
            );
            tokio::time::sleep(pause_after(asked.elapsed())).await;
        }
    }
}

/// A point where a relay waits until the test lets it go on.
pub struct Gate(tempfile::TempDir);

impl Gate {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("open")
    }

    /// Value of `OUTBOXD_FAILPOINT`: waits the first time that the relay comes to this point.
    pub fn at(&self, place: &str) -> String {
        format!("{place}=until:{}", self.file().display())
    }

    pub fn open(&self) {
        std::fs::write(self.file(), "").unwrap();
    }
}

pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub async fn run(args: &[&str], env: &[(String, String)]) -> Run {
    let mut command = tokio::process::Command::new(binary());
    command
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k, v)))
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(SOON, command.output())
        .await
        .expect("the command ends")
        .unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap()
}
