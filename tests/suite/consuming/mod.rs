//! The consumer runner: claim → handler → commit → ack, whatever happens around it.

mod applied;
mod bursts;
mod crashes;
mod hostile;
mod telemetry;
mod trouble;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, ReplayPolicy, Reply, run},
    inbox::{Inbox, MAX_RESULT, Operation, OperationError},
};
use test_support::{Mode, Proxy, amqp, eventually, nearer, over};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use crate::world::{SOON, Seen, World, short, world};

const QUEUE: &str = "payments";
const DEAD: &str = "payments.dead";
/// A time-out of handlers that is long enough for every handler that does not hang, on the busiest machine.
const UNHURRIED: Duration = Duration::from_secs(5);

/// Adds one cent to the account that the body names, and behaves as the message's type says.
struct Payments {
    tried: Mutex<Vec<String>>,
    running: AtomicUsize,
    proxy: Option<Proxy>,
    /// Messages of the type "slow" wait for this.
    go: Semaphore,
}

impl Payments {
    /// Lets every slow handler go on, also those of later messages.
    fn go(&self) {
        self.go.add_permits(1_000_000);
    }
}

impl Default for Payments {
    fn default() -> Self {
        Self {
            tried: Mutex::default(),
            running: AtomicUsize::default(),
            proxy: None,
            go: Semaphore::new(0),
        }
    }
}

struct Shared(Arc<Payments>);

impl Handler for Shared {
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        match message.text_header("payment") {
            Some(business) => message.operation_as(&business),
            None => message.operation(),
        }
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        let account = String::from_utf8_lossy(&message.body).into_owned();
        self.0.tried.lock().unwrap().push(account.clone());
        let sql = "INSERT INTO account AS a (id, cents) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET cents = a.cents + 1";
        transaction.execute(sql, &[&account]).await?;
        let tries = || {
            self.0
                .tried
                .lock()
                .unwrap()
                .iter()
                .filter(|t| **t == account)
                .count()
        };
        match message.type_() {
            "fails" => Err(Failure::Retry("always".to_owned())),
            "fails_until_other" if !self.0.tried.lock().unwrap().contains(&"other".to_owned()) => {
                Err(Failure::Retry("the other one first".to_owned()))
            }
            "fails_twice" if tries() <= 2 => Err(Failure::Retry("not yet".to_owned())),
            "wrong" => Err(Failure::Reject("no such order".to_owned())),
            "doubt" => Err(Failure::InDoubt("the provider did not answer".to_owned())),
            "slow" => {
                self.0.running.fetch_add(1, Ordering::SeqCst);
                self.0.go.acquire().await.unwrap().forget();
                Reply::json(&"slow")
            }
            "outlives_its_session" => {
                session_ended(transaction).await;
                Ok(Reply::none())
            }
            "outlives_its_session_and_writes" => {
                session_ended(transaction).await;
                transaction.execute(sql, &[&account]).await?;
                Ok(Reply::none())
            }
            "hangs_once" if tries() == 1 => std::future::pending().await,
            "hangs" => std::future::pending().await,
            "panics_once" if tries() == 1 => panic!("a handler's bug"),
            "panics" => panic!("a handler's bug"),
            // The effect is committed, and the acknowledgement is lost.
            "cut" if tries() == 1 => {
                if let Some(proxy) = &self.0.proxy {
                    proxy.set(Mode::Stall);
                }
                Ok(Reply::none())
            }
            "returns_too_much" => Reply::json(&"x".repeat(MAX_RESULT)),
            "ignores_an_error" => {
                let _ = transaction.execute("SELECT 1 / 0", &[]).await;
                Ok(Reply::none())
            }
            _ => Reply::json(&"paid"),
        }
    }
}

/// Waits until the server has ended the session, which must stay idle. The driver has no event for it.
async fn session_ended(transaction: &Transaction<'_>) {
    let ended = async {
        while !transaction.client().is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, ended).await.unwrap();
}

async fn connected(url: String) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The dead letter says so.
fn assert_dead(letter: &Seen, reason: &str, attempts: i64) {
    let said = letter.text_header("outbox-dead-reason");
    assert_eq!(said.as_deref(), Some(reason), "{letter:?}");
    let counted = letter.header("outbox-dead-attempts");
    let attempts = AMQPValue::LongLongInt(attempts);
    assert_eq!(counted, Some(attempts), "{letter:?}");
}

struct Running {
    payments: Arc<Payments>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task)
            .await
            .expect("it ends")
            .unwrap();
    }
}

fn start(world: &World, payments: Payments, change: impl FnOnce(&mut ConsumerOptions)) -> Running {
    let url = match &payments.proxy {
        Some(proxy) => over(&world.broker_url(), proxy.port()),
        None => world.broker_url(),
    };
    let database = world.url_of("payments");
    let mut options = ConsumerOptions {
        declare: true,
        // A slow handler waits for the test.
        handler_timeout: SOON,
        max_attempts: 4,
        backoff_initial: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..ConsumerOptions::new(QUEUE)
    };
    change(&mut options);
    let payments = Arc::new(payments);
    let handler = Shared(Arc::clone(&payments));
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move {
        let connect = move || connected(database.clone());
        let inbox = Inbox::new("payments").unwrap();
        run(&url, connect, inbox, options, handler, token)
            .await
            .unwrap();
    });
    Running {
        payments,
        stop,
        task,
    }
}

/// Publishes a message as a relay, or anybody else, does.
struct Sent<'a> {
    id: Option<&'a str>,
    type_: &'a str,
    account: &'a str,
    key: Option<&'a str>,
    headers: &'a [(&'a str, AMQPValue)],
}

/// A message that pays one cent to this account.
fn pays<'a>(id: &'a str, account: &'a str) -> Sent<'a> {
    Sent {
        id: Some(id),
        type_: "pays",
        account,
        key: None,
        headers: &[],
    }
}

impl<'a> Sent<'a> {
    fn of(self, type_: &'a str) -> Self {
        Self { type_, ..self }
    }

    fn key(self, key: &'a str) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }

    fn with(self, headers: &'a [(&'a str, AMQPValue)]) -> Self {
        Self { headers, ..self }
    }

    /// Publishes it as soon as the queue exists.
    async fn to(&self, world: &World) {
        let mut headers = FieldTable::default();
        if let Some(key) = self.key {
            headers.insert("outbox-key".into(), AMQPValue::LongString(key.into()));
        }
        for (name, value) in self.headers {
            headers.insert(short(name), value.clone());
        }
        let mut properties = BasicProperties::default()
            .with_type(short(self.type_))
            .with_content_type("text/plain".into())
            .with_headers(headers);
        if let Some(id) = self.id {
            properties = properties.with_message_id(short(id));
        }
        let channel = world.channel().await;
        eventually("the queue", SOON, async || {
            let publish = amqp::publish_with(&channel, QUEUE, properties.clone(), self.account);
            publish.await.ok()
        })
        .await;
    }
}

async fn cents(world: &World) -> HashMap<String, i64> {
    let rows = world.all("SELECT id, cents FROM account").await;
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until_paid(world: &World, account: &str) {
    eventually("the payment", SOON, async || {
        cents(world).await.contains_key(account).then_some(())
    })
    .await;
}

/// Waits until every message is acknowledged.
async fn until_empty(world: &World) {
    until_holds(world, QUEUE, 0).await;
}

async fn until_holds(world: &World, queue: &str, messages: usize) {
    nearer(&format!("{messages} messages in {queue}"), async || {
        let there = world.rabbitmq().unacknowledged(&world.vhost, queue).await;
        i64::try_from(there.ok()?.abs_diff(messages)).ok()
    })
    .await;
}

/// The value of a series as Prometheus reads it; `None` if the series is absent.
fn reading(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}
