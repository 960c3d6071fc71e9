//! What a question needs: a database, two queues, a provider, and the example as a process.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use lapin::{
    BasicProperties, Channel,
    options::{BasicGetOptions, BasicPublishOptions},
    types::{AMQPValue, FieldTable},
};
pub use test_support::SOON;
use test_support::{
    Daemon, Postgres, RabbitMq,
    amqp::{self, short},
    eventually, over,
};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, types::ToSql};

use crate::{
    language::{Language, Program, repository},
    provider::Provider,
};

/// All messages of a question have one `outbox-key`, so that no consumer may change their order.
const KEY: &str = "orders";

struct Servers {
    postgres: Postgres,
    rabbitmq: RabbitMq,
    next: AtomicUsize,
}

static SHARED: OnceCell<Servers> = OnceCell::const_new();

async fn start() -> Servers {
    let (postgres, rabbitmq) = tokio::join!(Postgres::start(), RabbitMq::start());
    let (postgres, rabbitmq) = (postgres.unwrap(), rabbitmq.unwrap());
    let owner = "CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'owner'";
    postgres.execute("postgres", owner).await.unwrap();
    postgres.create_database("template", "owner").await.unwrap();
    // As the README says, and with no more rights.
    for file in [
        "migrations/inbox/0001_inbox.sql",
        "deploy/postgres/inbox_roles.sql",
        "examples/consuming/payments.sql",
    ] {
        let sql = std::fs::read_to_string(repository().join(file)).unwrap();
        postgres.psql("owner", "owner", "template", &sql).unwrap();
    }
    Servers {
        postgres,
        rabbitmq,
        next: AtomicUsize::new(0),
    }
}

pub struct World {
    servers: &'static Servers,
    program: &'static Program,
    database: String,
    queue: String,
    pub client: Client,
    pub provider: Provider,
    channel: Channel,
}

impl World {
    /// `None` when the language is not on this machine.
    pub async fn of(language: Language) -> Option<Self> {
        let program = language.program().await?;
        let servers = SHARED.get_or_init(start).await;
        let n = servers.next.fetch_add(1, Ordering::Relaxed);
        let (database, queue) = (format!("db{n}"), format!("payments-{n}"));
        // Two tests cannot copy a template at one moment.
        eventually("a copy of the template", SOON, async || {
            let copy = servers.postgres.copy_database(&database, "template");
            copy.await.ok()
        })
        .await;
        let channel = amqp::channel(&servers.rabbitmq.url("/")).await.unwrap();
        for queue in [&queue, &format!("{queue}.dead")] {
            amqp::queue_with(&channel, queue, &[]).await.unwrap();
        }
        Some(Self {
            client: servers.postgres.connect(&database).await.unwrap(),
            provider: Provider::start().await,
            servers,
            program,
            database,
            queue,
            channel,
        })
    }

    /// The example, consuming.
    pub async fn consumer(&self) -> Daemon {
        self.consumer_over(self.broker_port()).await
    }

    /// The same, over a proxy before the broker.
    pub async fn consumer_over(&self, port: u16) -> Daemon {
        let (_, before) = self.queue_state().await;
        let postgres = self.servers.postgres.port();
        let broker = self.servers.rabbitmq.url("/");
        let env = [
            ("DATABASE_URL", self.servers.postgres.url_for("payments_service", "payments", &self.database)),
            ("JDBC_URL", format!(
                "jdbc:postgresql://127.0.0.1:{postgres}/{}?user=payments_service&password=payments",
                self.database
            )),
            ("AMQP_URL", over(&broker, port)),
            ("QUEUE", self.queue.clone()),
            ("PROVIDER_URL", self.provider.url().to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let args: Vec<&str> = self.program.args.iter().map(String::as_str).collect();
        let daemon = Daemon::start(&self.program.path, &args, &env).unwrap();
        self.until_consumers(before + 1).await;
        daemon
    }

    pub fn broker_port(&self) -> u16 {
        self.servers.rabbitmq.port()
    }

    pub async fn another_client(&self) -> Client {
        self.servers.postgres.connect(&self.database).await.unwrap()
    }

    pub async fn send(&self, message: &Sent<'_>) {
        self.send_all(std::slice::from_ref(message)).await;
    }

    /// Published one after the other, and then confirmed.
    pub async fn send_all(&self, messages: &[Sent<'_>]) {
        let mut confirms = Vec::new();
        for message in messages {
            let mut headers = FieldTable::default();
            headers.insert(short("outbox-key"), AMQPValue::LongString(KEY.into()));
            headers.insert(
                short("outbox-position"),
                AMQPValue::LongLongInt(message.position),
            );
            if let Some(payment) = message.payment {
                headers.insert(short("payment"), AMQPValue::LongString(payment.into()));
            }
            let mut properties = BasicProperties::default()
                .with_type(short(message.type_))
                .with_content_type("application/json".into())
                .with_delivery_mode(2)
                .with_headers(headers);
            if !message.id.is_empty() {
                properties = properties.with_message_id(short(message.id));
            }
            let (to, options) = (short(&self.queue), BasicPublishOptions::default());
            let publish = self.channel.basic_publish(
                short(""),
                to,
                options,
                message.body.as_bytes(),
                properties,
            );
            confirms.push(publish.await.unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap();
        }
    }

    /// Messages that are ready, and consumers.
    async fn queue_state(&self) -> (u32, u32) {
        amqp::depth(&self.channel, &self.queue).await.unwrap()
    }

    /// A consumer that is gone has given back what it did not acknowledge: the queue does both at once.
    pub async fn until_consumers(&self, n: u32) {
        eventually(&format!("{n} consumers"), SOON, async || {
            (self.queue_state().await.1 == n).then_some(())
        })
        .await;
    }

    pub async fn until_ready(&self, n: u32) {
        eventually(&format!("{n} messages in the queue"), SOON, async || {
            (self.queue_state().await.0 == n).then_some(())
        })
        .await;
    }

    /// SIGTERM, and the exit code 0 that must follow.
    pub async fn stop(&self, mut consumer: Daemon) {
        consumer.terminate().unwrap();
        let status = consumer.ended(SOON).await.unwrap();
        assert!(
            status.success(),
            "{status}: {}",
            consumer.lines().join("\n")
        );
    }

    /// Lets the consumers work off the queue, and stops them. Everything must have been acknowledged.
    pub async fn finish(&self, consumers: impl IntoIterator<Item = Daemon>) {
        let mut consumers: Vec<Daemon> = consumers.into_iter().collect();
        let last = consumers.pop().expect("a consumer");
        for consumer in consumers {
            self.stop(consumer).await;
        }
        self.until_consumers(1).await;
        // A single consumer applies it after all that was there.
        let end = Sent {
            id: "end",
            body: r#"{"order":"end","cents":1}"#,
            ..PLACED
        };
        self.send(&end).await;
        self.until("the end", "payment WHERE order_id = 'end'", 1)
            .await;
        self.stop(last).await;
        self.until_consumers(0).await;
        assert_eq!(self.queue_state().await.0, 0, "not acknowledged");
    }

    pub async fn count(&self, what: &str) -> i64 {
        self.value(&format!("SELECT count(*) FROM {what}"), &[])
            .await
    }

    pub async fn until(&self, what: &str, rows: &str, n: i64) {
        eventually(what, SOON, async || {
            (self.count(rows).await == n).then_some(())
        })
        .await;
    }

    pub async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> T {
        self.client.query_one(sql, parameters).await.unwrap().get(0)
    }

    /// So many statements of the consumers wait for somebody else's transaction or lock.
    pub async fn until_blocked(&self, n: i64) {
        let blocked = "pg_stat_activity WHERE usename = 'payments_service' \
                       AND datname = current_database() AND wait_event_type = 'Lock'";
        self.until(&format!("{n} blocked statements"), blocked, n)
            .await;
    }

    /// While it lives, nobody writes to `table`.
    pub async fn hold(&self, table: &str) -> Held {
        let client = self.another_client().await;
        let lock = format!("BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE");
        client.batch_execute(&lock).await.unwrap();
        Held(client)
    }

    /// Waits for the next dead letter: its message id, and its headers as text.
    pub async fn dead_letter(&self) -> (String, BTreeMap<String, String>) {
        let queue = format!("{}.dead", self.queue);
        let message = eventually("a dead letter", SOON, async || {
            let get = self
                .channel
                .basic_get(short(&queue), BasicGetOptions { no_ack: true });
            get.await.unwrap()
        })
        .await;
        let headers = message
            .properties
            .headers()
            .iter()
            .flat_map(FieldTable::inner);
        let headers = headers.map(|(name, value)| (name.to_string(), text(value)));
        let id = message
            .properties
            .message_id()
            .as_ref()
            .map(ToString::to_string);
        (id.unwrap_or_default(), headers.collect())
    }

    pub async fn no_dead_letter(&self) {
        let queue = format!("{}.dead", self.queue);
        let get = self
            .channel
            .basic_get(short(&queue), BasicGetOptions::default());
        let message = get.await.unwrap();
        assert!(message.is_none(), "dead-lettered: {message:?}");
    }
}

pub struct Held(Client);

impl Held {
    pub async fn release(self) {
        self.0.batch_execute("COMMIT").await.unwrap();
    }
}

/// A message, as a relay publishes it.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    pub id: &'a str,
    pub type_: &'a str,
    pub body: &'a str,
    /// The business key.
    pub payment: Option<&'a str>,
    pub position: i64,
}

pub const PLACED: Sent<'static> = Sent {
    id: "m1",
    type_: "order_placed",
    body: r#"{"order":"1042","cents":1999}"#,
    payment: None,
    position: 1,
};

fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::LongLongInt(n) => n.to_string(),
        AMQPValue::LongInt(n) => n.to_string(),
        AMQPValue::ShortShortInt(n) => n.to_string(),
        AMQPValue::ShortShortUInt(n) => n.to_string(),
        AMQPValue::ShortInt(n) => n.to_string(),
        other => format!("{other:?}"),
    }
}
