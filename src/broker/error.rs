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
    /// 404: the exchange does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Amqp { source, .. }
            if closed_by_broker(source).is_some_and(|closed| closed.code == 404))
    }

    /// The broker does not answer, so every further question would only time out as well.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Closed(_))
    }

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
    // Found by lapin: the broker's offer at the connect was too low.
    if matches!(error.kind(), ErrorKind::ChannelsLimitReached) {
        return CHANNELS;
    }
    match closed_by_broker(error) {
        Some(closed) if closed.code == 530 => limit(&closed.text).unwrap_or(
            ". Check that the virtual host in broker.url exists and that the user has access to it",
        ),
        Some(closed) if closed.code == 403 => {
            ". Check the user and the password in broker.url, and the user's permissions in the virtual host"
        }
        _ => "",
    }
}

const CHANNELS: &str = ". The broker allows too few channels: a connection of outboxd needs two, and uses up to 18. Raise \
                        channel_max in rabbitmq.conf (or channel_max_per_node, on newer brokers)";

/// The cure of a refusal by a limit: RabbitMQ answers 530 to these as well, and only its text tells which limit it is.
fn limit(text: &str) -> Option<&'static str> {
    let says = |words: &str| text.contains(words);
    Some(if says("user connection limit") {
        ". outboxd needs one connection a worker. Raise the user's limit (rabbitmqctl set_user_limits USER \
         '{\"max-connections\": N}'), or lower relay.workers"
    } else if says("node connection limit") {
        ". outboxd needs one connection a worker. Raise connection_max in rabbitmq.conf, or lower relay.workers"
    } else if says("connection limit") {
        ". outboxd needs one connection a worker. Raise the virtual host's limit (rabbitmqctl set_vhost_limits -p VHOST \
         '{\"max-connections\": N}'), or lower relay.workers"
    } else if says("number of channels") && says("user") {
        ". A connection of outboxd needs two channels, and uses up to 18. Raise the user's limit (rabbitmqctl set_user_limits \
         USER '{\"max-channels\": N}')"
    } else if says("number of channels") {
        CHANNELS
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of RabbitMQ 3.10 and 4.2. A test of the suite sees those of the server at hand.
    #[test]
    fn each_limit_has_a_cure_of_its_own_and_a_missing_virtual_host_is_none() {
        for (text, cure) in [
            (
                "NOT_ALLOWED - access to vhost 'a' refused for user 'b': connection limit (0) is reached",
                "set_vhost_limits",
            ),
            (
                "NOT_ALLOWED - Connection refused for user 'b': user connection limit (0) is reached",
                "set_user_limits USER '{\"max-connections\"",
            ),
            (
                "NOT_ALLOWED - connection refused: node connection limit (9) is reached",
                "connection_max",
            ),
            (
                "NOT_ALLOWED - number of channels opened for user 'b' has reached the maximum allowed user limit of (1)",
                "set_user_limits USER '{\"max-channels\"",
            ),
            (
                "NOT_ALLOWED - number of channels opened on node 'n' has reached the maximum allowed limit of (1)",
                "channel_max_per_node",
            ),
        ] {
            let found = limit(text).unwrap_or_default();
            assert!(found.contains(cure), "{text}: {found}");
        }
        for other in [
            "NOT_ALLOWED - vhost a not found",
            "NOT_ALLOWED - access to vhost 'a' refused for user 'b'",
        ] {
            assert_eq!(limit(other), None);
        }
    }
}
