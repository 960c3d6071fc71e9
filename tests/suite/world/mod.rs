//! The world of a test: a migrated database, a virtual host, relays, a consumer, and a ledger.

use std::{
    panic::Location,
    path::{Path, PathBuf},
};

use checker::Report;
use lapin::{Channel, types::AMQPValue};
use test_support::{
    Commits, Daemon, Plan, Postgres, PostgresOptions, RabbitMq, RabbitMqOptions, Recorder, Servers,
    Site, amqp, nearer,
};
pub use test_support::{Ran as Run, SOON, Seen, amqp::short};
use tokio::sync::OnceCell;
use tokio_postgres::{
    Client, Row,
    types::{FromSqlOwned, ToSql},
};
use uuid::Uuid;

/// Records all of each delivery.
pub type Consumer = Recorder<Seen>;

/// A relay time-out that no test reaches: the tested event must happen long before it.
pub const FAR: &str = "20m";
/// A time-out that must be above `FAR`.
pub const FARTHER: &str = "40m";

/// More than there are tests.
const VHOSTS: usize = 400;

static SHARED: OnceCell<Servers> = OnceCell::const_new();

pub fn plan() -> Plan {
    Plan {
        repository: repository().to_owned(),
        owner: "owner",
        logins: "CREATE ROLE relay LOGIN PASSWORD 'relay-canary-password' IN ROLE outbox_relay; \
                 CREATE ROLE producer LOGIN PASSWORD 'producer' IN ROLE outbox_producer; \
                 CREATE ROLE monitor LOGIN PASSWORD 'monitor' IN ROLE outbox_monitor; \
                 CREATE ROLE payments LOGIN PASSWORD 'payments' IN ROLE inbox_consumer; \
                 CREATE TABLE account (id text PRIMARY KEY, cents bigint NOT NULL); \
                 GRANT SELECT, INSERT, UPDATE ON account TO payments",
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_outboxd"))
}

/// The configuration that allows the default exchange.
pub fn default_exchange() -> String {
    let file = repository().join("tests/suite/default-exchange.toml");
    file.display().to_string()
}

/// A test's own database and virtual host.
pub struct World {
    site: Site,
    pub database: String,
    pub vhost: String,
    pub client: Client,
    pub ledger: Commits,
}

/// A world on the shared servers.
pub async fn world() -> World {
    let start = async || Servers::start(&plan(), VHOSTS).await.unwrap();
    World::at(SHARED.get_or_init(start).await.site().await).await
}

/// A world on servers of its own, which the test may break.
pub async fn own_world() -> World {
    own_world_with(RabbitMqOptions::default()).await
}

pub async fn own_world_with(rabbitmq: RabbitMqOptions) -> World {
    let (plan, postgres) = (plan(), PostgresOptions::default());
    let site = Site::own(&plan, "db", postgres, rabbitmq).await;
    World::at(site.unwrap()).await
}

impl World {
    async fn at(site: Site) -> Self {
        Self {
            client: site.client().await.unwrap(),
            database: site.database.clone(),
            vhost: site.vhost.clone(),
            site,
            ledger: Commits::default(),
        }
    }

    /// To break a server, if it is this world's own.
    pub fn own(&mut self) -> &mut Site {
        &mut self.site
    }

    pub fn postgres(&self) -> &Postgres {
        &self.site.postgres
    }

    pub fn rabbitmq(&self) -> &RabbitMq {
        &self.site.rabbitmq
    }

    /// The database URL of the relay's role.
    pub fn database_url(&self) -> String {
        self.postgres()
            .url_for("relay", "relay-canary-password", &self.database)
    }

    /// The database URL of a role whose password is its name.
    pub fn url_of(&self, role: &str) -> String {
        self.postgres().url_for(role, role, &self.database)
    }

    pub fn broker_url(&self) -> String {
        self.site.broker_url()
    }

    /// The environment of every process under test; `more` adds to it and takes precedence.
    pub fn env(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = vec![
            ("DATABASE_URL".to_owned(), self.database_url()),
            ("AMQP_URL".to_owned(), self.broker_url()),
            ("OUTBOXD__ADMIN__LISTEN".to_owned(), "off".to_owned()),
            ("OUTBOXD__LOG__FORMAT".to_owned(), "json".to_owned()),
            // With a line for each attempt.
            (
                "OUTBOXD__LOG__LEVEL".to_owned(),
                "info,outboxd::relay::outages=debug".to_owned(),
            ),
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
        Daemon::start(&binary(), &["run"], &self.env(more)).unwrap()
    }

    /// Starts a relay whose rows may name the default exchange.
    pub fn relay_with_default_exchange(&self, more: &[(&str, &str)]) -> Daemon {
        let file = default_exchange();
        let args = ["--config", file.as_str(), "run"];
        Daemon::start(&binary(), &args, &self.env(more)).unwrap()
    }

    /// Starts a relay with an admin port, and returns the port.
    pub fn watched(&self, more: &[(&str, &str)]) -> (Daemon, u16) {
        let port = test_support::free_port().unwrap();
        let listen = format!("127.0.0.1:{port}");
        let more = [more, &[("OUTBOXD__ADMIN__LISTEN", &listen)]].concat();
        (self.relay(&more), port)
    }

    /// An empty database of the owner's; returns its name and the owner's URL.
    pub async fn another(&self, name: &str) -> (String, String) {
        let database = format!("{}_{name}", self.database);
        let created = self.postgres().create_database(&database, "owner").await;
        created.unwrap();
        let url = self.postgres().url_for("owner", "owner", &database);
        (database, url)
    }

    /// Runs a command to its end; returns exit code, standard output and standard error.
    pub async fn outboxd(&self, args: &[&str], more: &[(&str, &str)]) -> Run {
        run(args, &self.env(more)).await
    }

    /// Runs a command as it is typed, which must succeed; returns its output.
    pub async fn ok(&self, command: &str) -> String {
        let run = self.outboxd(&words(command), &[]).await;
        run.ends(0, &[]);
        run.stdout
    }

    pub async fn channel(&self) -> Channel {
        amqp::channel(&self.broker_url()).await.unwrap()
    }

    pub async fn declare_exchange(&self, name: &str) {
        amqp::exchange(&self.channel().await, name).await.unwrap();
    }

    /// Declares a durable queue and binds it to `events` (declared too).
    pub async fn bind(&self, queue: &str, pattern: &str, arguments: &[(&str, AMQPValue)]) {
        let channel = self.channel().await;
        amqp::exchange(&channel, "events").await.unwrap();
        let declared = amqp::queue_with(&channel, queue, arguments).await;
        declared.unwrap();
        let bound = amqp::bind_key(&channel, "events", queue, pattern).await;
        bound.unwrap();
    }

    /// Binds a queue to everything and consumes it.
    pub async fn consumer(&self) -> Consumer {
        self.bind("all", "#", &[]).await;
        self.consume("all").await
    }

    pub async fn consume(&self, queue: &str) -> Consumer {
        Recorder::start(&self.broker_url(), queue)
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
        let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                      SELECT 'order', (i % $2)::text, 'created', json_build_object('i', i) \
                      FROM generate_series(1, $1::int) i";
        let (n, keys) = (i32::try_from(n).unwrap(), i32::try_from(keys).unwrap());
        let parameters: [&(dyn ToSql + Sync); 2] = [&n, &keys];
        let written = self.ledger.insert(&self.client, insert, &parameters);
        written.await.unwrap();
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
        let insert = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload{}) \
             VALUES ('order', $1, $2, $3::text::json{})",
            more(&names),
            more(&values)
        );
        let parameters: [&(dyn ToSql + Sync); 3] = [&key, &event_type, &body];
        let written = self.ledger.insert(&self.client, &insert, &parameters);
        written.await.unwrap()[0]
    }

    pub async fn sql(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    /// Reads one number with SQL.
    pub async fn count(&self, sql: &str) -> i64 {
        self.one(&format!("SELECT count(*) FROM {sql}")).await
    }

    /// What SQL answers in its first column.
    pub async fn one<T: FromSqlOwned>(&self, sql: &str) -> T {
        self.row(sql).await.get(0)
    }

    pub async fn row(&self, sql: &str) -> Row {
        let row = self.client.query_one(sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    pub async fn all(&self, sql: &str) -> Vec<Row> {
        let rows = self.client.query(sql, &[]).await;
        rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// There are so many such rows now.
    #[track_caller]
    pub fn has(&self, sql: &str, expected: i64) -> impl Future<Output = ()> {
        let caller = Location::caller();
        async move { assert_eq!(self.count(sql).await, expected, "{sql} ({caller})") }
    }

    /// Waits for so many dead messages of this kind.
    #[track_caller]
    pub fn dead(&self, which: &str, expected: i64) -> impl Future<Output = ()> {
        self.rows("outbox.dead", which, expected)
    }

    /// Waits for so many waiting messages of this kind.
    #[track_caller]
    pub fn waiting(&self, which: &str, expected: i64) -> impl Future<Output = ()> {
        self.rows("outbox.waiting", which, expected)
    }

    /// Waits until so many messages are marked as sent.
    #[track_caller]
    pub fn marked(&self, expected: i64) -> impl Future<Output = ()> {
        self.rows("outbox.message", "sent_at IS NOT NULL", expected)
    }

    /// Waits until the marks have passed every message that is there.
    #[track_caller]
    pub fn passed_by_marks(&self) -> impl Future<Output = ()> {
        let above = "m.id > (SELECT low_water FROM outbox.lane l WHERE l.lane = m.lane)";
        self.rows("outbox.message m", above, 0)
    }

    #[track_caller]
    fn rows(&self, of: &str, which: &str, expected: i64) -> impl Future<Output = ()> {
        let sql = format!("{of} WHERE {which}");
        nearer(&sql.clone(), async move || {
            Some((self.count(&sql).await - expected).abs())
        })
    }

    /// Waits for this number of rows, as long as the number comes closer.
    #[track_caller]
    pub fn until(&self, what: &str, sql: &str, expected: i64) -> impl Future<Output = ()> {
        nearer(what, async move || {
            Some((self.count(sql).await - expected).abs())
        })
    }

    /// Waits until nothing is pending (every message is sent or dead), as long as pending messages become fewer.
    #[track_caller]
    pub fn drained(&self) -> impl Future<Output = ()> {
        test_support::drained(&self.client)
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

    /// Compares the committed events with the deliveries of `consumer`.
    pub async fn judge(&self, consumer: &Consumer) -> Report {
        self.ledger.judge(&self.client, consumer).await.unwrap()
    }

    /// Nothing is pending any more, every message arrived in order, and so many at most came again.
    #[track_caller]
    pub fn clean(&self, consumer: &Consumer, duplicates: usize) -> impl Future<Output = ()> {
        let caller = Location::caller();
        async move {
            self.drained().await;
            let report = self.judge(consumer).await;
            assert!(
                report.is_clean() && report.duplicates <= duplicates,
                "{report}; {duplicates} duplicates are allowed ({caller})"
            );
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

/// The words of a command, as a shell splits them: what stands between single quotes is one.
pub fn words(command: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (n, part) in command.split('\'').enumerate() {
        match n % 2 {
            0 => words.extend(part.split_whitespace()),
            _ => words.push(part),
        }
    }
    words
}

pub async fn run(args: &[&str], env: &[(String, String)]) -> Run {
    let (program, env) = (binary(), env.iter().cloned());
    test_support::run(&program, args, env).await.unwrap()
}
