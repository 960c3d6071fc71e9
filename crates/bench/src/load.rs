//! The messages that both consumers read.

use futures_util::future::join_all;
use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use test_support::Result;

use crate::stage::{QUEUE, Queue, Stage};

/// What is in the queue: the order of each message. A repetition stands anywhere after its first.
pub struct Load {
    orders: Vec<usize>,
    unique: usize,
}

impl Load {
    /// `share` of the messages repeat an earlier one.
    pub fn new(messages: usize, share: f64) -> Self {
        // The same mixture for both, and in every run.
        let mut random = StdRng::seed_from_u64(1);
        let mut repetitions = (messages as f64 * share).round() as usize;
        let unique = messages - repetitions;
        let mut orders = Vec::with_capacity(messages);
        let mut next = 0;
        for slot in 0..messages {
            let left = messages - slot;
            if next > 0 && random.random_range(0..left) < repetitions {
                repetitions -= 1;
                orders.push(random.random_range(0..next));
            } else {
                orders.push(next);
                next += 1;
            }
        }
        Self { orders, unique }
    }

    /// Orders, each of which is to be paid once.
    pub fn unique(&self) -> usize {
        self.unique
    }

    pub fn len(&self) -> usize {
        self.orders.len()
    }

    /// Publishes it to an empty quorum queue, under new message ids.
    pub async fn publish(&self, stage: &Stage) -> Result<()> {
        stage.queue(Queue::Quorum).await?;
        let channel = stage.channel().await?;
        let ids: Vec<_> = (0..self.unique).map(|_| uuid::Uuid::new_v4()).collect();
        for part in self.orders.chunks(1000) {
            let publishes = part.iter().map(|order| {
                let key = format!("order:{}", order % 10_000);
                let mut headers = FieldTable::default();
                headers.insert(
                    "outbox-key".into(),
                    AMQPValue::LongString(key.as_str().into()),
                );
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_message_id(ids[*order].to_string().into())
                    .with_type("order_placed".into())
                    .with_content_type("application/json".into())
                    .with_headers(headers);
                let body = format!(
                    r#"{{"id":{order},"cents":1999,"pad":"{}"}}"#,
                    "x".repeat(470)
                );
                let (channel, how) = (&channel, BasicPublishOptions::default());
                async move {
                    channel
                        .basic_publish("".into(), QUEUE.into(), how, body.as_bytes(), properties)
                        .await
                }
            });
            for confirm in join_all(publishes).await {
                if !confirm?.await?.is_ack() {
                    return Err("a message of the load was not acked".into());
                }
            }
        }
        Ok(())
    }
}
