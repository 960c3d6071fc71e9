//! Real servers, real processes and real faults for the tests, the demo and the benchmark.
//!
//! - [`Postgres`], [`RabbitMq`]: private instances on free ports, in temporary directories, as users without rights
//! - [`PgBouncer`]: a pooler before one of them
//! - [`Daemon`]: a process under test, its log lines awaited
//! - [`Proxy`]: a network that can be cut, stalled or delayed
//! - [`certificates`]: a certificate authority of our own
//! - [`raw`], [`liar`]: AMQP by the byte, from a publisher and from a broker · [`crowd()`]: clients of a port that hold on
//! - [`hostile_settings`], [`shadows()`]: what people set, and what they plant
//! - [`eventually`]: waits that have a deadline and name who waits
//!
//! Nothing started here outlives the process that started it, however that ends: see `guard`.

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

/// What a server shows to those who connect with TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub certificate_pem: String,
    pub key_pem: String,
    /// Client certificates are asked for, and must come from here.
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

/// A port that nobody listens on right now. Below those that Linux gives to outgoing connections (32768 and above): one of
/// them could take it before the server does.
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
