//! Connect, consume, hand out by key, reconnect, drain.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer,
    options::{
        BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    ConsumerOptions, Handler, Message, OptionsError,
    dead_letter::DeadLetters,
    session::Session,
    worker::{Held, Worker, key_of},
};
use crate::{inbox::Inbox, metrics};

#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    #[error("{0}")]
    Options(#[from] OptionsError),
    #[error("RabbitMQ: {0}")]
    Broker(lapin::Error),
    #[error("RabbitMQ did not answer in time ({0})")]
    Timeout(&'static str),
    #[error("RabbitMQ: {0}")]
    Ended(&'static str),
    #[error("the dead-letter queue {queue}: {why}; nothing is acknowledged")]
    DeadLetter { queue: String, why: &'static str },
    #[error("a handler panicked")]
    Panicked,
}

type Connected = Pin<Box<dyn Future<Output = Result<Client, tokio_postgres::Error>> + Send>>;
type Connect = Box<dyn Fn() -> Connected + Send + Sync>;

/// What the workers of a consumer share.
pub(super) struct Shared<H> {
    pub handler: H,
    pub inbox: Inbox,
    pub options: ConsumerOptions,
    connect: Connect,
}

impl<H> Shared<H> {
    /// A new connection for a worker.
    pub async fn session(&self) -> Result<Session, String> {
        let client = self.connect().await?;
        let session = Session::new(client, &self.inbox, self.options.prepared_statements);
        match tokio::time::timeout(ANSWER, session).await {
            Ok(session) => session.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER:?}")),
        }
    }

    /// A new connection to PostgreSQL.
    pub async fn connect(&self) -> Result<Client, String> {
        match tokio::time::timeout(ANSWER, (self.connect)()).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {ANSWER:?}")),
        }
    }
}

/// Within which a server must answer, or is left.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Consumes until `stop`, through every failure of either server; then ends when the handlers that run have ended.
///
/// `connect` opens a database connection and drives it (spawn its connection task there); TLS and bounds are the
/// service's own choice, but it must choose bounds. A handler that takes longer than `handler_timeout` is dropped; its
/// statement is not, and neither is its session, with the claim and every lock in it: `tokio-postgres` closes a
/// connection only after the answers that are due. So for the service's role:
///
/// - `statement_timeout` below `handler_timeout`: a statement that hangs fails, and the session goes on. A claim that
///   waits for another consumer may run into it, too; that is no attempt.
/// - `idle_in_transaction_session_timeout` above `handler_timeout`, which a handler may spend with no statement at all:
///   it ends the sessions of a host that is gone, which would hold their claims until TCP gives up.
pub async fn run<H, C, F>(
    amqp_url: &str,
    connect: C,
    inbox: Inbox,
    options: ConsumerOptions,
    handler: H,
    stop: CancellationToken,
) -> Result<(), ConsumerError>
where
    H: Handler,
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<Client, tokio_postgres::Error>> + Send + 'static,
{
    options.check()?;
    metrics::started(
        inbox.consumer(),
        options.handler_timeout,
        &metrics::MESSAGES,
    );
    let connect: Connect = Box::new(move || Box::pin(connect()));
    let shared = Arc::new(Shared {
        handler,
        inbox,
        options,
        connect,
    });
    let forgetting = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            let retention = shared.options.retention;
            let connect = || shared.connect();
            shared.inbox.forget_expired(retention, connect, |c| c).await;
        }
    });
    // In a row, with nothing acknowledged between them. That a connection opens is no progress: what fails on each one
    // would be tried without a pause, and every connection lost counts as a delivery of all that was prefetched. One
    // that lasted longer than any pause, on a queue without messages, starts anew.
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            connected = open(amqp_url, &shared.options) => connected,
        };
        let result = match result {
            Ok(mut opened) => {
                let began = Instant::now();
                let result = consume(&shared, &mut opened, &stop).await;
                let lasted = began.elapsed() > shared.options.backoff_max;
                if lasted || opened.settled.load(Ordering::Relaxed) {
                    failures = 0;
                }
                // What was not acknowledged goes back to the queue with the connection.
                let close = opened.connection.close(200, "bye".into());
                let _ = tokio::time::timeout(ANSWER, close).await;
                result
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            failures = failures.saturating_add(1);
            tracing::warn!(consumer = shared.inbox.consumer(), failures, error = %error, "consuming failed; reconnecting");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(shared.options.backoff(failures)) => {}
            }
        }
    }
    forgetting.abort();
    Ok(())
}

/// A connection that consumes.
struct Opened {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    dead_letters: Arc<DeadLetters>,
    /// Something was acknowledged.
    settled: Arc<AtomicBool>,
}

async fn open(url: &str, options: &ConsumerOptions) -> Result<Opened, ConsumerError> {
    let work = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        for queue in [&options.dead_letter_queue, &options.queue] {
            declare(&channel, queue, options).await?;
        }
        let confirmed = connection.create_channel().await?;
        confirmed
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        channel
            .basic_qos(options.prefetch, BasicQosOptions::default())
            .await?;
        let (consume, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel
            .basic_consume(short(&options.queue), "".into(), consume, arguments)
            .await?;
        Ok::<_, lapin::Error>(Opened {
            dead_letters: Arc::new(DeadLetters::new(confirmed, &options.dead_letter_queue)),
            connection,
            channel,
            consumer,
            settled: Arc::default(),
        })
    };
    match tokio::time::timeout(ANSWER, work).await {
        Ok(opened) => opened.map_err(ConsumerError::Broker),
        Err(_) => Err(ConsumerError::Timeout("connect")),
    }
}

/// Without `declare` it only looks whether the queue is there.
async fn declare(
    channel: &Channel,
    queue: &str,
    options: &ConsumerOptions,
) -> Result<(), lapin::Error> {
    let mut arguments = FieldTable::default();
    if options.declare {
        let mut argument = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        argument("x-queue-type", "quorum");
        // RabbitMQ 4 gives up a message after 20 deliveries, and drops it where nothing says what becomes of it.
        if queue == options.queue {
            argument("x-dead-letter-exchange", "");
            argument("x-dead-letter-routing-key", &options.dead_letter_queue);
        }
    }
    let how = QueueDeclareOptions {
        durable: true,
        passive: !options.declare,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(short(queue), how, arguments).await?;
    Ok(())
}

/// Hands deliveries to the workers, by key, until the stop or the first failure.
async fn consume<H: Handler>(
    shared: &Arc<Shared<H>>,
    opened: &mut Opened,
    stop: &CancellationToken,
) -> Result<(), ConsumerError> {
    let mut workers = JoinSet::new();
    let mut senders: Vec<mpsc::Sender<Held>> = Vec::new();
    // Ends the workers when the connection does, as well as at the stop.
    let ending = stop.child_token();
    for _ in 0..shared.options.handlers {
        // The broker sends no more than the prefetch; so this never makes anybody wait.
        let (sender, deliveries) = mpsc::channel(usize::from(shared.options.prefetch));
        senders.push(sender);
        let worker = Worker {
            shared: Arc::clone(shared),
            dead_letters: Arc::clone(&opened.dead_letters),
            deliveries,
            stop: ending.clone(),
            settled: Arc::clone(&opened.settled),
        };
        workers.spawn(worker.run());
    }
    // A connection that ended says so to its consumer; where that is lost, it is seen here.
    let mut looks = tokio::time::interval(ANSWER);
    let mut result = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            _ = looks.tick() => if !opened.connection.status().connected() {
                break Err(ConsumerError::Ended("the connection ended"));
            },
            // Of a panic: the message that did it is not acknowledged, and is counted when it comes again.
            Some(ended) = workers.join_next() => break ended.unwrap_or(Err(ConsumerError::Panicked)),
            delivery = opened.consumer.next() => match delivery {
                Some(Ok(delivery)) => {
                    let (message, acker) = Message::from_delivery(delivery);
                    let mut hasher = DefaultHasher::new();
                    key_of(&message).hash(&mut hasher);
                    let slot = usize::try_from(hasher.finish() % senders.len() as u64).unwrap_or(0);
                    if senders[slot].send(Held { message, acker }).await.is_err() {
                        break Ok(());
                    }
                }
                Some(Err(error)) => break Err(ConsumerError::Broker(error)),
                None => break Err(ConsumerError::Ended("it cancelled the consumer")),
            },
        }
    };
    ending.cancel();
    let cancel = opened
        .channel
        .basic_cancel(opened.consumer.tag(), BasicCancelOptions::default());
    let _ = tokio::time::timeout(ANSWER, cancel).await;
    // A handler that runs ends and is committed, within its own bound.
    while let Some(ended) = workers.join_next().await {
        // A worker whose end was seen only in that it takes no more.
        result = result.and(ended.unwrap_or(Err(ConsumerError::Panicked)));
    }
    result
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}
