//! The parameters of an address: honoured, ignored, or refused with a text that says what to write instead.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio_postgres::config::{
    ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs,
};

/// What the text says.
#[derive(Debug, Clone)]
pub(in crate::config) struct Dsn {
    pub config: tokio_postgres::Config,
    /// As it was written.
    pub sslmode: Option<String>,
    /// The text says that a pooler stands in between, which keeps no prepared statement: by this parameter.
    pub pooled: Option<String>,
}

/// Ignored: parameters of platforms and ORMs without a meaning for a program that manages its own connections.
const IGNORED: &[&str] = &[
    // The relay has its own name, keepalives and session.
    "application_name",
    "fallback_application_name",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "keepalives_retries",
    "tcp_user_timeout",
    // The relay's SQL names the schema of every object.
    "schema",
    "currentschema",
    "search_path",
    // Parameters of pools.
    "connection_limit",
    "pool",
    "pool_size",
    "pool_timeout",
    "pool_max_conns",
    "pool_min_conns",
    "pool_max_conn_lifetime",
    "pool_max_conn_idle_time",
    "max_overflow",
    "socket_timeout",
    // Parameters of TLS: the relay always sends the name, and compresses nothing.
    "sslcompression",
    "uselibpqcompat",
    // Doctrine, Supabase and Vercel.
    "serverversion",
    "supa",
    "workaround",
];

/// Refused parameters, each with what to do instead.
const INSTEAD: &[(&str, &str)] = &[
    ("sslrootcert", "write {}ca_file = \"<path>\""),
    ("sslcert", "write {}cert_file = \"<path>\""),
    ("sslkey", "write {}key_file = \"<path>\""),
    (
        "sslpassword",
        "decrypt the key and write {}key_file = \"<path>\"",
    ),
    (
        "sslidentity",
        "write {}cert_file and {}key_file, as PEM files",
    ),
    ("sslcrl", "revocation lists are not supported; remove it"),
    ("sslcrldir", "revocation lists are not supported; remove it"),
    (
        "ssl_min_protocol_version",
        "TLS 1.2 or newer is always used; remove it",
    ),
    (
        "ssl_max_protocol_version",
        "TLS 1.2 or newer is always used; remove it",
    ),
    ("passfile", "write {}password_file = \"<path>\""),
    (
        "service",
        "service files are not read; write its parts here",
    ),
    (
        "servicefile",
        "service files are not read; write its parts here",
    ),
    (
        "statement_timeout",
        "write {}statement_timeout = \"<duration>\"",
    ),
    ("lock_timeout", "write {}lock_timeout = \"<duration>\""),
    (
        "idle_in_transaction_session_timeout",
        "write {}idle_in_transaction_timeout = \"<duration>\"",
    ),
    (
        "krbsrvname",
        "GSSAPI is not supported; use a password or a certificate",
    ),
    (
        "gsslib",
        "GSSAPI is not supported; use a password or a certificate",
    ),
    (
        "gssdelegation",
        "GSSAPI is not supported; use a password or a certificate",
    ),
    (
        "require_auth",
        "it is not supported; channel_binding=require is the nearest",
    ),
    ("requirepeer", "it is not supported; remove it"),
    ("requiressl", "write sslmode=verify-full"),
    (
        "replication",
        "the relay needs an ordinary session; remove it",
    ),
];

/// Parameters that the relay honours, with their values.
const HONOURED: &[&str] = &[
    "user",
    "username",
    "password",
    "dbname",
    "database",
    "host",
    "hostaddr",
    "port",
    "sslmode",
    "ssl",
    "sslaccept",
    "sslsni",
    "sslnegotiation",
    "gssencmode",
    "connect_timeout",
    "keepalives",
    "target_session_attrs",
    "targetservertype",
    "load_balance_hosts",
    "channel_binding",
    "options",
    "client_encoding",
    "encoding",
    "charset",
    "pgbouncer",
    "statement_cache_size",
    "prepared_statement_cache_size",
    "preparethreshold",
    "prepared_statements",
    "binary_parameters",
    "default_query_exec_mode",
];

pub(super) struct Parts<'s> {
    section: &'s str,
    config: tokio_postgres::Config,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) dbname: Option<String>,
    pub(super) hosts: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<u16>,
    sslmode: Option<String>,
    pooled: Option<String>,
    seen: BTreeSet<String>,
    /// The text contains a password. An unknown name may then be part of that password, if it was not encoded or quoted.
    pub(super) holds_password: bool,
}

impl<'s> Parts<'s> {
    pub(super) fn new(section: &'s str) -> Self {
        Self {
            section,
            config: tokio_postgres::Config::new(),
            user: None,
            password: None,
            dbname: None,
            hosts: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            sslmode: None,
            pooled: None,
            seen: BTreeSet::new(),
            holds_password: false,
        }
    }

    /// The parameter as messages show it.
    pub(super) fn shown(&self, name: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let known = HONOURED.contains(&name.to_lowercase().as_str());
        if known || (name.len() <= 40 && name.chars().all(plain) && !self.holds_password) {
            format!("parameter {name}")
        } else {
            "parameter of another name".to_owned()
        }
    }

    pub(super) fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        let key = name.to_lowercase();
        let shown = self.shown(name);
        let wrong = |right: &str| Err(format!("has the {shown} with a value other than {right}"));
        if !self.seen.insert(key.clone()) {
            return Err(format!("has the {shown} twice; leave one of them"));
        }
        match key.as_str() {
            "user" | "username" => self.user = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()).filter(|p| !p.is_empty()),
            "dbname" | "database" => self.dbname = Some(value.to_owned()),
            // As in libpq, these replace the hosts before the path.
            "host" => {
                self.hosts = value.split(',').map(str::to_owned).collect();
                if !self.seen.contains("port") {
                    self.ports.clear();
                }
            }
            "hostaddr" => {
                let addresses = value.split(',').map(str::parse).collect();
                match addresses {
                    Ok(addresses) => self.addresses = addresses,
                    Err::<_, std::net::AddrParseError>(_) => return wrong("IP addresses"),
                }
            }
            "port" => {
                let ports = value.split(',').map(|port| match port {
                    "" => Ok(5432),
                    port => port_number(port),
                });
                self.ports = ports.collect::<Result<_, _>>()?;
            }
            "sslmode" => match value {
                "disable" | "prefer" | "require" | "verify-ca" | "verify-full" => {
                    self.sslmode = Some(value.to_owned());
                }
                _ => return wrong("disable, prefer, require, verify-ca, verify-full"),
            },
            "ssl" => match value {
                "true" | "1" => self.sslmode = Some("verify-full".to_owned()),
                "false" | "0" => self.sslmode = Some("disable".to_owned()),
                "disable" | "prefer" | "require" | "verify-ca" | "verify-full" => {
                    self.sslmode = Some(value.to_owned());
                }
                _ => return wrong("true, false, or one that sslmode takes"),
            },
            "sslaccept" if value == "strict" => {}
            "sslaccept" => return wrong("strict: certificates are always verified"),
            "sslsni" if value == "1" => {}
            "sslsni" => return wrong("1: the host's name is always sent"),
            // In libpq 16 this selects the system's authorities, which is the default here.
            "sslrootcert" if value == "system" => {}
            "sslnegotiation" => {
                self.config.ssl_negotiation(match value {
                    "postgres" => SslNegotiation::Postgres,
                    "direct" => SslNegotiation::Direct,
                    _ => return wrong("postgres, direct"),
                });
            }
            "gssencmode" if matches!(value, "disable" | "prefer") => {}
            "gssencmode" => return wrong("disable: GSSAPI is not supported"),
            "connect_timeout" => match value.parse::<u64>() {
                Ok(0) => {}
                Ok(seconds) if seconds <= 300 => {
                    self.config.connect_timeout(Duration::from_secs(seconds));
                }
                _ => return wrong("seconds, up to 300"),
            },
            "keepalives" if value == "1" => {}
            "keepalives" => {
                return wrong("1: without them a connection that is gone is not noticed");
            }
            "target_session_attrs" => {
                self.config.target_session_attrs(match value {
                    "any" => TargetSessionAttrs::Any,
                    "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
                    _ => return wrong("any, read-write, primary: a relay writes"),
                });
            }
            "targetservertype" => {
                self.config.target_session_attrs(match value {
                    "any" => TargetSessionAttrs::Any,
                    "primary" | "master" => TargetSessionAttrs::ReadWrite,
                    _ => return wrong("any, primary: a relay writes"),
                });
            }
            "load_balance_hosts" => {
                self.config.load_balance_hosts(match value {
                    "disable" => LoadBalanceHosts::Disable,
                    "random" => LoadBalanceHosts::Random,
                    _ => return wrong("disable, random"),
                });
            }
            "channel_binding" => {
                self.config.channel_binding(match value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return wrong("disable, prefer, require"),
                });
            }
            "options" => {
                self.config.options(value);
            }
            "client_encoding" | "encoding" | "charset" => {
                let encoding = value.to_lowercase().replace(['-', '_'], "");
                if !matches!(encoding.as_str(), "utf8" | "unicode" | "auto") {
                    return wrong("UTF8");
                }
            }
            "pgbouncer" | "binary_parameters" => match value {
                "true" | "yes" => self.pooled = Some(format!("{name}={value}")),
                "false" | "no" => {}
                _ => return wrong("true, false"),
            },
            "statement_cache_size" | "prepared_statement_cache_size" | "preparethreshold" => {
                match value.parse::<i64>() {
                    Ok(0) => self.pooled = Some(format!("{name}=0")),
                    Ok(_) => {}
                    Err(_) => return wrong("a number"),
                }
            }
            "prepared_statements" => match value {
                "false" => self.pooled = Some(format!("{name}=false")),
                "true" => {}
                _ => return wrong("true, false"),
            },
            "default_query_exec_mode" => match value {
                "cache_statement" => {}
                "cache_describe" | "describe_exec" | "exec" | "simple_protocol" => {
                    self.pooled = Some(format!("{name}={value}"));
                }
                _ => {
                    return wrong(
                        "cache_statement, cache_describe, describe_exec, exec, simple_protocol",
                    );
                }
            },
            other if IGNORED.contains(&other) => {}
            other => {
                if let Some((_, instead)) = INSTEAD.iter().find(|(name, _)| *name == other) {
                    let instead = instead.replace("{}", self.section);
                    return Err(format!("has the parameter {other}: {instead}"));
                }
                return Err(format!(
                    "has the {shown}, which is not known here; {}",
                    cure(other)
                ));
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Dsn, String> {
        let Self {
            mut config,
            hosts,
            addresses,
            ports,
            ..
        } = self;
        let count = hosts.len().max(addresses.len());
        if count == 0 {
            return Err("names no host".to_owned());
        }
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(
                "has the parameter hostaddr with a different number of addresses than hosts"
                    .to_owned(),
            );
        }
        if ports.len() > 1 && ports.len() != count {
            return Err("has a different number of ports than hosts".to_owned());
        }
        for host in &hosts {
            if host.starts_with('/') {
                config.host_path(host);
                continue;
            }
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            let is_name = !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed);
            if !is_name && host.parse::<IpAddr>().is_err() {
                return Err(
                    "has a host that is not a name, an IP address or a path (in a user name or a password, write @ as \
                     %40, / as %2F, ? as %3F)"
                        .to_owned(),
                );
            }
            config.host(host);
        }
        for address in addresses {
            config.hostaddr(address);
        }
        for port in ports {
            config.port(port);
        }
        let user = self.user.filter(|user| !user.is_empty());
        config.user(user.ok_or("names no user")?);
        if let Some(password) = self.password {
            config.password(password);
        }
        if let Some(dbname) = self.dbname.filter(|name| !name.is_empty()) {
            config.dbname(dbname);
        }
        config.ssl_mode(match self.sslmode.as_deref() {
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            _ => SslMode::Prefer,
        });
        Ok(Dsn {
            config,
            sslmode: self.sslmode,
            pooled: self.pooled,
        })
    }
}

/// Advice for an unknown name.
fn cure(name: &str) -> String {
    let near = HONOURED
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    match near {
        Some((_, known)) => format!("did you mean {known}?"),
        None => {
            "remove it (a setting of the session is written options=-c%20name%3Dvalue)".to_owned()
        }
    }
}

pub(super) fn port_number(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(
            "has a port that is not a number from 1 to 65535 (in a user name or a password, write : as %3A and @ as %40)"
                .to_owned(),
        ),
    }
}
