//! The consuming side: two consumers of the same events, one with the inbox and one without, under the same faults.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::Inbox,
};
use test_support::{Mode, Postgres, Proxy, RabbitMq, Result, amqp};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;

const NAIVE: &str = "payments.naive";
const EXACT: &str = "payments.exact";
/// The business write of both consumers; like most business writes, it is not idempotent.
const PAY: &str = "INSERT INTO paid AS p (consumer, customer, cents) VALUES ($1, $2, $3) \
                   ON CONFLICT (consumer, customer) DO UPDATE SET cents = p.cents + excluded.cents";

pub struct Payments {
    proxy: Proxy,
    stop: CancellationToken,
    exact: Vec<JoinHandle<std::result::Result<(), outbox::consumer::ConsumerError>>>,
    naive: Vec<AbortHandle>,
    client: Client,
}

/// The total that each consumer paid.
pub struct Paid {
    pub naive: i64,
    pub exact: i64,
}

#[derive(serde::Deserialize)]
struct Order {
    customer: i32,
    cents: i64,
}

struct Pay;

impl Handler for Pay {
    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> std::result::Result<Reply, Failure> {
        let order: Order =
            serde_json::from_slice(&message.body).map_err(|e| Failure::Reject(e.to_string()))?;
        transaction
            .execute(PAY, &[&EXACT, &order.customer, &order.cents])
            .await?;
        Reply::json(&"paid")
    }
}

impl Payments {
    /// Starts two instances of each consumer; the demo controls their network to RabbitMQ.
    pub async fn start(postgres: &Postgres, rabbitmq: &RabbitMq) -> Result<Self> {
        postgres.create_database("payments", "shop").await?;
        for file in [
            "migrations/inbox/0001_inbox.sql",
            "deploy/postgres/inbox_roles.sql",
        ] {
            postgres.psql("shop", "shop", "payments", &std::fs::read_to_string(file)?)?;
        }
        let tables = "CREATE TABLE paid (consumer text, customer int, cents bigint NOT NULL, PRIMARY KEY (consumer, customer)); \
                      CREATE ROLE payments LOGIN PASSWORD 'payments' IN ROLE inbox_consumer; \
                      GRANT SELECT, INSERT, UPDATE ON paid TO payments";
        postgres.execute("payments", tables).await?;
        declare(&rabbitmq.url("/")).await?;

        let (proxy, broker) = Proxy::before(&rabbitmq.url("/")).await?;
        let database = postgres.url_for("payments", "payments", "payments");
        let stop = CancellationToken::new();
        let (mut exact, mut naive) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (broker, database) = (broker.clone(), database.clone());
            naive
                .push(tokio::spawn(without_inbox(broker.clone(), database.clone())).abort_handle());
            let connect = move || connect(database.clone());
            let options = ConsumerOptions {
                handlers: 2,
                ..ConsumerOptions::new(EXACT)
            };
            let inbox = Inbox::new("payments")?;
            let stop = stop.clone();
            exact.push(tokio::spawn(async move {
                outbox::consumer::run(&broker, connect, inbox, options, Pay, stop).await
            }));
        }
        let client = postgres.connect("payments").await?;
        Ok(Self {
            proxy,
            stop,
            exact,
            naive,
            client,
        })
    }

    /// Messages that were applied and not acknowledged are redelivered.
    pub async fn cut_the_network(&self) {
        self.proxy.set(Mode::Cut);
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.proxy.set(Mode::Forward);
    }

    /// Waits until both queues are empty and nothing is unacknowledged, then stops.
    pub async fn finish(self, rabbitmq: &RabbitMq) -> Result<Paid> {
        let deadline = std::time::Instant::now() + Duration::from_secs(600);
        loop {
            let queues = rabbitmq
                .ctl(&["list_queues", "-q", "name", "messages"])
                .await?;
            let is_empty = |queue: &str| {
                queues
                    .lines()
                    .any(|line| line.split_whitespace().eq([queue, "0"]))
            };
            if is_empty(NAIVE) && is_empty(EXACT) {
                break;
            }
            if std::time::Instant::now() > deadline {
                return Err(format!("the queues are not drained:\n{queues}").into());
            }
        }
        self.stop.cancel();
        for task in self.exact {
            task.await??;
        }
        for task in self.naive {
            task.abort();
        }
        let sql = "SELECT coalesce(sum(cents) FILTER (WHERE consumer = $1), 0)::bigint, \
                          coalesce(sum(cents) FILTER (WHERE consumer = $2), 0)::bigint FROM paid";
        let row = self.client.query_one(sql, &[&NAIVE, &EXACT]).await?;
        Ok(Paid {
            naive: row.get(0),
            exact: row.get(1),
        })
    }
}

async fn connect(database: String) -> std::result::Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&database, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn declare(url: &str) -> Result<()> {
    let channel = amqp::channel(url).await?;
    for queue in [NAIVE, EXACT, "payments.exact.dead"] {
        amqp::queue_with(&channel, queue, &[]).await?;
    }
    for queue in [NAIVE, EXACT] {
        amqp::bind_key(&channel, "events", queue, "customer.#").await?;
    }
    Ok(())
}

/// The usual first version: apply, commit, acknowledge. Reconnects when the network is back.
async fn without_inbox(broker: String, database: String) {
    loop {
        // Retry after any error.
        let _ = consume(&broker, &database).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn consume(broker: &str, database: &str) -> Result<()> {
    let client = connect(database.to_owned()).await?;
    let connection = Connection::connect(broker, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(200, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries = channel
        .basic_consume(NAIVE.into(), "".into(), options, FieldTable::default())
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        let order: Order = serde_json::from_slice(&delivery.data)?;
        client
            .execute(PAY, &[&NAIVE, &order.customer, &order.cents])
            .await?;
        // When the connection ends, an acknowledgement may get lost and never complete.
        let acknowledged = delivery.ack(BasicAckOptions::default());
        tokio::time::timeout(Duration::from_secs(5), acknowledged).await??;
    }
    Ok(())
}
