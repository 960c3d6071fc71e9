//! A consumer that takes everything from a queue, through every fault, and records it in the order of arrival.

use std::{
    collections::HashSet,
    panic::Location,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use checker::{Delivered, sha256};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    Result, SOON,
    amqp::{self, short},
};

/// What a [`Recorder`] keeps of a delivery.
pub trait Record: Clone + Send + Sync + 'static {
    fn of(delivery: &Delivery) -> Self;
    fn message_id(&self) -> Uuid;
    /// The line of the ledger.
    fn delivered(&self) -> Delivered;
}

/// A line of the ledger and no more: enough for millions of messages.
impl Record for Delivered {
    fn of(delivery: &Delivery) -> Self {
        let headers = delivery.properties.headers().as_ref();
        Self {
            message_id: message_id(delivery).parse().unwrap_or(Uuid::nil()),
            body_sha256: sha256(&delivery.data),
            replay: headers.is_some_and(|headers| headers.contains_key("outbox-replay")),
        }
    }

    fn message_id(&self) -> Uuid {
        self.message_id
    }

    fn delivered(&self) -> Delivered {
        self.clone()
    }
}

/// All of a delivery.
#[derive(Debug, Clone)]
pub struct Seen {
    pub message_id: String,
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub at: Instant,
}

impl Record for Seen {
    fn of(delivery: &Delivery) -> Self {
        Self {
            message_id: message_id(delivery),
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            body: delivery.data.clone(),
            properties: delivery.properties.clone(),
            at: Instant::now(),
        }
    }

    fn message_id(&self) -> Uuid {
        self.message_id.parse().unwrap_or(Uuid::nil())
    }

    fn delivered(&self) -> Delivered {
        Delivered {
            message_id: Record::message_id(self),
            body_sha256: sha256(&self.body),
            replay: self.header("outbox-replay").is_some(),
        }
    }
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
}

fn message_id(delivery: &Delivery) -> String {
    let id = delivery.properties.message_id().as_ref();
    id.map(ToString::to_string).unwrap_or_default()
}

/// Takes everything from a queue; reconnects when the broker is back.
pub struct Recorder<T: Record> {
    url: String,
    queue: String,
    seen: Arc<watch::Sender<Vec<T>>>,
    paused: watch::Sender<bool>,
    task: AbortHandle,
}

impl<T: Record> Recorder<T> {
    pub fn start(url: &str, queue: &str) -> Self {
        let seen: Arc<watch::Sender<Vec<T>>> = Arc::new(watch::Sender::new(Vec::new()));
        let (paused, mut pauses) = watch::channel(false);
        let (into, from, name) = (Arc::clone(&seen), url.to_owned(), queue.to_owned());
        let task = tokio::spawn(async move {
            while pauses.wait_for(|paused| !*paused).await.is_ok() {
                // Try an unavailable broker again.
                let _ = consume(&from, &name, &into, pauses.clone()).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            url: url.to_owned(),
            queue: queue.to_owned(),
            seen,
            paused,
            task: task.abort_handle(),
        }
    }

    /// While it is paused, it takes nothing.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    pub fn len(&self) -> usize {
        self.seen.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn seen(&self) -> Vec<T> {
        self.seen.borrow().clone()
    }

    /// Publishes an empty message behind everything in the queue. When it has arrived, so has everything else.
    pub async fn mark_end(&self) -> Result<Uuid> {
        let id = Uuid::new_v4();
        let channel = amqp::channel(&self.url).await?;
        amqp::publish(&channel, &self.queue, &id.to_string(), "mark", "").await?;
        Ok(id)
    }

    /// Waits for this many deliveries, as long as more keep arriving; returns whether they came.
    pub async fn reach(&self, n: usize) -> bool {
        let mut changes = self.seen.subscribe();
        while changes.borrow_and_update().len() < n {
            if timeout(SOON, changes.changed()).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Waits for this many deliveries, as long as more keep arriving.
    #[track_caller]
    pub fn until(&self, n: usize) -> impl Future<Output = Vec<T>> + '_ {
        let caller = Location::caller();
        async move {
            assert!(
                self.reach(n).await,
                "waited {SOON:?} for more than {} of {n} deliveries ({caller})",
                self.len()
            );
            self.seen()
        }
    }

    /// Waits until every id was seen at least once, as long as more of them keep arriving; returns the number of missing ids.
    pub async fn missing(&self, ids: impl IntoIterator<Item = Uuid>) -> usize {
        let mut missing: HashSet<Uuid> = ids.into_iter().collect();
        let (mut changes, mut looked_at) = (self.seen.subscribe(), 0);
        loop {
            let before = missing.len();
            // Other deliveries do not move the deadline, because duplicates may arrive without end.
            let progress = changes.wait_for(|seen| {
                for delivery in &seen[looked_at..] {
                    missing.remove(&delivery.message_id());
                }
                looked_at = seen.len();
                missing.is_empty() || missing.len() < before
            });
            let progress = timeout(SOON, progress).await.is_ok();
            if missing.is_empty() || !progress {
                return missing.len();
            }
        }
    }

    /// Waits until every id was seen at least once.
    #[track_caller]
    pub fn until_all(&self, ids: &[Uuid]) -> impl Future<Output = ()> + '_ {
        let (caller, ids) = (Location::caller(), ids.to_vec());
        async move {
            let missing = self.missing(ids).await;
            assert_eq!(
                missing, 0,
                "waited {SOON:?} for all of them to arrive ({caller})"
            );
        }
    }
}

impl<T: Record> Drop for Recorder<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Time limit for a broker that accepts a connection and stays silent, and the interval of looking whether a connection lives.
const ANSWER: Duration = Duration::from_secs(10);

async fn consume<T: Record>(
    url: &str,
    queue: &str,
    into: &watch::Sender<Vec<T>>,
    mut pauses: watch::Receiver<bool>,
) -> Result<()> {
    let open = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(1000, BasicQosOptions::default()).await?;
        let how = BasicConsumeOptions::default();
        let deliveries = channel
            .basic_consume(short(queue), short(""), how, FieldTable::default())
            .await?;
        Ok::<_, lapin::Error>((connection, deliveries))
    };
    let (connection, mut deliveries) = timeout(ANSWER, open).await??;
    let mut looks = tokio::time::interval(ANSWER);
    loop {
        tokio::select! {
            _ = async { pauses.wait_for(|paused| *paused).await.is_ok() } => {
                // What was prefetched goes back to the queue with the connection.
                connection.close(200, short("paused")).await?;
                return Ok(());
            }
            delivery = deliveries.next() => {
                let delivery = delivery.ok_or("the connection is gone")??;
                into.send_modify(|seen| seen.push(T::of(&delivery)));
                acknowledge(&delivery, &connection).await?;
            }
            _ = looks.tick() => if !connection.status().connected() {
                return Err("the connection is gone".into());
            }
        }
    }
}

/// When the connection ends, an acknowledgement may be lost and never return. While the connection lives it may take long: giving
/// it up would make a duplicate that is not the relay's.
async fn acknowledge(delivery: &Delivery, connection: &Connection) -> Result<()> {
    let mut acknowledged = pin!(delivery.ack(BasicAckOptions::default()));
    loop {
        match timeout(Duration::from_secs(1), &mut acknowledged).await {
            Ok(answer) => return Ok(answer.map(drop)?),
            Err(_) if connection.status().connected() => {}
            Err(_) => return Err("the connection is gone".into()),
        }
    }
}
