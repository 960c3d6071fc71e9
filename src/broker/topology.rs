//! Exchanges: declared if `broker.declare` is on (demo, development), and looked at by `outboxd check` and `outboxd doctor`.

use std::time::Duration;

use lapin::{
    BasicProperties, ExchangeKind,
    options::{BasicPublishOptions, ExchangeDeclareOptions, ExchangeUnbindOptions},
    types::{FieldTable, ShortString},
};

use super::{BrokerError, Link, error::closed_by_broker};

/// Declares durable topic exchanges. The default exchange and the broker's own (`amq.*`) exist already.
/// <https://www.rabbitmq.com/docs/exchanges>
pub async fn declare(
    link: &Link,
    exchanges: &[String],
    within: Duration,
) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    each(link, exchanges, options, "declare an exchange", within).await
}

/// An exchange to which a relay may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    Writable,
    /// It does not exist, and the relay declares it at its start. The *write* permission is not known before.
    ToBeDeclared,
}

/// Looks whether a relay may publish to an exchange; the error is the obstacle, in the broker's words. With `declares`, a
/// missing exchange is no obstacle.
///
/// To check the *write* permission, this unbinds the exchange from another one that does not exist. The broker requires
/// *write* on the unbound exchange, as for a publish, and checks that permission before it looks at the other exchange
/// (<https://www.rabbitmq.com/docs/access-control#authorisation>). Nothing changes, and nothing is sent. Only a publish
/// checks topic permissions, so they are not verified here.
pub async fn look(
    link: &Link,
    exchange: &str,
    declares: bool,
    within: Duration,
) -> Result<Exchange, BrokerError> {
    if exchange.is_empty() {
        may_publish_by_default(link, within).await?;
        return Ok(Exchange::Writable);
    }
    let name = ShortString::try_new(exchange).unwrap_or_default();
    look_at_named(link, &name, declares, within).await
}

async fn look_at_named(
    link: &Link,
    name: &ShortString,
    declares: bool,
    within: Duration,
) -> Result<Exchange, BrokerError> {
    // A refusal closes the channel, so each exchange gets its own.
    let channel = link.confirm_channel(within).await?;
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let look = channel.exchange_declare(
        name.clone(),
        ExchangeKind::Topic,
        passive,
        FieldTable::default(),
    );
    match bounded("look for an exchange", within, look).await {
        Err(BrokerError::Amqp { source, .. })
            if declares && closed_by_broker(&source).is_some_and(|closed| closed.code == 404) =>
        {
            return Ok(Exchange::ToBeDeclared);
        }
        looked => looked?,
    }
    if declares && !name.as_str().starts_with("amq.") {
        // The exchange exists: a second declare changes nothing, and shows whether a relay could declare it.
        declare(link, &[name.to_string()], within).await?;
    }
    let nobody = nobodys_key();
    let unbind = channel.exchange_unbind(
        name.clone(),
        nobody.clone(),
        ShortString::default(),
        ExchangeUnbindOptions::default(),
        FieldTable::default(),
    );
    match bounded("check the write permission on an exchange", within, unbind).await {
        // The complaint is about the other exchange: it does not exist, or this user may not *read* it. So *write* is
        // granted.
        Err(BrokerError::Amqp { source, .. })
            if closed_by_broker(&source)
                .is_some_and(|closed| closed.text.contains(nobody.as_str())) =>
        {
            Ok(Exchange::Writable)
        }
        answered => answered.map(|()| Exchange::Writable),
    }
}

/// The default exchange routes a message to the queue that its routing key names. No queue has this name, so no queue
/// takes the message.
async fn may_publish_by_default(link: &Link, within: Duration) -> Result<(), BrokerError> {
    let channel = link.confirm_channel(within).await?;
    let publish = async {
        let confirm = channel
            .basic_publish(
                ShortString::default(),
                nobodys_key(),
                BasicPublishOptions::default(),
                b"",
                BasicProperties::default(),
            )
            .await?;
        confirm.await.map(drop)
    };
    bounded(
        "check the write permission on the default exchange",
        within,
        publish,
    )
    .await
}

fn nobodys_key() -> ShortString {
    ShortString::try_new(format!("outboxd.check.{}", uuid::Uuid::new_v4())).unwrap_or_default()
}

async fn bounded(
    action: &'static str,
    within: Duration,
    work: impl Future<Output = Result<(), lapin::Error>>,
) -> Result<(), BrokerError> {
    match tokio::time::timeout(within, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(BrokerError::Amqp { action, source }),
        Err(_) => Err(BrokerError::Timeout {
            action,
            after: within,
        }),
    }
}

async fn each(
    link: &Link,
    exchanges: &[String],
    options: ExchangeDeclareOptions,
    action: &'static str,
    within: Duration,
) -> Result<(), BrokerError> {
    let channel = link.confirm_channel(within).await?;
    for exchange in exchanges
        .iter()
        .filter(|name| !name.is_empty() && !name.starts_with("amq."))
    {
        let name = ShortString::try_new(exchange.as_str()).unwrap_or_default();
        let declare =
            channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default());
        bounded(action, within, declare).await?;
    }
    Ok(())
}
