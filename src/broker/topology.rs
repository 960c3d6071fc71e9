//! Exchanges: declared when `broker.declare` is on (demo, development), else only looked at by `outboxd check`.

use std::time::Duration;

use lapin::{
    ExchangeKind,
    options::ExchangeDeclareOptions,
    types::{FieldTable, ShortString},
};

use super::{BrokerError, Link};

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

/// Fails with the broker's words on the first exchange that does not exist.
pub async fn verify(
    link: &Link,
    exchanges: &[String],
    within: Duration,
) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    each(link, exchanges, options, "look for an exchange", within).await
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
        match tokio::time::timeout(within, declare).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(BrokerError::Amqp { action, source }),
            Err(_) => {
                return Err(BrokerError::Timeout {
                    action,
                    after: within,
                });
            }
        }
    }
    Ok(())
}
