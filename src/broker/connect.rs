//! A connection to RabbitMQ: bounded in time, watched, and closed at once when dropped.
//!
//! lapin's own connect has no handshake timeout, and the I/O thread of an abandoned attempt keeps waiting on the
//! socket. So this module opens the socket and keeps a second handle on it. The drop of `Link` shuts the socket down,
//! and the thread then ends at once in any state of the protocol.
//!
//! Every byte from the broker passes a guard before lapin parses it: deeply nested properties must not end the process.

use std::{
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, Event,
    auth::AuthProvider,
    options::ConfirmSelectOptions,
    tcp::RustlsConnector,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use tokio::{sync::watch, task::AbortHandle};

use super::BrokerError;
use crate::config::{
    Broker, BrokerAuth,
    uri::{BrokerEndpoint, Host},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    Open,
    /// An alarm of the broker (memory, disk) blocks publishers; the broker reads nothing from the relay until the alarm
    /// ends.
    Blocked(String),
    Closed(String),
}

/// One AMQP connection.
pub struct Link {
    connection: Connection,
    socket: Socket,
    state: watch::Receiver<LinkState>,
    watcher: AbortHandle,
}

/// A second handle on the connection's socket. The drop of `Link`, or of a failed attempt, shuts the socket down.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn shutdown(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An error means that the other side has already closed the socket.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

struct ShutdownOnDrop(Option<Socket>);

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.shutdown();
        }
    }
}

/// SASL EXTERNAL: the client certificate identifies the relay.
/// <https://www.rabbitmq.com/docs/access-control#mechanisms>
struct External;
impl AuthProvider for External {}

impl Link {
    /// Connects within twice `connect_timeout`: once for TCP and TLS, once for the AMQP handshake.
    pub async fn connect(broker: &Broker, name: &str) -> Result<Self, BrokerError> {
        let action = "connect";
        let endpoint = broker.current()?;
        let tls = if endpoint.tls {
            let identity = broker.cert_file.as_deref().zip(broker.key_file.as_deref());
            Some(RustlsConnector::from(crate::tls::client_config(
                broker.ca_file.as_deref(),
                identity,
            )?))
        } else {
            None
        };
        let socket = Socket::default();
        let mut guard = ShutdownOnDrop(Some(socket.clone()));
        let failure: Arc<Mutex<Option<std::io::Error>>> = Arc::default();

        let connecting = {
            let (socket, failure) = (socket.clone(), failure.clone());
            let (endpoint, timeout) = (endpoint.clone(), broker.connect_timeout);
            let silence = broker.heartbeat * 2;
            // Boxed, because the future is large and rarely created.
            Box::pin(Connection::connector(
                amqp_uri(&endpoint, broker.heartbeat),
                amqp_guard::runtime(),
                async move |_, _| match open(&endpoint, tls.as_ref(), timeout, silence, &socket)
                    .await
                {
                    Ok(stream) => Ok(amqp_guard::guard(stream, amqp_guard::FRAME_MAX)),
                    Err(error) => {
                        let kind = error.kind();
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        Err(std::io::Error::from(kind).into())
                    }
                },
                properties(broker, name),
            ))
        };
        let after = broker.connect_timeout * 2;
        let connected = tokio::time::timeout(after, connecting).await;
        let connection = match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(source)) => {
                let io = failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                return Err(match io {
                    Some(source) => BrokerError::Unreachable {
                        action,
                        endpoint: endpoint.address(),
                        source,
                    },
                    None => BrokerError::Amqp { action, source },
                });
            }
            Err(_) => return Err(BrokerError::Timeout { action, after }),
        };
        guard.0 = None;

        let mut events = connection.events_listener();
        let (report, state) = watch::channel(LinkState::Open);
        let watcher = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let next = match event {
                    Event::ConnectionBlocked(reason) => LinkState::Blocked(reason),
                    Event::ConnectionUnblocked => LinkState::Open,
                    // A channel's error arrives here as well, but only a connection's error ends the link.
                    Event::Error(error) if ends_connection(&error) => {
                        LinkState::Closed(error.to_string())
                    }
                    _ => continue,
                };
                report.send_replace(next);
            }
            report.send_replace(LinkState::Closed("connection closed".to_owned()));
        })
        .abort_handle();
        Ok(Self {
            connection,
            socket,
            state,
            watcher,
        })
    }

    /// A channel in confirm mode. <https://www.rabbitmq.com/docs/confirms#publisher-confirms>
    pub async fn confirm_channel(&self, within: Duration) -> Result<Channel, BrokerError> {
        let action = "open a channel";
        let open = async {
            let channel = self.connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok(channel)
        };
        match tokio::time::timeout(within, open).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(source)) => Err(BrokerError::Amqp { action, source }),
            Err(_) => Err(BrokerError::Timeout {
                action,
                after: within,
            }),
        }
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Negotiated frame size in bytes.
    pub fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// Closes the connection within a bound. Confirmed messages are safe either way.
    pub async fn close(self, within: Duration) {
        let _ = tokio::time::timeout(within, self.connection.close(200, "bye".into())).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.socket.shutdown();
        self.watcher.abort();
    }
}

fn ends_connection(error: &lapin::Error) -> bool {
    !error.is_amqp_soft_error()
}

async fn open(
    endpoint: &BrokerEndpoint,
    tls: Option<&RustlsConnector>,
    timeout: Duration,
    silence: Duration,
    socket: &Socket,
) -> std::io::Result<amqp_guard::Plain> {
    let work = async {
        let host = match &endpoint.host {
            Host::Name(name) => name.clone(),
            Host::Ip(ip) => ip.to_string(),
        };
        // Resolve the name at every connect, so that a changed address takes effect.
        let runtime = amqp_guard::tokio();
        let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), endpoint.port))
            .await?
            .collect();
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match AsyncTcpStream::connect(&runtime, address).await {
                Ok(stream) => {
                    let stream = keep_handle(stream, silence, socket)?;
                    return match tls {
                        Some(connector) => stream.into_rustls(connector, &host).await,
                        None => Ok(stream),
                    };
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| {
            Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "no answer in time",
            ))
        })
}

fn keep_handle(
    stream: amqp_guard::Plain,
    silence: Duration,
    socket: &Socket,
) -> std::io::Result<amqp_guard::Plain> {
    if let AsyncTcpStream::Plain(plain) = &stream {
        let tcp = plain.get_ref();
        tcp.set_nodelay(true)?;
        let handle = TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        socket2::SockRef::from(&handle).set_tcp_keepalive(&keepalive)?;
        // While sent data is unacknowledged, TCP sends no keepalives and retransmits for about 15 minutes. This timeout
        // ends the connection earlier.
        socket2::SockRef::from(&handle).set_tcp_user_timeout(Some(silence))?;
        *socket.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    }
    Ok(stream)
}

fn amqp_uri(endpoint: &BrokerEndpoint, heartbeat: Duration) -> AMQPUri {
    AMQPUri {
        scheme: if endpoint.tls {
            AMQPScheme::AMQPS
        } else {
            AMQPScheme::AMQP
        },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: endpoint.username.clone().unwrap_or_default(),
                password: endpoint
                    .password
                    .as_ref()
                    .map(|p| p.expose().to_owned())
                    .unwrap_or_default(),
            },
            host: endpoint.address(),
            port: endpoint.port,
        },
        vhost: endpoint.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX)),
            // lapin allocates 64 frames at once. If the relay offers no limit, the broker's limit decides; without a
            // limit on either side a frame has 2^32 - 1 bytes.
            frame_max: Some(amqp_guard::FRAME_MAX),
            ..AMQPQueryString::default()
        },
    }
}

fn properties(broker: &Broker, name: &str) -> ConnectionProperties {
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "outboxd".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    match broker.auth {
        BrokerAuth::Plain => properties,
        BrokerAuth::External => properties.with_auth_provider(External),
    }
}
