//! The broker as a publisher and a consumer use it.

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::Result;

/// A name that is too long becomes empty, and the broker refuses that.
pub fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// Opens a channel with confirms, on a connection of its own that ends with the channel.
pub async fn channel(url: &str) -> Result<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let confirms = ConfirmSelectOptions::default();
    channel.confirm_select(confirms).await?;
    Ok(channel)
}

/// Declares the exchange `events`, and a durable quorum queue that is bound to all of it.
pub async fn declare(url: &str, queue: &str) -> Result<()> {
    let channel = channel(url).await?;
    self::queue(&channel, queue).await?;
    bind(&channel, "events", queue).await
}

/// Declares a durable topic exchange.
pub async fn exchange(channel: &Channel, name: &str) -> Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let none = FieldTable::default();
    channel
        .exchange_declare(short(name), ExchangeKind::Topic, durable, none)
        .await?;
    Ok(())
}

/// Declares a durable quorum queue.
pub async fn queue(channel: &Channel, name: &str) -> Result<()> {
    let quorum = AMQPValue::LongString("quorum".into());
    queue_with(channel, name, &[("x-queue-type", quorum)]).await
}

/// Declares a durable queue with these arguments.
pub async fn queue_with(
    channel: &Channel,
    name: &str,
    arguments: &[(&str, AMQPValue)],
) -> Result<()> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(short(name), value.clone());
    }
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(short(name), durable, table).await?;
    Ok(())
}

/// Declares the exchange, and binds the queue to everything that is published to it.
pub async fn bind(channel: &Channel, exchange: &str, queue: &str) -> Result<()> {
    self::exchange(channel, exchange).await?;
    bind_key(channel, exchange, queue, "#").await
}

/// Binds the queue to what is published to the exchange with such a routing key.
pub async fn bind_key(channel: &Channel, exchange: &str, queue: &str, key: &str) -> Result<()> {
    let (how, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(short(queue), short(exchange), short(key), how, none)
        .await?;
    Ok(())
}

pub async fn delete(channel: &Channel, queue: &str) -> Result<()> {
    let how = QueueDeleteOptions::default();
    channel.queue_delete(short(queue), how).await?;
    Ok(())
}

/// The number of messages in a queue that are ready for a consumer, and the number of its consumers.
pub async fn depth(channel: &Channel, queue: &str) -> Result<(u32, u32)> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let none = FieldTable::default();
    let queue = channel.queue_declare(short(queue), passive, none).await?;
    Ok((queue.message_count(), queue.consumer_count()))
}

/// Publishes to a queue by its name, and waits for the confirm.
pub async fn publish(
    channel: &Channel,
    queue: &str,
    id: &str,
    type_: &str,
    body: &str,
) -> Result<()> {
    let properties = BasicProperties::default()
        .with_message_id(short(id))
        .with_type(short(type_));
    publish_with(channel, queue, properties, body).await
}

pub async fn publish_with(
    channel: &Channel,
    queue: &str,
    properties: BasicProperties,
    body: &str,
) -> Result<()> {
    let properties = properties.with_delivery_mode(2);
    let id = properties.message_id().clone();
    let how = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let publish = channel.basic_publish(short(""), short(queue), how, body.as_bytes(), properties);
    match publish.await?.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("the broker did not take {id:?}: {other:?}").into()),
    }
}
