//! The configuration as the program uses it.

use std::{net::SocketAddr, time::Duration};

use outbox_core::{
    envelope::EnvelopeOptions,
    plan::Ordering,
    route::{RoutingRules, Rule},
};

use super::{
    Broker, ConfigFile, Database,
    given::{Changes, Given},
    keys,
};

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub file: ConfigFile,
    pub sources: Vec<Source>,
    pub relay: Relay,
    pub routing: Routing,
    pub retention: Retention,
    pub admin: Admin,
    pub log: Log,
    /// As it was given, to compare a later one with.
    pub(super) given: Given,
}

/// A database to relay from, and the broker to relay to.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// `default` when there is no `[[source]]`.
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
    /// `None`: a row may name any exchange but the default one.
    pub allowed_exchanges: Option<Vec<String>>,
    pub routes: Vec<Rule>,
    pub format: MessageFormat,
    pub cloudevents_source: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Retention {
    /// Zero: sent messages are deleted by the settle itself.
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
    /// What is different in `newer`, by key.
    pub fn changes(&self, newer: &Self) -> Changes {
        self.given.changes(&newer.given)
    }

    /// Takes over what needs no restart: the log's level, and what the files hold, which every connect reads again.
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
