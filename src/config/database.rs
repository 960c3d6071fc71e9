//! The section `database`: values that are fixed at the start, and values that every connect reads again.

use std::{path::PathBuf, time::Duration};

use tokio_postgres::config::{Host, SslMode};

use super::{
    ConfigError, Secret,
    dsn::{self, Dsn},
    secret,
};

#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// Prefix of keys in messages: `database.`, or `source.0.database.`.
    pub(super) section: String,
    pub(super) url: Url,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub idle_in_transaction_timeout: Duration,
    pub prepared_statements: bool,
    pub listen: bool,
    pub allow_plaintext: bool,
}

/// A URL is a secret, because it may contain a password.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Url {
    Value(Secret),
    File(PathBuf),
    /// This command does not need the URL.
    None,
}

impl Database {
    /// For sessions that only read: they stop waiting for a lock before the server's `deadlock_timeout` (a second). Otherwise
    /// the server could end a person's TRUNCATE or migration, which locks its tables in another order.
    pub(crate) fn yielding(&self) -> Self {
        Self {
            lock_timeout: self.lock_timeout.min(YIELD),
            ..self.clone()
        }
    }

    /// As `yielding`, for questions whose answers a person waits for: no statement takes longer than this.
    pub(crate) fn impatient(&self, longest: Duration) -> Self {
        Self {
            statement_timeout: self.statement_timeout.min(longest),
            ..self.yielding()
        }
    }
}

const YIELD: Duration = Duration::from_millis(500);

impl Url {
    pub(super) fn current(&self, section: &str) -> Result<Secret, ConfigError> {
        match self {
            Self::Value(url) => Ok(url.clone()),
            Self::File(path) => secret::read_file(path)
                .map_err(|problem| ConfigError::new(format!("{section}url_file"), problem)),
            Self::None => Err(ConfigError::new(format!("{section}url"), "is not set")),
        }
    }

    pub(super) fn key(&self, section: &str) -> String {
        match self {
            Self::File(_) => format!("{section}url_file"),
            Self::Value(_) | Self::None => format!("{section}url"),
        }
    }
}

impl Database {
    /// Full name of a key of this section, for messages.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.section)
    }

    /// Every server of the URL is on this host; `false` also if the URL cannot be read now.
    pub(crate) fn is_on_this_host(&self) -> bool {
        self.current().is_ok_and(|config| is_local(&config))
    }

    /// The settings for a connect now: reads files of secrets again. `get_ssl_mode` is `Disable`, `Prefer`, or `Require`,
    /// which verifies the chain and the host's name.
    pub fn current(&self) -> Result<tokio_postgres::Config, ConfigError> {
        let key = self.url.key(&self.section);
        let url = self.url.current(&self.section)?;
        let refused = |problem: String| ConfigError::new(key.clone(), problem);
        let Dsn {
            mut config,
            sslmode: asked,
            pooled,
        } = dsn::parse(url.expose(), &self.section).map_err(refused)?;
        if let Some(parameter) = pooled
            && self.prepared_statements
        {
            return Err(refused(format!(
                "has {parameter}, so a pooler keeps no prepared statements; set {0}prepared_statements = false and \
                 {0}listen = false with it",
                self.section
            )));
        }
        if let Some(path) = &self.password_file {
            let name = format!("{}password_file", self.section);
            if config.get_password().is_some() {
                return Err(ConfigError::new(
                    name,
                    format!("the password is in {key} as well; give it once"),
                ));
            }
            let password =
                secret::read_file(path).map_err(|problem| ConfigError::new(name, problem))?;
            config.password(password.expose());
        }
        let local = is_local(&config);
        let mode = match asked.as_deref() {
            None if local && self.ca_file.is_none() && self.cert_file.is_none() => SslMode::Disable,
            None => SslMode::Require,
            Some(_) => config.get_ssl_mode(),
        };
        if mode != SslMode::Require && !local && !self.allow_plaintext {
            return Err(ConfigError::new(
                key,
                format!(
                    "sslmode={} to another host is plaintext, or may become it; use sslmode=verify-full, or set \
                     {}allow_plaintext = true",
                    asked.unwrap_or_default(),
                    self.section
                ),
            ));
        }
        config.ssl_mode(mode);
        Ok(config)
    }
}

/// Every server of the configuration is on this host: loopback, or a socket in the file system.
fn is_local(config: &tokio_postgres::Config) -> bool {
    let by_address = config.get_hostaddrs();
    if !by_address.is_empty() {
        return by_address.iter().all(std::net::IpAddr::is_loopback);
    }
    config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name.eq_ignore_ascii_case("localhost")
                || name
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(url: &str) -> Database {
        Database {
            section: "database.".to_owned(),
            url: Url::Value(Secret::new(url)),
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(60),
            prepared_statements: true,
            listen: true,
            allow_plaintext: false,
        }
    }

    #[test]
    fn tls_is_verified_to_other_hosts_and_left_out_on_this_one() {
        let mode = |url: &str| database(url).current().map(|c| c.get_ssl_mode());
        for (url, expected) in [
            ("postgres://u:p@127.0.0.1/db", SslMode::Disable),
            ("postgres://u:p@localhost/db", SslMode::Disable),
            ("host=/run/postgresql user=u", SslMode::Disable),
            (
                "postgres://u:p@127.0.0.1/db?sslmode=prefer",
                SslMode::Prefer,
            ),
            (
                "postgres://u:p@127.0.0.1/db?sslmode=verify-full",
                SslMode::Require,
            ),
            ("postgres://u:p@db.example/db", SslMode::Require),
            ("postgres://u:p@127.0.0.1,db.example/db", SslMode::Require),
            (
                "postgres://u:p@db.example/db?application_name=x&sslmode=verify-ca",
                SslMode::Require,
            ),
            (
                "host=db.example user=u sslmode='verify-full' dbname=db",
                SslMode::Require,
            ),
            ("host=localhost hostaddr=10.0.0.1 user=u", SslMode::Require),
        ] {
            assert_eq!(mode(url).unwrap(), expected, "{url}");
        }
        for url in [
            "postgres://u:p@db.example/db?sslmode=disable",
            "postgres://u:p@db.example/db?sslmode=prefer",
            "postgres://u:p@192.0.2.1/db?sslmode=disable",
            "postgres://u:p@127.0.0.1,db.example/db?sslmode=disable",
            "postgres://u:p@127.0.0.1,db.example/db?sslmode=prefer",
            "host=db.example user=u password=p sslmode=prefer",
        ] {
            let mut remote = database(url);
            let error = remote.current().unwrap_err().to_string();
            assert!(
                error.starts_with("database.url: sslmode=") && error.contains("allow_plaintext"),
                "{error}"
            );
            remote.allow_plaintext = true;
            assert!(remote.current().is_ok());
        }
        let with_ca = Database {
            ca_file: Some("/ca.pem".into()),
            ..database("postgres://u:p@localhost/db")
        };
        assert_eq!(with_ca.current().unwrap().get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn a_password_that_holds_sslmode_is_no_mode() {
        let config = database("postgres://u:xsslmode=disable@db.example/db").current();
        assert_eq!(config.unwrap().get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn a_url_that_says_there_is_a_pooler_needs_the_settings_for_one() {
        let mut pooled = database("postgres://u:p@localhost/db?pgbouncer=true");
        let error = pooled.current().unwrap_err().to_string();
        assert!(
            error.starts_with("database.url: has pgbouncer=true")
                && error.contains("database.prepared_statements = false"),
            "{error}"
        );
        pooled.prepared_statements = false;
        pooled.listen = false;
        assert!(pooled.current().is_ok());
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_without_being_quoted() {
        for (url, says) in [
            (
                "postgres://u:hunt er2@h/db?nope=1",
                "contains a space; write it as %20",
            ),
            ("user=u password=hunter2", "names no host"),
            ("postgres://h/hunter2", "names no user"),
            ("mysql://u:hunter2@h/db", "is a MySQL URL"),
            (
                "postgres://u:hunter2@h/db?sslmode=allow",
                "has the parameter sslmode with a value other than",
            ),
        ] {
            let error = database(url).current().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hunt"), "{error}");
        }
    }
}
