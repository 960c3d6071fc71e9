//! One consumer twice: the crate's runner with the inbox, and the same loop without it. Both read the same messages with
//! the same prefetch, handlers, connections and business write, and acknowledge after the commit.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Acker,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use outbox::{
    consumer::{self, ConsumerOptions, Failure, Handler, Message, Reply},
    inbox::{Inbox, Operation, OperationError},
};
use test_support::{Result, probe::cpu_seconds};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_postgres::{Client, NoTls, Transaction, types::Type};
use tokio_util::sync::CancellationToken;

use crate::{
    load::Load,
    stage::{QUEUE, SOON, Stage},
};

pub const CONSUMER: &str = "payments";
/// As a service has them that changes nothing.
fn options() -> ConsumerOptions {
    ConsumerOptions::new(QUEUE)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every message has its effect once.
    Inbox,
    /// And duplicates get back what the first one returned.
    InboxWithResult,
    /// Every delivery has its effect.
    Plain,
}

/// What one consumer made of one queue.
pub struct Run {
    pub per_second: f64,
    /// User and system time of this process, for each message.
    pub cpu_us: f64,
    /// The same of PostgreSQL, all of its processes.
    pub server_cpu_us: f64,
    /// Payments above one for each order.
    pub doubled: usize,
}

/// Counts what is begun, from the first message to the last.
#[derive(Default)]
pub struct Progress {
    total: usize,
    begun: AtomicUsize,
    first: OnceLock<(Instant, f64)>,
    any: Notify,
    all: Notify,
}

impl Progress {
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Waits for the first message.
    pub async fn started(&self) {
        self.any.notified().await;
    }

    fn begin(&self) {
        let own = std::process::id();
        self.first
            .get_or_init(|| (Instant::now(), cpu_seconds(own).unwrap_or(0.0)));
        let begun = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        if begun == 1 {
            self.any.notify_one();
        }
        if begun == self.total {
            self.all.notify_one();
        }
    }
}

#[derive(serde::Deserialize)]
struct Order {
    id: i64,
    cents: i32,
}

/// The business write, in one round trip.
async fn pay(
    transaction: &Transaction<'_>,
    body: &[u8],
) -> std::result::Result<(), tokio_postgres::Error> {
    let order: Order = serde_json::from_slice(body).unwrap_or(Order { id: -1, cents: 0 });
    transaction
        .execute_typed(
            "INSERT INTO payment (order_id, cents) VALUES ($1, $2)",
            &[(&order.id, Type::INT8), (&order.cents, Type::INT4)],
        )
        .await?;
    Ok(())
}

struct Payments {
    progress: Arc<Progress>,
    with_result: bool,
}

impl Handler for Payments {
    fn operation(&self, message: &Message) -> std::result::Result<Operation, OperationError> {
        self.progress.begin();
        message.operation()
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> std::result::Result<Reply, Failure> {
        pay(transaction, &message.body).await?;
        if self.with_result {
            Reply::json(&"paid")
        } else {
            Ok(Reply::none())
        }
    }
}

/// What a consumer runs against.
pub struct Site<'a> {
    pub stage: &'a Stage,
    pub database: &'static str,
    pub client: Client,
}

impl<'a> Site<'a> {
    /// A database of its own with the inbox, and the table that the handler writes.
    pub async fn new(stage: &'a Stage, database: &'static str) -> Result<Self> {
        stage.postgres.create_database(database, "postgres").await?;
        let migration = std::fs::read_to_string("migrations/inbox/0001_inbox.sql")?;
        stage.postgres.execute(database, &migration).await?;
        let table = "CREATE TABLE payment (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id bigint NOT NULL, \
                     cents integer NOT NULL, paid_at timestamptz NOT NULL DEFAULT now())";
        stage.postgres.execute(database, table).await?;
        let (dead, none) = (options().dead_letter_queue.into(), FieldTable::default());
        let channel = stage.channel().await?;
        channel
            .queue_declare(dead, QueueDeclareOptions::durable(), none)
            .await?;
        let client = stage.postgres.connect(database).await?;
        Ok(Self {
            stage,
            database,
            client,
        })
    }

    /// An inbox that has seen nothing.
    pub async fn forget(&self) -> Result<()> {
        let all = "TRUNCATE inbox.message, inbox.entity, inbox.attempt";
        Ok(self.client.batch_execute(all).await?)
    }

    /// Publishes the load, and has one consumer work it off.
    pub async fn consume(
        &self,
        kind: Kind,
        load: &Load,
        watch: impl AsyncFnOnce(&Progress) -> Result<()>,
    ) -> Result<Run> {
        self.client.batch_execute("TRUNCATE payment").await?;
        load.publish(self.stage).await?;
        self.client.batch_execute("CHECKPOINT").await?;
        let progress = Arc::new(Progress {
            total: load.len(),
            ..Progress::default()
        });
        let server_before = self.stage.server_cpu_seconds()?;
        let stop = CancellationToken::new();
        let (url, database) = (
            self.stage.rabbitmq.url("/"),
            self.stage.postgres.url(self.database),
        );
        let (counted, stopped) = (Arc::clone(&progress), stop.clone());
        let consumer = tokio::spawn(async move {
            match kind {
                Kind::Plain => plain(&url, &database, counted, stopped).await,
                Kind::Inbox | Kind::InboxWithResult => {
                    let with_result = kind == Kind::InboxWithResult;
                    let handler = Payments {
                        progress: counted,
                        with_result,
                    };
                    let connect = move || connect(database.clone());
                    let inbox = Inbox::new(CONSUMER)?;
                    Ok(consumer::run(&url, connect, inbox, options(), handler, stopped).await?)
                }
            }
        });
        let finished = async {
            tokio::time::timeout(SOON * 10, progress.all.notified())
                .await
                .map_err(|_| "the consumer did not see every message within ten minutes")?;
            let (began, cpu) = *progress.first.get().ok_or("nothing was consumed")?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
                began.elapsed().as_secs_f64(),
                cpu_seconds(std::process::id())? - cpu,
            ))
        };
        let (finished, watched) = tokio::join!(finished, watch(&progress));
        // The last few were begun.
        let acknowledged = self.stage.acknowledged().await;
        stop.cancel();
        tokio::time::timeout(SOON, consumer).await???;
        let (took, cpu) = finished?;
        watched?;
        acknowledged?;
        let server_cpu = self.stage.server_cpu_seconds()? - server_before;
        let messages = load.len() as f64;
        Ok(Run {
            per_second: messages / took,
            cpu_us: cpu * 1e6 / messages,
            server_cpu_us: server_cpu * 1e6 / messages,
            doubled: self.verify(kind, load).await?,
        })
    }

    /// A number that comes from a wrong result is not printed. Returns the payments above one for each order.
    async fn verify(&self, kind: Kind, load: &Load) -> Result<usize> {
        let sql = "SELECT count(*), count(DISTINCT order_id), coalesce(min(order_id), 0), coalesce(max(order_id), 0) \
                   FROM payment";
        let row = self.client.query_one(sql, &[]).await?;
        let found: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        let unique = i64::try_from(load.unique())?;
        let payments = match kind {
            Kind::Plain => i64::try_from(load.len())?,
            Kind::Inbox | Kind::InboxWithResult => unique,
        };
        let expected = [payments, unique, 0, unique - 1];
        if found != expected {
            return Err(format!(
                "{kind:?}: payments, orders, first and last order are {found:?}, not {expected:?}"
            )
            .into());
        }
        Ok(usize::try_from(payments - unique)?)
    }
}

async fn connect(url: String) -> std::result::Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The runner's loop, and no inbox: deliveries by key to as many handlers, BEGIN, the write, COMMIT, ack.
async fn plain(
    url: &str,
    database: &str,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<()> {
    let options = options();
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(url, properties).await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(options.prefetch, BasicQosOptions::default())
        .await?;
    let (how, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel
        .basic_consume(QUEUE.into(), "".into(), how, none)
        .await?;
    let mut workers = JoinSet::new();
    let mut senders = Vec::new();
    for _ in 0..options.handlers {
        let (sender, held) = mpsc::channel(usize::from(options.prefetch));
        senders.push(sender);
        let client = connect(database.to_owned()).await?;
        workers.spawn(apply_all(client, held, Arc::clone(&progress)));
    }
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => break,
            next = deliveries.next() => next.ok_or("the broker cancelled the consumer")??,
        };
        let mut hasher = DefaultHasher::new();
        let headers = delivery.properties.headers().as_ref();
        headers
            .and_then(|h| h.inner().get("outbox-key")?.as_long_string())
            .map(lapin::types::LongString::as_bytes)
            .hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % senders.len() as u64)?;
        senders[slot].send((delivery.data, delivery.acker)).await?;
    }
    drop(senders);
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    connection.close(200, "bye".into()).await?;
    Ok(())
}

async fn apply_all(
    mut client: Client,
    mut held: mpsc::Receiver<(Vec<u8>, Acker)>,
    progress: Arc<Progress>,
) -> Result<()> {
    while let Some((body, acker)) = held.recv().await {
        progress.begin();
        let transaction = client.transaction().await?;
        pay(&transaction, &body).await?;
        transaction.commit().await?;
        acker.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

impl Stage {
    /// Waits until the queue holds nothing, delivered or not: all of it was acknowledged.
    async fn acknowledged(&self) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            match self.rabbitmq.unacknowledged("/", QUEUE).await? {
                0 => return Ok(()),
                left if Instant::now() > deadline => {
                    return Err(format!("{left} messages were not acknowledged").into());
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}
