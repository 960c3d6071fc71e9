//! Real servers, real processes and real faults for the tests, the demo and the benchmark.
//!
//! - [`Postgres`], [`RabbitMq`]: private instances on free ports, in temporary directories, as users without rights
//! - [`PgBouncer`]: a pooler in front of a PostgreSQL
//! - [`Daemon`]: a process under test and its log lines
//! - [`Proxy`]: a network that can be cut, stalled or delayed
//! - [`certificates`]: a certificate authority of our own
//! - [`raw`], [`liar`]: hand-made AMQP bytes of a publisher and of a broker · [`crowd()`]: clients that occupy a port
//! - [`hostile_settings`], [`shadows()`]: hostile settings, and hostile objects in a schema
//! - [`eventually`]: waits with a deadline, which name their caller
//!
//! No server or process outlives the process that started it, however that process ends: see `guard`.

pub mod certificates;
mod crowd;
mod daemon;
mod guard;
pub mod liar;
mod pgbouncer;
mod postgres;
mod proxy;
mod rabbitmq;
pub mod raw;
mod settings;
mod shadows;
mod wait;

pub use crowd::crowd;
pub use daemon::{Daemon, Transcript};
pub use pgbouncer::PgBouncer;
pub use postgres::{Postgres, PostgresOptions, binaries as postgres_programs};
pub use proxy::{Mode, Proxy};
pub use rabbitmq::{RabbitMq, RabbitMqOptions, scripts as rabbitmq_scripts};
pub use settings::hostile_settings;
pub use shadows::shadows;
pub use wait::{eventually, pause_after};

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Certificates of a server with TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub certificate_pem: String,
    pub key_pem: String,
    /// If set, clients need a certificate of this authority.
    pub client_ca_pem: Option<String>,
}

pub fn postgres_is_installed() -> bool {
    postgres_programs().is_ok()
}

pub fn rabbitmq_is_installed() -> bool {
    rabbitmq_scripts().is_ok()
}

pub fn pgbouncer_is_installed() -> bool {
    pgbouncer::program().is_ok()
}

/// A port without a listener. It is below the ports of outgoing connections (32768 and above on Linux), because such a connection
/// could take the port before the server does.
pub fn free_port() -> Result<u16> {
    use std::hash::{BuildHasher, Hasher, RandomState};
    for _ in 0..100 {
        let random = RandomState::new().build_hasher().finish();
        let port = 10_000 + u16::try_from(random % 22_000)?;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("a hundred ports were tried, and none is free".into())
}
