//! Connects, consumes, distributes messages by key, reconnects, drains.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use amqp_guard::FRAME_MAX;
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions},
    tcp::{AMQPUriTcpExt, OwnedTLSConfig},
    types::{AMQPValue, FieldTable, ShortString},
    uri::AMQPUri,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    ConsumerError, ConsumerOptions, Handler, Message,
    dead_letter::DeadLetters,
    held::{Held, key_of},
    shared::{ANSWER, Connect, Shared},
    turns::Turns,
    worker::Worker,
};
use crate::{inbox::Inbox, metrics};

/// Consumes until `stop`, through every failure of either server; then ends when the handlers that run have ended.
///
/// `connect` opens a database connection and drives it (spawn its connection task there). The service chooses TLS and bounds,
/// and it must choose bounds. The runner drops a handler that takes longer than `handler_timeout`. But the handler's
/// statement goes on, and so does its session, with the claim and every lock: `tokio-postgres` closes a connection only after
/// the pending answers. So set these for the service's role:
///
/// - `statement_timeout` below `handler_timeout`: a statement that hangs fails, and the session goes on. A claim that
///   waits for another consumer may also run into this time-out; that counts as no attempt.
/// - `idle_in_transaction_session_timeout` above `handler_timeout`, because a handler may spend all of its time without a
///   statement. It ends the sessions of a host that is gone, which would otherwise hold their claims until TCP gives up.
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
    // Failures in a row, with no acknowledgement in between. An open connection alone is no progress: a message that fails on
    // each connection would be tried without a pause, and every lost connection counts as a delivery of all prefetched
    // messages. A connection that lasted longer than any pause, on a queue without messages, resets the count.
    let mut failures: u32 = 0;
    let mut whole_again = false;
    while !stop.is_cancelled() {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            connected = async {
                // A consumer that dies again and again takes one message at a time, because each death counts as a delivery of
                // all prefetched messages, at the broker too.
                let one = !whole_again && shared.is_suspected().await;
                open(amqp_url, &shared.options, if one { Window::One } else { Window::Whole }).await
            } => connected,
        };
        whole_again = false;
        let result = match result {
            Ok(mut opened) => {
                let began = Instant::now();
                let result = consume(&shared, &mut opened, &stop).await;
                let lasted = began.elapsed() > shared.options.backoff_max;
                if lasted || opened.settled.load(Ordering::Relaxed) {
                    failures = 0;
                }
                // The broker puts unacknowledged messages back into the queue when the connection closes.
                let close = opened.connection.close(200, "bye".into());
                let _ = tokio::time::timeout(ANSWER, close).await;
                result.map(|ended| whole_again = ended == Ended::Widened)
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

/// Number of messages that the runner takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    /// One message at a time, until the first message that is new or waits for a retry: redelivered messages come before new
    /// ones.
    One,
    /// As many as the prefetch.
    Whole,
}

/// The end of a connection that did not fail.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    /// It took one message at a time, which is no longer necessary.
    Widened,
}

/// A connection that consumes.
struct Opened {
    window: Window,
    connection: Connection,
    /// The consumer's channel. Dropping its last handle closes it.
    _channel: Channel,
    consumer: Consumer,
    dead_letters: Arc<DeadLetters>,
    /// Something was acknowledged.
    settled: Arc<AtomicBool>,
}

async fn open(
    url: &str,
    options: &ConsumerOptions,
    window: Window,
) -> Result<Opened, ConsumerError> {
    let work = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        for queue in [&options.dead_letter_queue, &options.queue] {
            declare(&channel, queue, options).await?;
        }
        let confirmed = connection.create_channel().await?;
        confirmed
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let prefetch = match window {
            Window::One => 1,
            Window::Whole => options.prefetch,
        };
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await?;
        let (consume, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel
            .basic_consume(short(&options.queue), "".into(), consume, arguments)
            .await?;
        Ok::<_, lapin::Error>(Opened {
            window,
            dead_letters: Arc::new(DeadLetters::new(
                confirmed,
                &options.dead_letter_queue,
                connection.configuration().frame_max(),
            )),
            connection,
            _channel: channel,
            consumer,
            settled: Arc::default(),
        })
    };
    match tokio::time::timeout(ANSWER, work).await {
        Ok(opened) => opened.map_err(ConsumerError::Broker),
        Err(_) => Err(ConsumerError::Timeout("connect")),
    }
}

/// Connects through the guard. Without the guard, headers that anybody may send could overflow the stack of lapin's thread and
/// end the process, or end the connection at each delivery of the message.
async fn connect(url: &str) -> Result<Connection, lapin::Error> {
    let mut uri: AMQPUri = url.parse().map_err(std::io::Error::other)?;
    let offered = uri.query.frame_max.filter(|offered| *offered > 0);
    let frame_max = offered.map_or(FRAME_MAX, |offered| offered.min(FRAME_MAX));
    uri.query.frame_max = Some(frame_max);
    let open = async move |uri: AMQPUri, _| {
        let (tls, tokio) = (OwnedTLSConfig::default(), amqp_guard::tokio());
        let stream = uri.connect_with_config_async(tls.as_ref(), &tokio).await?;
        Ok(amqp_guard::guard(stream, frame_max))
    };
    let properties = ConnectionProperties::default();
    Connection::connector(uri, amqp_guard::runtime(), open, properties).await
}

/// Without `declare` it only checks that the queue exists.
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
        // RabbitMQ 4 gives a message up after 20 deliveries, and drops it if the queue has no dead-letter exchange.
        if queue == options.queue {
            argument("x-dead-letter-exchange", "");
            argument("x-dead-letter-routing-key", &options.dead_letter_queue);
            if options.single_active_consumer {
                arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
            }
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

/// Distributes deliveries to the workers by key, until the stop or the first failure.
async fn consume<H: Handler>(
    shared: &Arc<Shared<H>>,
    opened: &mut Opened,
    stop: &CancellationToken,
) -> Result<Ended, ConsumerError> {
    let turns = Turns::new();
    let waits = CancellationToken::new();
    let one = opened.window == Window::One;
    let mut workers = JoinSet::new();
    let mut senders: Vec<mpsc::Sender<Held>> = Vec::new();
    // This ends the workers with the connection, and at the stop.
    let ending = stop.child_token();
    for _ in 0..shared.options.handlers {
        // The broker sends no more than the prefetch, so a send to this channel never waits.
        let (sender, deliveries) = mpsc::channel(usize::from(shared.options.prefetch));
        senders.push(sender);
        let worker = Worker {
            shared: Arc::clone(shared),
            dead_letters: Arc::clone(&opened.dead_letters),
            deliveries,
            stop: ending.clone(),
            settled: Arc::clone(&opened.settled),
            turns: turns.clone(),
            waits: one.then(|| waits.clone()),
        };
        workers.spawn(worker.run());
    }
    // A connection that ends tells its consumer. If that notice is lost, this interval detects the end.
    let mut looks = tokio::time::interval(ANSWER);
    let mut result = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(Ended::Stopped),
            () = waits.cancelled() => break Ok(Ended::Widened),
            _ = looks.tick() => if !opened.connection.status().connected() {
                break Err(ConsumerError::Ended("the connection ended"));
            },
            // A worker ended, perhaps by a panic: its message is not acknowledged, and counts when it comes again.
            Some(ended) = workers.join_next() => break ended.unwrap_or(Err(ConsumerError::Panicked)).map(|()| Ended::Stopped),
            delivery = async {
                turns.without_suspects().await;
                opened.consumer.next().await
            } => match delivery {
                Some(Ok(delivery)) => {
                    let (message, acker) = Message::from_delivery(delivery);
                    if one && !message.redelivered {
                        break Ok(Ended::Widened);
                    }
                    let ordinary = Some(turns.ordinary());
                    let mut hasher = DefaultHasher::new();
                    key_of(&message).hash(&mut hasher);
                    let slot = usize::try_from(hasher.finish() % senders.len() as u64).unwrap_or(0);
                    if senders[slot].send(Held { message, acker, ordinary }).await.is_err() {
                        break Ok(Ended::Stopped);
                    }
                }
                Some(Err(error)) => break Err(ConsumerError::Broker(error)),
                None => break Err(ConsumerError::Ended("it cancelled the consumer")),
            },
        }
    };
    ending.cancel();
    // A running handler ends and is committed, within its own bound. Until then the consumer stays: if it were cancelled now,
    // a single active consumer would make room for the next one, which would get the messages after those that are in work
    // here. Messages that arrive meanwhile are not touched, are at most the prefetch, and go back to the queue with the rest.
    while let Some(ended) = workers.join_next().await {
        // This may be a worker whose end showed only because it took no more messages.
        let ended = ended.unwrap_or(Err(ConsumerError::Panicked));
        result = result.and_then(|how| ended.map(|()| how));
    }
    result
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}
