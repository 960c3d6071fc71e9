//! Errors of RabbitMQ, and their remedies.

use std::time::Duration;

use lapin::{ErrorKind, protocol::AMQPErrorKind};
use outbox_core::culprits::Closed;

use crate::config::ConfigError;

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("RabbitMQ ({action}): {}{}", source, remedy(source))]
    Amqp {
        action: &'static str,
        source: lapin::Error,
    },
    #[error("RabbitMQ ({action}): no answer within {}; the connection is discarded", humantime::format_duration(*after))]
    Timeout {
        action: &'static str,
        after: Duration,
    },
    #[error("RabbitMQ ({action}): cannot reach {endpoint}: {source}")]
    Unreachable {
        action: &'static str,
        endpoint: String,
        source: std::io::Error,
    },
    #[error("RabbitMQ blocks publishers: {0}")]
    Blocked(String),
    #[error("the connection to RabbitMQ ended: {0}")]
    Closed(String),
    #[error("TLS to RabbitMQ: {0}")]
    Tls(#[from] crate::tls::TlsError),
}

impl BrokerError {
    /// A retry cannot succeed: a person must change the configuration of the relay or the broker, or the permissions.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Config(_) | Self::Tls(_) => true,
            // 403: access refused; 404: not found; 406: declared with other properties; 530: no such virtual host.
            Self::Amqp { source, .. } => closed_by_broker(source)
                .is_some_and(|closed| matches!(closed.code, 403 | 404 | 406 | 530)),
            Self::Timeout { .. }
            | Self::Unreachable { .. }
            | Self::Blocked(_)
            | Self::Closed(_) => false,
        }
    }
}

/// <https://www.rabbitmq.com/docs/channels#error-handling>
pub(super) fn closed_by_broker(error: &lapin::Error) -> Option<Closed> {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => Some(Closed {
            code: amqp.get_id(),
            text: amqp.get_message().to_string(),
            connection: matches!(amqp.kind(), AMQPErrorKind::Hard(_)),
        }),
        _ => None,
    }
}

fn remedy(error: &lapin::Error) -> &'static str {
    match closed_by_broker(error).map(|closed| closed.code) {
        Some(403) => {
            ". Check the user and the password in broker.url, and the user's permissions in the virtual host"
        }
        Some(530) => {
            ". Check that the virtual host in broker.url exists and that the user has access to it"
        }
        _ => "",
    }
}
