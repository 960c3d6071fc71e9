//! AMQP URIs, strictly. No I/O.
//!
//! lapin's own parser resolves an IPv6 literal to localhost, turns missing credentials into guest/guest, reads a
//! trailing `/` as the virtual host "", ignores parameters that it does not know, and prints the password in its
//! `Debug`. So it never sees a URI: it gets the parts. <https://www.rabbitmq.com/docs/uri-spec>

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use outbox_core::limits::SHORT;

use super::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Name(String),
    Ip(IpAddr),
}

/// Where the broker is and who we are there. `Debug` shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerEndpoint {
    pub tls: bool,
    pub host: Host,
    pub port: u16,
    /// `/` is the default virtual host.
    pub vhost: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// What is wrong with a URI; never holds a part of it that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("must begin with amqp:// or amqps://")]
    Scheme,
    #[error("names no host")]
    NoHost,
    #[error(
        "names several hosts; a broker URL has one (use a load balancer's or a DNS name for a cluster)"
    )]
    SeveralHosts,
    #[error("has a host that is no name, IPv4 address or [IPv6 address]")]
    BadHost,
    #[error("has a port that is not between 1 and 65535")]
    BadPort,
    #[error(
        "ends in \"/\", which names the virtual host \"\"; write %2f for the default virtual host \"/\", or leave the slash out"
    )]
    EmptyVhost,
    #[error("has more than one \"/\" in its path; write %2f for a slash in a virtual host's name")]
    SlashInVhost,
    #[error("has an invalid percent-encoding in its {0}; write % as %25")]
    PercentEncoding(&'static str),
    #[error(
        "has the parameter \"{0}\"; none is understood here (the heartbeat is broker.heartbeat)"
    )]
    Parameter(String),
    #[error("has a fragment (#); write # as %23 in a password")]
    Fragment,
    #[error(
        "has a \"?\" or a \"/\" before its \"@\"; write ? as %3f and / as %2f in a password, @ as %40 in a virtual host"
    )]
    BareSpecial,
    #[error("has a control character in its {0}")]
    ControlCharacter(&'static str),
    #[error("has a virtual host of more than 255 bytes; AMQP allows 255")]
    LongVhost,
}

impl BrokerEndpoint {
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let (tls, rest) = if let Some(rest) = uri.strip_prefix("amqps://") {
            (true, rest)
        } else if let Some(rest) = uri.strip_prefix("amqp://") {
            (false, rest)
        } else {
            return Err(UriError::Scheme);
        };
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (rest, query) = rest
            .split_once('?')
            .map_or((rest, None), |(rest, query)| (rest, Some(query)));
        // Else the rest of a password would be taken for a host, a parameter or a virtual host, and shown.
        if query.is_some_and(|q| q.contains('@'))
            || rest.split_once('/').is_some_and(|(_, p)| p.contains('@'))
        {
            return Err(UriError::BareSpecial);
        }
        if let Some(query) = query {
            let name = query.split(['=', '&']).next().unwrap_or_default();
            return Err(UriError::Parameter(name.escape_debug().to_string()));
        }
        let (authority, path) = rest
            .split_once('/')
            .map_or((rest, None), |(a, p)| (a, Some(p)));
        let (userinfo, hostport) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(u, h)| (Some(u), h));
        let (username, password) = match userinfo {
            None => (None, None),
            Some(userinfo) => {
                let (user, password) = userinfo
                    .split_once(':')
                    .map_or((userinfo, None), |(u, p)| (u, Some(p)));
                let password = password.map(|p| decoded(p, "password")).transpose()?;
                (
                    Some(decoded(user, "user name")?).filter(|u| !u.is_empty()),
                    // Nobody's: RabbitMQ refuses an empty one.
                    password.filter(|p| !p.is_empty()).map(Secret::new),
                )
            }
        };
        let (host, port) = host_and_port(hostport)?;
        let vhost = match path {
            None => "/".to_owned(),
            Some("") => return Err(UriError::EmptyVhost),
            Some(path) if path.contains('/') => return Err(UriError::SlashInVhost),
            Some(path) => decoded(path, "virtual host")?,
        };
        // lapin panics on a longer one.
        if vhost.len() > SHORT {
            return Err(UriError::LongVhost);
        }
        let port = port.unwrap_or(if tls { 5671 } else { 5672 });
        Ok(Self {
            tls,
            host,
            port,
            vhost,
            username,
            password,
        })
    }

    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
            Host::Ip(ip) => ip.is_loopback(),
        }
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
        }
    }
}

fn host_and_port(text: &str) -> Result<(Host, Option<u16>), UriError> {
    if text.is_empty() {
        return Err(UriError::NoHost);
    }
    if text.contains(',') {
        return Err(UriError::SeveralHosts);
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, after) = rest.split_once(']').ok_or(UriError::BadHost)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| UriError::BadHost)?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(UriError::BadHost),
        };
        (Host::Ip(IpAddr::V6(ip)), port)
    } else {
        let (host, port) = text
            .split_once(':')
            .map_or((text, None), |(h, p)| (h, Some(p)));
        if port.is_some_and(|p| p.contains(':')) {
            return Err(UriError::BadHost);
        }
        (name_or_ip(host)?, port)
    };
    let port = match port {
        None => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Some(port),
            _ => return Err(UriError::BadPort),
        },
    };
    Ok((host, port))
}

fn name_or_ip(host: &str) -> Result<Host, UriError> {
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    // 127.1 or 0x7f000001 would be resolved by some libraries and not by others.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if host.len() > 253 || numeric || !host.bytes().all(allowed) {
        return Err(UriError::BadHost);
    }
    Ok(Host::Name(host.to_owned()))
}

fn decoded(text: &str, part: &'static str) -> Result<String, UriError> {
    let bytes = text.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(hex(i + 1) && hex(i + 2)) {
            return Err(UriError::PercentEncoding(part));
        }
    }
    let text = percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| UriError::PercentEncoding(part))?;
    // A NUL separates user name and password in SASL PLAIN; no other one is typed on purpose either.
    if text.contains(char::is_control) {
        return Err(UriError::ControlCharacter(part));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(uri: &str) -> BrokerEndpoint {
        BrokerEndpoint::parse(uri).unwrap()
    }

    #[test]
    fn parts_are_decoded_and_defaults_are_the_protocols() {
        let e = endpoint("amqp://us%65r:p%40ss%2F@rabbit.example:5673/my%2fhost");
        assert_eq!(e.username.as_deref(), Some("user"));
        assert_eq!(e.password.unwrap().expose(), "p@ss/");
        assert_eq!(
            (e.host, e.port, e.vhost.as_str()),
            (Host::Name("rabbit.example".into()), 5673, "my/host")
        );
        assert_eq!(endpoint("amqps://u:p@h").port, 5671);
        assert_eq!(endpoint("amqp://u:p@h").vhost, "/");
    }

    #[test]
    fn an_ipv6_literal_stays_that_address() {
        let e = endpoint("amqp://u:p@[2001:db8::1]:5672");
        assert_eq!(e.host, Host::Ip("2001:db8::1".parse().unwrap()));
        assert!(!e.is_loopback());
        assert_eq!(e.address(), "[2001:db8::1]:5672");
        assert!(endpoint("amqp://u:p@[::1]").is_loopback());
    }

    #[test]
    fn what_other_parsers_guess_is_refused() {
        for (uri, expected) in [
            ("http://h", UriError::Scheme),
            ("amqp://u:p@", UriError::NoHost),
            ("amqp://u:p@a,b", UriError::SeveralHosts),
            ("amqp://u:p@::1", UriError::BadHost),
            ("amqp://u:p@h:5672,[::1]:5672", UriError::SeveralHosts),
            ("amqp://u:p@127.1", UriError::BadHost),
            ("amqp://u:p@[::1", UriError::BadHost),
            ("amqp://u:p@[::1]x", UriError::BadHost),
            ("amqp://u:p@[localhost]", UriError::BadHost),
            ("amqp://u:p@h:0", UriError::BadPort),
            ("amqp://u:p@h:99999", UriError::BadPort),
            ("amqp://u:p@h/", UriError::EmptyVhost),
            ("amqp://u:p@h//", UriError::SlashInVhost),
            ("amqp://u:p%zz@h", UriError::PercentEncoding("password")),
            ("amqp://u:p%2@h", UriError::PercentEncoding("password")),
            ("amqp://u:p%ff@h", UriError::PercentEncoding("password")),
            ("amqp://u%g1:p@h", UriError::PercentEncoding("user name")),
            ("amqp://u:p@h/%2", UriError::PercentEncoding("virtual host")),
            ("amqp://u:p@h/%2f?", UriError::Parameter(String::new())),
            (
                "amqp://u:p@h/%ff",
                UriError::PercentEncoding("virtual host"),
            ),
            (
                "amqp://u:p@h?frame_max=1",
                UriError::Parameter("frame_max".into()),
            ),
            ("amqp://u:p#q@h", UriError::Fragment),
            ("amqp://u:?hunter2@h", UriError::BareSpecial),
            ("amqps://u:12/hunter2@h", UriError::BareSpecial),
            ("amqp://u:p%00q@h", UriError::ControlCharacter("password")),
        ] {
            assert_eq!(BrokerEndpoint::parse(uri), Err(expected), "{uri}");
        }
    }
}
