//! Configuration: defaults < file < `DATABASE_URL`, `AMQP_URL` < environment < flags. All problems are reported at once, each
//! with its key and what would be right, and never with the value of a secret.
//!
//! - `keys`: every key, its default, its meaning
//! - `layers`: merges file, environment and flags into one value for each key
//! - `reader`: typed, bounded values; unknown keys
//! - `sections`: the sections, and the relations between them
//! - `database`, `broker`: values that every connect reads again (URL, password)

mod broker;
mod database;
mod dsn;
mod given;
pub mod keys;
mod layers;
mod log;
mod reader;
mod secret;
mod sections;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use outbox_core::{
    envelope::EnvelopeOptions,
    plan::Ordering,
    route::{RoutingRules, Rule},
};

pub use broker::{Broker, BrokerAuth};
pub use database::Database;
pub use given::Changes;
pub use log::{LogError, log_filter};
pub use secret::Secret;

/// One problem, for the person who must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    pub key: String,
    pub problem: String,
}

impl ConfigError {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: one_line(&key.into()),
            problem: one_line(&problem.into()),
        }
    }
}

/// Anybody may have written a key or a value: a line break in it must not begin a new line of the output.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// All problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad configuration")?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

/// The URLs that a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub database: bool,
    pub broker: bool,
}

/// The sources of the configuration. Callers pass all of them: nothing here reads the process's environment.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `None`: `config/outboxd.toml`, if it exists.
    pub file: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    /// Values of `--set`; for one key the last wins.
    pub overrides: Vec<(String, String)>,
    pub needs: Needs,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub sources: Vec<Source>,
    pub relay: Relay,
    pub routing: Routing,
    pub retention: Retention,
    pub admin: Admin,
    pub log: Log,
    /// The values as given, for the comparison at a reload.
    given: given::Given,
}

/// A database to relay from, and the broker to relay to.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// `default` if there is no `[[source]]`.
    pub name: String,
    pub database: Database,
    pub broker: Broker,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Relay {
    pub workers: usize,
    pub batch_size: usize,
    pub batch_bytes: u64,
    pub max_payload_bytes: u64,
    pub poll_interval: Duration,
    pub confirm_timeout: Duration,
    pub max_attempts: u32,
    pub backoff_initial: Duration,
    pub backoff_max: Duration,
    pub ordering: Ordering,
    pub shutdown_grace: Duration,
    pub app_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFormat {
    Plain,
    CloudEvents,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    pub exchange: String,
    pub routing_key: String,
    pub mandatory: bool,
    /// `None`: a row may name any exchange except the default exchange.
    pub allowed_exchanges: Option<Vec<String>>,
    pub routes: Vec<Rule>,
    pub format: MessageFormat,
    pub cloudevents_source: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Retention {
    /// Zero: the settle deletes sent messages.
    pub sent: Duration,
    pub step_rows: u32,
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

impl Config {
    /// Reads and checks everything, without a connection.
    pub fn load(options: LoadOptions) -> Result<Self, ConfigErrors> {
        let needs = options.needs;
        let (values, problems) = layers::gather(options);
        // A check of incomplete values would only add problems that follow from the missing ones.
        if !problems.is_empty() {
            return Err(ConfigErrors(problems));
        }
        let given = given::Given::of(&values);
        let mut reader = reader::Reader::new(values);
        let config = sections::config(&mut reader, needs);
        match (config, reader.finish()) {
            (Some(config), problems) if problems.is_empty() => Ok(Self { given, ..config }),
            (_, problems) => Err(ConfigErrors(problems)),
        }
    }

    /// The differences to `newer`, by key.
    pub fn changes(&self, newer: &Self) -> Changes {
        self.given.changes(&newer.given)
    }

    /// Takes over values that need no restart: the log level, and the contents of files, which every connect reads again.
    pub fn adopt(&mut self, newer: &Self) {
        self.log.level.clone_from(&newer.log.level);
        self.given.adopt(&newer.given, &[keys::LOG_LEVEL]);
    }
}

impl From<&Routing> for RoutingRules {
    fn from(routing: &Routing) -> Self {
        Self {
            exchange: routing.exchange.clone(),
            routing_key: routing.routing_key.clone(),
            mandatory: routing.mandatory,
            routes: routing.routes.clone(),
            allowed_exchanges: routing.allowed_exchanges.clone(),
        }
    }
}

impl From<&Config> for EnvelopeOptions {
    fn from(config: &Config) -> Self {
        Self {
            app_id: config.relay.app_id.clone(),
            cloudevents_source: match config.routing.format {
                MessageFormat::Plain => None,
                MessageFormat::CloudEvents => config.routing.cloudevents_source.clone(),
            },
            max_payload_bytes: config.relay.max_payload_bytes,
        }
    }
}
