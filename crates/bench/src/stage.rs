//! What every measurement stands on: servers as they run in production, queues, and relays.

use std::time::{Duration, Instant};

use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use test_support::{Postgres, PostgresOptions, RabbitMq, Result};

use crate::process;

pub const SOON: Duration = Duration::from_secs(60);
pub const QUEUE: &str = "bench";
/// An exchange that no queue is bound to.
pub const NOWHERE: &str = "nowhere";

pub struct Stage {
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Quorum,
    Classic,
    /// A quorum queue that keeps the newest, so that millions of messages need no disk.
    Short,
}

const SHORT: u32 = 100_000;

impl Queue {
    /// The number of messages.
    pub fn kept(self, n: usize) -> usize {
        match self {
            Self::Quorum | Self::Classic => n,
            Self::Short => n.min(SHORT as usize),
        }
    }
}

impl Stage {
    pub async fn start() -> Result<Self> {
        // A commit reaches the disk, as in production; tests leave that out. Statements are counted only in databases
        // that ask for it.
        let settings = [
            ("fsync", "on"),
            ("shared_buffers", "1GB"),
            ("max_wal_size", "8GB"),
            ("min_wal_size", "2GB"),
            ("shared_preload_libraries", "pg_stat_statements"),
            ("pg_stat_statements.track", "none"),
        ];
        let settings = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let options = PostgresOptions {
            settings,
            ..PostgresOptions::default()
        };
        let (postgres, rabbitmq) = tokio::join!(Postgres::start_with(options), RabbitMq::start());
        let stage = Self {
            postgres: postgres?,
            rabbitmq: rabbitmq?,
        };
        stage.write_ahead_log_in_use().await?;
        Ok(stage)
    }

    /// Has PostgreSQL make the files of its write-ahead log now, which a server that has been running for a while uses
    /// again. Making one writes 16 MiB of zeros, and every commit waits for that.
    async fn write_ahead_log_in_use(&self) -> Result<()> {
        const FILES: usize = 128;
        let client = self.postgres.connect("postgres").await?;
        for _ in 0..FILES {
            // Only what was written to is left for the next one.
            for statement in [
                "SELECT pg_logical_emit_message(false, 'bench', '')",
                "SELECT pg_switch_wal()",
            ] {
                client.batch_execute(statement).await?;
            }
        }
        Ok(client.batch_execute("CHECKPOINT").await?)
    }

    /// An empty queue of this kind, bound to everything.
    pub async fn queue(&self, kind: Queue) -> Result<()> {
        let channel = self.channel().await?;
        channel
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
            .await?;
        for exchange in ["events", NOWHERE] {
            let durable = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let (topic, none) = (ExchangeKind::Topic, FieldTable::default());
            channel
                .exchange_declare(exchange.into(), topic, durable, none)
                .await?;
        }
        let mut arguments = FieldTable::default();
        let type_ = match kind {
            Queue::Classic => "classic",
            Queue::Quorum | Queue::Short => "quorum",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(type_.into()));
        if kind == Queue::Short {
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(SHORT.into()));
        }
        channel
            .queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments)
            .await?;
        let (binding, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(QUEUE.into(), "events".into(), "#".into(), binding, none)
            .await?;
        Ok(())
    }

    /// An error unless the queue comes to hold so many messages: none is missing, none is there twice.
    pub async fn queued(&self, n: usize) -> Result<()> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions::default().passive();
        let deadline = Instant::now() + SOON / 4;
        loop {
            let none = FieldTable::default();
            let queue = channel.queue_declare(QUEUE.into(), passive, none).await?;
            let held = queue.message_count() as usize;
            if held == n {
                return Ok(());
            }
            if Instant::now() > deadline {
                let problem = format!(
                    "the queue holds {held} messages, not {n}; a rate of that means nothing"
                );
                return Err(problem.into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// On a connection of its own, with publisher confirms.
    pub async fn channel(&self) -> Result<Channel> {
        let url = self.rabbitmq.url("/");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    /// User and system time of PostgreSQL so far, in seconds; of the processes that ended as well.
    pub fn server_cpu_seconds(&self) -> Result<f64> {
        let file = self.postgres.folder().join("data/postmaster.pid");
        let text = std::fs::read_to_string(file)?;
        process::tree_cpu_seconds(text.lines().next().unwrap_or_default().parse()?)
    }

    pub fn broker_cpu_seconds(&self) -> Result<f64> {
        process::tree_cpu_seconds(self.rabbitmq.pid().ok_or("the broker does not run")?)
    }
}
