//! What every measurement stands on: servers as they run in production, the outbox, and a relay.

use std::time::Duration;

use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use test_support::{Daemon, Postgres, PostgresOptions, RabbitMq};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_postgres::Client;

use crate::Result;

pub const SOON: Duration = Duration::from_secs(60);
const DATABASE: &str = "bench";
pub const QUEUE: &str = "bench";

pub struct Stage {
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
    pub client: Client,
}

impl Stage {
    pub async fn start() -> Result<Self> {
        // A commit reaches the disk, as in production; tests leave that out.
        let settings = [
            ("fsync", "on"),
            ("shared_buffers", "1GB"),
            ("max_wal_size", "8GB"),
        ];
        let settings = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let options = PostgresOptions {
            settings,
            ..PostgresOptions::default()
        };
        let (postgres, rabbitmq) = tokio::join!(Postgres::start_with(options), RabbitMq::start());
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        postgres.create_database(DATABASE, "postgres").await?;
        let migration = std::fs::read_to_string("migrations/outbox/0001_outbox.sql")?;
        postgres.execute(DATABASE, &migration).await?;
        let client = postgres.connect(DATABASE).await?;
        Ok(Self {
            postgres,
            rabbitmq,
            client,
        })
    }

    /// `n` messages of 512 bytes of JSON over `keys` keys, and an outbox as if it had never held others.
    pub async fn fill(&self, n: usize, keys: usize) -> Result<()> {
        self.client
            .batch_execute("SELECT pg_stat_reset(); TRUNCATE outbox.message, outbox.waiting, outbox.dead; UPDATE outbox.lane SET low_water = 0, candidate = NULL, candidate_tx = NULL")
            .await?;
        self.client
            .execute(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
                 SELECT 'order', (i % $2)::text, 'created', \
                        ('{\"id\":' || lpad(i::text, 12) || ',\"pad\":\"' || repeat('x', 484) || '\"}')::json, \
                        '{\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}'::json \
                 FROM generate_series(1, $1::int) i",
                &[&i32::try_from(n)?, &i32::try_from(keys)?],
            )
            .await?;
        for statement in ["VACUUM (ANALYZE) outbox.message", "CHECKPOINT"] {
            self.client.batch_execute(statement).await?;
        }
        Ok(())
    }

    /// An empty queue of this type, bound to everything.
    pub async fn queue(&self, kind: &str) -> Result<()> {
        let channel = self.channel().await?;
        channel
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
            .await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(
                "events".into(),
                ExchangeKind::Topic,
                durable,
                FieldTable::default(),
            )
            .await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(QUEUE.into(), durable, arguments)
            .await?;
        let (binding, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(QUEUE.into(), "events".into(), "#".into(), binding, none)
            .await?;
        Ok(())
    }

    pub async fn channel(&self) -> Result<Channel> {
        let url = self.rabbitmq.url("/");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    /// The released program, with default settings, and the port of its metrics.
    pub async fn relay(&self) -> Result<(Daemon, u16)> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let env = [
            ("DATABASE_URL", self.postgres.url(DATABASE)),
            ("AMQP_URL", self.rabbitmq.url("/")),
            ("OUTBOXD__ADMIN__LISTEN", format!("127.0.0.1:{port}")),
        ]
        .map(|(k, v)| (k.to_owned(), v));
        let program = crate::built("release").canonicalize()?;
        let relay = Daemon::start(&program, &["run"], &env)?;
        relay.line("connected to both servers", SOON).await;
        Ok((relay, port))
    }

    /// Waits until nothing is pending; looks rarely, so as not to take part in what it measures.
    pub async fn drained(&self, within: Duration) -> Result<()> {
        let deadline = std::time::Instant::now() + within;
        loop {
            let row = self
                .client
                .query_one("SELECT pending FROM outbox.status", &[])
                .await?;
            let pending: i64 = row.get(0);
            if pending == 0 {
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                return Err(
                    format!("{pending} messages are still pending after {within:?}").into(),
                );
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// User and system time of PostgreSQL so far, in seconds; of the processes that ended as well.
    pub fn server_cpu_seconds(&self) -> Result<f64> {
        let file = self.postgres.folder().join("data/postmaster.pid");
        let text = std::fs::read_to_string(file)?;
        let postmaster: u32 = text.lines().next().unwrap_or_default().parse()?;
        let mut seconds = 0.0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // One that has ended since is counted with its parent the next time.
            let Ok(stat) = Stat::of(pid) else { continue };
            if pid == postmaster {
                seconds += stat.seconds([11, 12]) + stat.seconds([13, 14]);
            } else if stat.field(1) == f64::from(postmaster) {
                seconds += stat.seconds([11, 12]);
            }
        }
        Ok(seconds)
    }

    /// Seconds since the epoch, by the database's clock.
    pub async fn now(&self) -> Result<f64> {
        let sql = "SELECT extract(epoch FROM clock_timestamp())::double precision";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }

    /// Part of the updates of messages that touched no index.
    pub async fn heap_only(&self) -> Result<f64> {
        // Statistics of a backend arrive when it next has nothing to do for a while.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sql = "SELECT n_tup_hot_upd::double precision / greatest(n_tup_upd, 1) FROM pg_stat_user_tables \
                   WHERE schemaname = 'outbox' AND relname = 'message'";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }

    /// When the last message was marked, by the database's clock.
    pub async fn last_sent(&self) -> Result<f64> {
        let sql = "SELECT extract(epoch FROM max(sent_at))::double precision FROM outbox.message";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }
}

/// Mean of a histogram since the relay's start.
pub async fn mean(port: u16, histogram: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let value = |suffix: &str| {
        let name = format!("outbox_{histogram}_{suffix} ");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .unwrap_or("0");
        line.parse::<f64>().unwrap_or(0.0)
    };
    Ok(value("sum") / value("count").max(1.0))
}

/// User and system time of a process so far, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(Stat::of(pid)?.seconds([11, 12]))
}

/// What follows the name in /proc/PID/stat.
struct Stat(Vec<f64>);

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let number = |text: &str| text.parse().unwrap_or(0.0);
        Ok(Self(after_name.split(' ').map(number).collect()))
    }

    fn field(&self, n: usize) -> f64 {
        self.0.get(n).copied().unwrap_or(0.0)
    }

    fn seconds(&self, fields: [usize; 2]) -> f64 {
        /// Clock ticks a second on every Linux that matters.
        const TICKS: f64 = 100.0;
        fields.map(|n| self.field(n)).iter().sum::<f64>() / TICKS
    }
}

/// Most memory that a process has held so far, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .ok_or("no VmHWM")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no VmHWM")?.parse()?;
    Ok(kilobytes * 1024)
}
