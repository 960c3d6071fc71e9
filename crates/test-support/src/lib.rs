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
mod port;
mod postgres;
mod proxy;
mod rabbitmq;
pub mod raw;
mod settings;
mod shadows;
mod tls;
mod wait;

pub use crowd::crowd;
pub use daemon::{Daemon, Transcript};
pub use pgbouncer::PgBouncer;
pub use port::free_port;
pub use postgres::{Postgres, PostgresOptions};
pub use programs::{Error, Result};
pub use proxy::{Mode, Proxy};
pub use rabbitmq::{RabbitMq, RabbitMqOptions};
pub use settings::hostile_settings;
pub use shadows::shadows;
pub use tls::ServerTls;
pub use wait::{eventually, pause_after};

pub fn pgbouncer_is_installed() -> bool {
    programs::pgbouncer().is_ok()
}

/// The relay. Cargo builds it into the folder of the program that asks.
pub fn outboxd() -> Result<std::path::PathBuf> {
    let program = std::env::current_exe()?.with_file_name("outboxd");
    if program.exists() {
        Ok(program)
    } else {
        Err(format!("{} is not built", program.display()).into())
    }
}
