//! A first look at the servers: the certificate of each, and RabbitMQ's version.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tokio_postgres::config::{SslMode, SslNegotiation};

use super::{
    checks::{BROKER_CERTIFICATE, BROKER_TLS, BROKER_VERSION, DATABASE_CERTIFICATE},
    judge_server::{self, Certificate},
    line::Line,
};
use crate::{
    config::{Broker, Database, uri::Host},
    outbox::hosts,
    peer::{self, Protocol, Server},
};

/// The certificate of each server that the URL names: a standby's matters at the failover.
pub async fn of_postgres(database: &Database) -> Line {
    let config = match database.current() {
        Ok(config) => config,
        Err(error) => return Line::not_checked(&DATABASE_CERTIFICATE, error.to_string()),
    };
    if config.get_ssl_mode() == SslMode::Disable {
        return Line::not_checked(&DATABASE_CERTIFICATE, "the connection has no TLS");
    }
    let protocol = match config.get_ssl_negotiation() {
        SslNegotiation::Direct => Protocol::PostgresDirect,
        _ => Protocol::Postgres,
    };
    let servers = hosts::over_tcp(&config);
    let looks = servers.iter().map(|(name, address, port)| async move {
        let server = Server {
            host: name,
            address: *address,
            port: *port,
            protocol,
            ca_file: database.ca_file.as_deref(),
            identity: database
                .cert_file
                .as_deref()
                .zip(database.key_file.as_deref()),
        };
        let seen = peer::look(server, true, database.connect_timeout * 2).await;
        let ends = seen.map_err(|error| error.to_string()).and_then(|seen| {
            seen.certificate_ends
                .ok_or_else(|| "it has no certificate".to_owned())
        });
        (format!("{name}:{port}"), ends)
    });
    let found: Vec<Certificate> = join_all(looks).await;
    if found.is_empty() {
        return Line::not_checked(&DATABASE_CERTIFICATE, "no server is reached over TCP");
    }
    judge_server::certificates(&DATABASE_CERTIFICATE, &found, now())
}

/// TLS, certificate and version of the broker; and the version, for the bundle. Nothing if the broker does not answer: its
/// connect says why.
pub async fn of_broker(broker: &Broker) -> (Vec<Line>, Option<String>) {
    let Ok(endpoint) = broker.current() else {
        return (Vec::new(), None);
    };
    let name = match &endpoint.host {
        Host::Name(name) => name.clone(),
        Host::Ip(ip) => ip.to_string(),
    };
    let server = Server {
        host: &name,
        address: None,
        port: endpoint.port,
        protocol: Protocol::Amqp,
        ca_file: broker.ca_file.as_deref(),
        identity: broker.cert_file.as_deref().zip(broker.key_file.as_deref()),
    };
    let tls = match (endpoint.tls, endpoint.is_loopback()) {
        (true, _) => Line::ok(&BROKER_TLS, "encrypted, the certificate is verified"),
        (false, true) => Line::ok(&BROKER_TLS, "the connection stays on this host"),
        (false, false) => Line::warning(&BROKER_TLS, judge_server::PLAINTEXT),
    };
    let seen = match look(server, endpoint.tls, broker.connect_timeout * 2).await {
        Ok(seen) => seen,
        Err(why) => {
            let lines = [&BROKER_CERTIFICATE, &BROKER_VERSION]
                .map(|check| Line::not_checked(check, why.clone()));
            return ([vec![tls], lines.into()].concat(), None);
        }
    };
    let certificate = match seen.certificate_ends {
        Some(ends) => {
            let found = (endpoint.address(), Ok(ends));
            judge_server::certificates(&BROKER_CERTIFICATE, &[found], now())
        }
        None => Line::not_checked(&BROKER_CERTIFICATE, "the connection has no TLS"),
    };
    let version = judge_server::broker_version(&BROKER_VERSION, seen.greeting.as_deref());
    (vec![tls, certificate, version], seen.greeting)
}

async fn look(server: Server<'_>, tls: bool, within: Duration) -> Result<peer::Seen, String> {
    let seen = peer::look(server, tls, within).await;
    seen.map_err(|error| error.to_string())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
