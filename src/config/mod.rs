//! STUB
use std::{net::SocketAddr, path::PathBuf, time::Duration};
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);
#[derive(Clone)]
pub struct Secret(pub String);
impl Secret { pub fn expose(&self) -> &str { &self.0 } }
#[derive(Clone)]
pub struct Config { pub sources: Vec<Source>, pub relay: Relay, pub routing: Routing, pub retention: Retention, pub admin: Admin, pub log: Log }
#[derive(Clone)]
pub struct Source { pub name: String, pub database: Database, pub broker: Broker }
#[derive(Clone)]
pub struct Database { pub url: Secret, pub ca_file: Option<PathBuf>, pub cert_file: Option<PathBuf>, pub key_file: Option<PathBuf>, pub connect_timeout: Duration, pub statement_timeout: Duration, pub lock_timeout: Duration, pub idle_in_transaction_timeout: Duration, pub prepared_statements: bool, pub listen: bool, pub allow_plaintext: bool }
impl Database { pub fn current(&self) -> Result<tokio_postgres::Config, ConfigError> { unimplemented!() } }
#[derive(Clone, Copy)]
pub enum BrokerAuth { Plain, External }
#[derive(Clone)]
pub struct Broker { pub url: Secret, pub ca_file: Option<PathBuf>, pub cert_file: Option<PathBuf>, pub key_file: Option<PathBuf>, pub auth: BrokerAuth, pub connect_timeout: Duration, pub heartbeat: Duration, pub declare: bool }
impl Broker { pub fn current(&self) -> Result<crate::broker::uri::BrokerEndpoint, ConfigError> { unimplemented!() } }
#[derive(Clone, Copy, Debug)]
pub enum Ordering { Strict, Pipelined }
#[derive(Clone)]
pub struct Relay { pub workers: usize, pub batch_size: usize, pub batch_bytes: u64, pub max_payload_bytes: u64, pub poll_interval: Duration, pub confirm_timeout: Duration, pub max_attempts: u32, pub backoff_initial: Duration, pub backoff_max: Duration, pub ordering: Ordering, pub shutdown_grace: Duration, pub app_id: String }
#[derive(Clone)]
pub struct Routing { pub exchange: String }
#[derive(Clone)]
pub struct Retention { pub sent: Duration, pub step_rows: u32, pub interval: Duration }
#[derive(Clone)]
pub struct Admin { pub listen: Option<SocketAddr> }
#[derive(Clone, Copy)]
pub enum LogFormat { Auto, Human, Json }
#[derive(Clone)]
pub struct Log { pub format: LogFormat, pub level: String }
