//! What a test needs: a migrated database, a virtual host, relays, a consumer, and a ledger.

use std::{
    collections::HashSet,
    panic::Location,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
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
use test_support::{Daemon, Postgres, RabbitMq, eventually};
use tokio::{
    sync::{OnceCell, watch},
    task::AbortHandle,
};
use tokio_postgres::Client;
use uuid::Uuid;

/// A wait of a test that should take a moment; a slow machine gets this long.
pub const SOON: Duration = Duration::from_secs(60);

/// Virtual hosts made at once: a call of rabbitmqctl takes seconds.
const VHOSTS: usize = 160;

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

/// With a database `template` that holds the outbox, and the roles.
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

/// A database and a virtual host of a test's own.
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

/// On the shared servers.
pub async fn world() -> World {
    let servers = shared().await;
    let n = servers.next.fetch_add(1, Ordering::Relaxed);
    assert!(n < VHOSTS, "raise VHOSTS");
    World::new(Where::Shared(servers), format!("db{n}"), format!("t{n}")).await
}

/// On servers of its own, to be broken.
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
        // Two tests cannot copy a template at one moment.
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

    /// Only on servers of its own.
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

    /// For the relay's role.
    pub fn database_url(&self) -> String {
        self.postgres()
            .url_for("relay", "relay-canary-password", &self.database)
    }

    pub fn broker_url(&self) -> String {
        self.rabbitmq().url(&self.vhost)
    }

    /// What every process under test is told; `more` adds to it and wins.
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

    /// A relay that runs; it may still be connecting.
    pub fn relay(&self, more: &[(&str, &str)]) -> Daemon {
        self.relays.fetch_add(1, Ordering::Relaxed);
        Daemon::start(&binary(), &["run"], &self.env(more)).unwrap()
    }

    /// Runs a command to its end: exit code, standard output, standard error.
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

    /// Writes events and remembers them: `(key, event type, body)`.
    pub async fn commit(&self, events: &[(Option<&str>, &str, &str)]) -> Vec<Uuid> {
        let mut ids = Vec::with_capacity(events.len());
        for (key, event_type, body) in events {
            ids.push(self.insert(*key, event_type, body, "").await);
        }
        ids
    }

    /// `n` events over `keys` keys, in one transaction.
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

    /// One event with more columns: `columns` is `name = value, …` in SQL.
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

    /// One number from SQL.
    pub async fn count(&self, sql: &str) -> i64 {
        self.client
            .query_one(&format!("SELECT count(*) FROM {sql}"), &[])
            .await
            .unwrap()
            .get(0)
    }

    pub async fn until(&self, what: &str, sql: &str, expected: i64) {
        eventually(what, SOON, async || {
            (self.count(sql).await == expected).then_some(())
        })
        .await;
    }

    /// Nothing is pending: every message is sent or dead.
    pub async fn drained(&self) {
        let pending = "outbox.message m WHERE sent_at IS NULL \
                       AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id)";
        eventually("an empty outbox", SOON, async || {
            (self.count(pending).await == 0 && self.count("outbox.waiting").await == 0)
                .then_some(())
        })
        .await;
    }

    /// The reason a message died with.
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

    /// What was committed against what `consumer` saw. Among duplicates the last of the others may still be on its
    /// way: what is not dead is waited for, before it is called lost.
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

/// A delivery as a test looks at it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub message_id: String,
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub properties: lapin::BasicProperties,
    pub at: std::time::Instant,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<AMQPValue> {
        self.properties
            .headers()
            .as_ref()?
            .inner()
            .get(name)
            .cloned()
    }

    pub fn text_header(&self, name: &str) -> Option<String> {
        match self.header(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn delivered(&self) -> Delivered {
        Delivered {
            message_id: self.message_id.parse().unwrap_or(Uuid::nil()),
            body_sha256: sha256(&self.body),
            replay: self.header("outbox-replay").is_some(),
        }
    }
}

/// Takes everything from a queue; comes back when the broker does.
pub struct Consumer {
    seen: Arc<watch::Sender<Vec<Seen>>>,
    task: AbortHandle,
}

impl Consumer {
    pub async fn start(url: &str, queue: &str) -> Self {
        let seen: Arc<watch::Sender<Vec<Seen>>> = Arc::default();
        let (into, url, queue) = (Arc::clone(&seen), url.to_owned(), queue.to_owned());
        let task = tokio::spawn(async move {
            loop {
                // A broker that is away is tried again.
                let _ = consume(&url, &queue, &into).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .abort_handle();
        Self { seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub fn len(&self) -> usize {
        self.seen.borrow().len()
    }

    #[track_caller]
    pub fn until(&self, n: usize) -> impl Future<Output = Vec<Seen>> + '_ {
        let caller = Location::caller();
        async move {
            let mut changes = self.seen.subscribe();
            let arrived = changes.wait_for(|seen| seen.len() >= n);
            let arrived = tokio::time::timeout(SOON, arrived).await.map(drop);
            assert!(
                arrived.is_ok(),
                "waited {SOON:?} for {n} deliveries, {} came ({caller})",
                self.len()
            );
            self.seen()
        }
    }

    /// Waits until every id was seen at least once; returns how many are missing at the deadline.
    async fn missing(&self, ids: impl Iterator<Item = Uuid>) -> usize {
        let mut missing: HashSet<String> = ids.map(|id| id.to_string()).collect();
        let (mut changes, mut looked_at) = (self.seen.subscribe(), 0);
        let arrived = changes.wait_for(|seen| {
            for delivery in &seen[looked_at..] {
                missing.remove(&delivery.message_id);
            }
            looked_at = seen.len();
            missing.is_empty()
        });
        let _ = tokio::time::timeout(SOON, arrived).await.map(drop);
        missing.len()
    }

    /// Waits until every id was seen at least once.
    #[track_caller]
    pub fn until_all(&self, ids: &[Uuid]) -> impl Future<Output = ()> + '_ {
        let (caller, ids) = (Location::caller(), ids.to_vec());
        async move {
            let missing = self.missing(ids.into_iter()).await;
            assert_eq!(
                missing, 0,
                "waited {SOON:?} for all of them to arrive ({caller})"
            );
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn consume(
    url: &str,
    queue: &str,
    into: &watch::Sender<Vec<Seen>>,
) -> Result<(), lapin::Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(1000, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            short(queue),
            short(""),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        into.send_modify(|seen| seen.push(look_at(&delivery)));
        // With the connection's end an acknowledgement may be forgotten, and never answer.
        let acknowledged = delivery.ack(BasicAckOptions::default());
        match tokio::time::timeout(Duration::from_secs(5), acknowledged).await {
            Ok(acknowledged) => acknowledged?,
            Err(_) => return Ok(()),
        };
    }
    Ok(())
}

fn look_at(delivery: &Delivery) -> Seen {
    Seen {
        message_id: delivery
            .properties
            .message_id()
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        body: delivery.data.to_vec(),
        properties: delivery.properties.clone(),
        at: std::time::Instant::now(),
    }
}
