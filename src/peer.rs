//! A first look at a server: its certificate, and the words with which it begins. The connection ends after that, without a
//! login.
//!
//! The drivers keep the certificate and RabbitMQ's greeting to themselves.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::tls::{self, TlsError};

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The server is asked whether it speaks TLS.
    Postgres,
    /// TLS at once, with ALPN (`sslnegotiation=direct`).
    PostgresDirect,
    Amqp,
}

/// A server, and how to verify it.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    pub host: &'a str,
    /// An address that is not the name's own.
    pub address: Option<std::net::IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    pub ca_file: Option<&'a Path>,
    pub identity: Option<(&'a Path, &'a Path)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The end of the certificate's validity, in seconds since 1970; `None` without TLS.
    pub certificate_ends: Option<i64>,
    /// RabbitMQ's product and version.
    pub greeting: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("\"{0}\" is not a name that a certificate can have")]
    Name(String),
    #[error("the server does not speak TLS")]
    NoTls,
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// The request for TLS. <https://www.postgresql.org/docs/current/protocol-message-formats.html>
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 4.2.2
const AMQP_HEADER: &[u8; 8] = b"AMQP\0\0\x09\x01";
/// A greeting has a few hundred bytes.
const MOST: usize = 16 << 10;

/// Connects, verifies the certificate as every other connection does, and looks. Without `tls` only a greeting can be seen.
pub async fn look(server: Server<'_>, tls: bool, within: Duration) -> Result<Seen, PeerError> {
    let looking = async {
        let tcp = connect(&server).await?;
        if !tls {
            return seen(server.protocol, tcp, None).await;
        }
        let stream = secure(&server, tcp).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let ends = certificates.and_then(|all| tls::ends_at(all.first()?));
        seen(server.protocol, stream, ends).await
    };
    match tokio::time::timeout(within, looking).await {
        Ok(looked) => looked,
        Err(_) => Err(PeerError::Timeout(within)),
    }
}

async fn connect(server: &Server<'_>) -> Result<TcpStream, PeerError> {
    Ok(match server.address {
        Some(address) => TcpStream::connect((address, server.port)).await?,
        None => TcpStream::connect((server.host, server.port)).await?,
    })
}

async fn secure(
    server: &Server<'_>,
    mut tcp: TcpStream,
) -> Result<TlsStream<TcpStream>, PeerError> {
    let config = tls::client_config(server.ca_file, server.identity)?;
    let config = match server.protocol {
        Protocol::Amqp => config,
        Protocol::PostgresDirect => with_alpn(&config),
        Protocol::Postgres => {
            tcp.write_all(&SSL_REQUEST).await?;
            if tcp.read_u8().await? != b'S' {
                return Err(PeerError::NoTls);
            }
            config
        }
    };
    let name = ServerName::try_from(server.host.to_owned())
        .map_err(|_| PeerError::Name(server.host.escape_debug().to_string()))?;
    Ok(TlsConnector::from(config).connect(name, tcp).await?)
}

fn with_alpn(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

async fn seen(
    protocol: Protocol,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    certificate_ends: Option<i64>,
) -> Result<Seen, PeerError> {
    let greeting = match protocol {
        Protocol::Postgres | Protocol::PostgresDirect => None,
        Protocol::Amqp => {
            stream.write_all(AMQP_HEADER).await?;
            greeting(&frame(&mut stream).await?)
        }
    };
    Ok(Seen {
        certificate_ends,
        greeting,
    })
}

/// The payload of the first frame: type (1 byte), channel (2), size (4), payload.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, PeerError> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; MOST.min(usize::try_from(size).unwrap_or(MOST))];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Product and version in the server's properties. This searches for the two fields: a parser of nested tables would have to
/// be bounded like `amqp_guard`.
fn greeting(start: &[u8]) -> Option<String> {
    let version = field(start, "version")?;
    let product = field(start, "product").unwrap_or_else(|| "an AMQP server".to_owned());
    Some(format!("{product} {version}"))
}

/// A text of a field table: the length of its name, the name, `S`, the length of the text, the text.
fn field(table: &[u8], name: &str) -> Option<String> {
    let mut start = vec![u8::try_from(name.len()).ok()?];
    start.extend(name.as_bytes());
    start.push(b'S');
    let at = table.windows(start.len()).position(|part| part == start)? + start.len();
    let (size, rest) = table.get(at..)?.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
    let text = String::from_utf8_lossy(rest.get(..size.min(100))?);
    Some(text.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, 99];
        for (name, text) in fields {
            bytes.push(u8::try_from(name.len()).unwrap());
            bytes.extend(name.as_bytes());
            bytes.push(b'S');
            bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn a_greeting_has_product_and_version_and_a_cut_one_has_none() {
        let whole = table(&[("product", "RabbitMQ"), ("version", "4.2.1")]);
        assert_eq!(greeting(&whole).as_deref(), Some("RabbitMQ 4.2.1"));
        for size in 0..whole.len() {
            assert_eq!(greeting(&whole[..size]), None, "{size}");
        }
        assert_eq!(greeting(&table(&[("product", "RabbitMQ")])), None);
    }

    #[test]
    fn a_greeting_cannot_control_the_terminal() {
        let forged = table(&[("version", "4\u{1b}[2J")]);
        assert_eq!(
            greeting(&forged).as_deref(),
            Some("an AMQP server 4\\u{1b}[2J")
        );
    }
}
