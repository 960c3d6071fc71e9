//! A consumer that records deliveries.

use super::*;

/// A delivery, as a test sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub message_id: String,
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub properties: lapin::BasicProperties,
    pub at: std::time::Instant,
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

    pub(super) fn delivered(&self) -> Delivered {
        Delivered {
            message_id: self.message_id.parse().unwrap_or(Uuid::nil()),
            body_sha256: sha256(&self.body),
            replay: self.header("outbox-replay").is_some(),
        }
    }
}

/// Takes everything from a queue; reconnects when the broker is back.
pub struct Consumer {
    seen: Arc<watch::Sender<Vec<Seen>>>,
    task: AbortHandle,
}

impl Consumer {
    pub async fn start(url: &str, queue: &str) -> Self {
        let seen: Arc<watch::Sender<Vec<Seen>>> = Arc::default();
        let (into, url, queue) = (Arc::clone(&seen), url.to_owned(), queue.to_owned());
        let task = tokio::spawn(async move {
            loop {
                // Try an unavailable broker again.
                let _ = consume(&url, &queue, &into).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .abort_handle();
        Self { seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub fn len(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits for this many deliveries, as long as more keep arriving.
    #[track_caller]
    pub fn until(&self, n: usize) -> impl Future<Output = Vec<Seen>> + '_ {
        let caller = Location::caller();
        async move {
            let mut changes = self.seen.subscribe();
            loop {
                let len = changes.borrow_and_update().len();
                if len >= n {
                    return self.seen();
                }
                let more = tokio::time::timeout(SOON, changes.changed()).await;
                assert!(
                    more.is_ok(),
                    "waited {SOON:?} for more than {len} of {n} deliveries ({caller})"
                );
            }
        }
    }

    /// Waits until every id was seen at least once, as long as more of them keep arriving; returns the number of missing ids.
    pub(super) async fn missing(&self, ids: impl Iterator<Item = Uuid>) -> usize {
        let mut missing: HashSet<String> = ids.map(|id| id.to_string()).collect();
        let (mut changes, mut looked_at) = (self.seen.subscribe(), 0);
        loop {
            let before = missing.len();
            // Other deliveries do not move the deadline, because duplicates may arrive without end.
            let progress = changes.wait_for(|seen| {
                for delivery in &seen[looked_at..] {
                    missing.remove(&delivery.message_id);
                }
                looked_at = seen.len();
                missing.is_empty() || missing.len() < before
            });
            let progress = tokio::time::timeout(SOON, progress).await.is_ok();
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
            let missing = self.missing(ids.into_iter()).await;
            assert_eq!(
                missing, 0,
                "waited {SOON:?} for all of them to arrive ({caller})"
            );
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn consume(
    url: &str,
    queue: &str,
    into: &watch::Sender<Vec<Seen>>,
) -> Result<(), lapin::Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(1000, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            short(queue),
            short(""),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        into.send_modify(|seen| seen.push(look_at(&delivery)));
        // When the connection ends, an acknowledgement may be lost and never return. While the connection lives it may take long:
        // giving it up would make a duplicate that is not the relay's.
        let mut acknowledged = pin!(delivery.ack(BasicAckOptions::default()));
        loop {
            match tokio::time::timeout(Duration::from_secs(1), &mut acknowledged).await {
                Ok(answer) => {
                    answer?;
                    break;
                }
                Err(_) if connection.status().connected() => {}
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

fn look_at(delivery: &Delivery) -> Seen {
    Seen {
        message_id: delivery
            .properties
            .message_id()
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        body: delivery.data.to_vec(),
        properties: delivery.properties.clone(),
        at: std::time::Instant::now(),
    }
}
