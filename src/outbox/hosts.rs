//! Connects to the servers of a URL, with a time limit for each server.
//!
//! The driver tries hosts, and the addresses of a name, one after the other, and bounds only the TCP connects. A server may
//! accept a connection and never answer: its machine hangs, or another program has taken over its address. The driver would
//! wait there, and never try the standby that was promoted meanwhile.

use std::{net::IpAddr, time::Duration};

use rand::seq::SliceRandom;
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{Host, LoadBalanceHosts},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{OutboxError, error::CONNECT};

type Connected = (
    Client,
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
);

/// Connects to the first server that accepts the session. Each attempt (name, TCP, TLS and login) must end within `within`.
pub async fn connect(
    config: &Config,
    tls: &MakeRustlsConnect,
    within: Duration,
) -> Result<Connected, OutboxError> {
    let mut last = OutboxError::Unusable {
        action: CONNECT,
        why: "no host has an address".to_owned(),
    };
    for server in servers(config) {
        let addresses = match tokio::time::timeout(within, server.addresses()).await {
            Ok(addresses) => addresses,
            Err(_) => {
                last = timed_out(server.name(config), within);
                continue;
            }
        };
        for address in addresses {
            let one = server.config(config, address);
            let attempt = Box::pin(one.connect(tls.clone()));
            last = match tokio::time::timeout(within, attempt).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(source)) => OutboxError::Connect {
                    server: server.name(config),
                    source,
                },
                Err(_) => timed_out(server.name(config), within),
            };
        }
    }
    Err(last)
}

fn timed_out(server: String, after: Duration) -> OutboxError {
    OutboxError::ConnectTimeout { server, after }
}

/// One of the servers that a URL names.
struct Server {
    /// TLS verifies this name, for any address.
    host: Option<Host>,
    address: Option<IpAddr>,
    port: u16,
}

/// The servers that are reached over TCP: name, address if the URL gives one, and port.
pub fn over_tcp(config: &Config) -> Vec<(String, Option<IpAddr>, u16)> {
    let over_tcp = |server: Server| match (server.host, server.address) {
        (Some(Host::Tcp(name)), address) => Some((name, address, server.port)),
        (None, Some(address)) => Some((address.to_string(), Some(address), server.port)),
        (Some(Host::Unix(_)) | None, _) => None,
    };
    servers(config).into_iter().filter_map(over_tcp).collect()
}

/// The servers, in the order of the URL.
fn servers(config: &Config) -> Vec<Server> {
    let (hosts, addresses, ports) = (
        config.get_hosts(),
        config.get_hostaddrs(),
        config.get_ports(),
    );
    let mut servers: Vec<Server> = (0..hosts.len().max(addresses.len()))
        .map(|n| Server {
            host: hosts.get(n).cloned(),
            address: addresses.get(n).copied(),
            port: *ports.get(n).or(ports.first()).unwrap_or(&5432),
        })
        .collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        servers.shuffle(&mut rand::rng());
    }
    servers
}

impl Server {
    /// Host, port and database, for a person.
    fn name(&self, config: &Config) -> String {
        let host = match (&self.host, self.address) {
            (Some(Host::Tcp(name)), _) if name.contains(':') => format!("[{name}]"),
            (Some(Host::Tcp(name)), _) => name.clone(),
            (Some(Host::Unix(path)), _) => path.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        };
        // The driver's default is the user's name.
        let database = config
            .get_dbname()
            .or(config.get_user())
            .unwrap_or_default();
        format!("{host}:{}/{database}", self.port)
    }

    /// Resolves the name at every connect, so the relay follows a name that changes its address. `None` leaves the address to
    /// the driver: for a socket in the file system, and for a name without an address, whose error the driver reports best.
    async fn addresses(&self) -> Vec<Option<IpAddr>> {
        let found = match (&self.host, self.address) {
            (Some(Host::Tcp(name)), None) => {
                tokio::net::lookup_host((name.as_str(), self.port)).await
            }
            (_, address) => return vec![address],
        };
        match found.map(|found| found.map(|address| Some(address.ip())).collect::<Vec<_>>()) {
            Ok(found) if !found.is_empty() => found,
            _ => vec![None],
        }
    }

    /// A copy of `all` with this server instead of its servers. The driver's configuration has no way to remove a host.
    fn config(&self, all: &Config, address: Option<IpAddr>) -> Config {
        let mut config = Config::new();
        config
            .ssl_mode(all.get_ssl_mode())
            .ssl_negotiation(all.get_ssl_negotiation())
            .keepalives(all.get_keepalives())
            .keepalives_idle(all.get_keepalives_idle())
            .target_session_attrs(all.get_target_session_attrs())
            .channel_binding(all.get_channel_binding())
            .port(self.port);
        match &self.host {
            Some(Host::Tcp(name)) => config.host(name),
            Some(Host::Unix(path)) => config.host_path(path),
            None => &mut config,
        };
        if let Some(address) = address {
            config.hostaddr(address);
        }
        if let Some(user) = all.get_user() {
            config.user(user);
        }
        if let Some(password) = all.get_password() {
            config.password(password);
        }
        if let Some(dbname) = all.get_dbname() {
            config.dbname(dbname);
        }
        if let Some(options) = all.get_options() {
            config.options(options);
        }
        if let Some(name) = all.get_application_name() {
            config.application_name(name);
        }
        if let Some(timeout) = all.get_connect_timeout() {
            config.connect_timeout(*timeout);
        }
        if let Some(timeout) = all.get_tcp_user_timeout() {
            config.tcp_user_timeout(*timeout);
        }
        if let Some(interval) = all.get_keepalives_interval() {
            config.keepalives_interval(interval);
        }
        if let Some(retries) = all.get_keepalives_retries() {
            config.keepalives_retries(retries);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A URL with every parameter that the driver knows.
    const URL: &str = "postgres://u:p@one:1,two:2/d?options=-c%20x%3Dy&application_name=n&sslmode=require\
                       &sslnegotiation=direct&connect_timeout=3&tcp_user_timeout=4&keepalives=1&keepalives_idle=5\
                       &keepalives_interval=6&keepalives_retries=7&target_session_attrs=read-write\
                       &channel_binding=require";

    #[test]
    fn every_server_is_tried_with_all_that_the_url_says() {
        let all: Config = URL.parse().unwrap();
        let told = |host: &str, port: &str| {
            let one = URL.replace("one:1,two:2", &format!("{host}:{port}"));
            one.parse::<Config>().unwrap()
        };
        let each: Vec<Config> = servers(&all)
            .iter()
            .map(|server| server.config(&all, None))
            .collect();
        assert_eq!(each, [told("one", "1"), told("two", "2")]);
    }

    #[test]
    fn a_server_is_named_with_its_port_and_its_database_and_without_the_password() {
        let name = |url: &str| {
            let all: Config = url.parse().unwrap();
            servers(&all)[0].name(&all)
        };
        assert_eq!(
            name("postgres://u:p@db.example/shop"),
            "db.example:5432/shop"
        );
        assert_eq!(name("postgres://u:p@[::1]:7/shop"), "[::1]:7/shop");
        assert_eq!(name("host=/run/pg port=7 user=u password=p"), "/run/pg:7/u");
        assert_eq!(name("hostaddr=10.0.0.1 user=u dbname=d"), "10.0.0.1:5432/d");
    }

    #[test]
    fn one_port_is_every_servers_and_an_address_goes_with_its_name() {
        let all: Config = "host=one,two hostaddr=10.0.0.1,10.0.0.2 port=7 user=u"
            .parse()
            .unwrap();
        let each: Vec<Config> = servers(&all)
            .iter()
            .map(|server| server.config(&all, server.address))
            .collect();
        let one: Config = "host=one hostaddr=10.0.0.1 port=7 user=u".parse().unwrap();
        let two: Config = "host=two hostaddr=10.0.0.2 port=7 user=u".parse().unwrap();
        assert_eq!(each, [one, two]);
        let over_tcp = over_tcp(&all);
        assert_eq!(
            over_tcp[1],
            ("two".to_owned(), Some("10.0.0.2".parse().unwrap()), 7)
        );
    }
}
