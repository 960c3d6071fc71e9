//! The section `broker`: values that are fixed at the start, and values that every connect reads again.

use std::{path::PathBuf, time::Duration};

use super::{ConfigError, database::Url, secret, uri::BrokerEndpoint};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerAuth {
    Plain,
    External,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Prefix of keys in messages: `broker.`, or `source.0.broker.`.
    pub(super) section: String,
    pub(super) url: Url,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub auth: BrokerAuth,
    pub connect_timeout: Duration,
    pub heartbeat: Duration,
    pub declare: bool,
    pub allow_plaintext: bool,
}

impl Broker {
    /// The address and the credentials for a connect now: reads files of secrets again.
    pub fn current(&self) -> Result<BrokerEndpoint, ConfigError> {
        let key = self.url.key(&self.section);
        let url = self.url.current(&self.section)?;
        let mut endpoint = BrokerEndpoint::parse(url.expose())
            .map_err(|e| ConfigError::new(key.clone(), e.to_string()))?;
        if let Some(path) = &self.password_file {
            let name = format!("{}password_file", self.section);
            if endpoint.password.is_some() {
                return Err(ConfigError::new(
                    name,
                    format!("the password is in {key} as well; give it once"),
                ));
            }
            endpoint.password =
                Some(secret::read_file(path).map_err(|problem| ConfigError::new(name, problem))?);
        }
        match self.auth {
            BrokerAuth::Plain if endpoint.username.is_none() || endpoint.password.is_none() => {
                return Err(ConfigError::new(
                    key,
                    format!(
                        "names no user and password (amqp://user:password@host); the password may also be in \
                         {}password_file. guest is never assumed",
                        self.section
                    ),
                ));
            }
            BrokerAuth::External if !endpoint.tls || self.cert_file.is_none() => {
                return Err(ConfigError::new(
                    format!("{}auth", self.section),
                    "external needs amqps://, cert_file and key_file: the certificate is the identity",
                ));
            }
            BrokerAuth::Plain | BrokerAuth::External => {}
        }
        if !endpoint.tls && !endpoint.is_loopback() && !self.allow_plaintext {
            return Err(ConfigError::new(
                key,
                format!(
                    "amqp:// to another host is plaintext; use amqps://, or set {}allow_plaintext = true",
                    self.section
                ),
            ));
        }
        if !endpoint.tls && (self.ca_file.is_some() || self.cert_file.is_some()) {
            return Err(ConfigError::new(
                key,
                "ca_file and cert_file need amqps://; amqp:// would ignore them",
            ));
        }
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn broker(url: &str) -> Broker {
        Broker {
            section: "broker.".to_owned(),
            url: Url::Value(Secret::new(url)),
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            auth: BrokerAuth::Plain,
            connect_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            declare: false,
            allow_plaintext: false,
        }
    }

    #[test]
    fn a_plaintext_password_stays_on_this_host_unless_allowed() {
        for url in [
            "amqp://u:p@localhost",
            "amqp://u:p@127.0.0.1",
            "amqp://u:p@[::1]",
            "amqps://u:p@mq.example",
        ] {
            assert!(broker(url).current().is_ok(), "{url}");
        }
        for host in [
            "mq.example",
            "192.0.2.1",
            "[2001:db8::1]",
            "localhost.example",
        ] {
            let mut remote = broker(&format!("amqp://u:hunter2@{host}"));
            let error = remote.current().unwrap_err().to_string();
            assert!(
                error.contains("broker.allow_plaintext") && !error.contains("hunter2"),
                "{error}"
            );
            remote.allow_plaintext = true;
            assert!(remote.current().is_ok());
        }
    }

    #[test]
    fn guest_is_never_assumed() {
        for url in [
            "amqp://localhost",
            "amqp://u@localhost",
            "amqp://:p@localhost",
            "amqp://u:@localhost",
            "amqp://:@localhost",
        ] {
            let error = broker(url).current().unwrap_err().to_string();
            assert!(
                error.starts_with("broker.url: names no user and password"),
                "{error}"
            );
        }
    }

    #[test]
    fn external_needs_a_certificate_over_tls() {
        let external = |url: &str, cert: bool| Broker {
            auth: BrokerAuth::External,
            cert_file: cert.then(|| "/c.pem".into()),
            key_file: cert.then(|| "/k.pem".into()),
            ..broker(url)
        };
        assert!(external("amqps://mq.example", true).current().is_ok());
        for (url, cert) in [("amqps://mq.example", false), ("amqp://localhost", true)] {
            assert!(
                external(url, cert)
                    .current()
                    .unwrap_err()
                    .to_string()
                    .starts_with("broker.auth: ")
            );
        }
    }
}
