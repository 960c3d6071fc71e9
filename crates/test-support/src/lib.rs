//! Real servers, real processes and real faults for the tests, the demo and the benchmark.
//!
//! - [`Postgres`], [`RabbitMq`]: private instances on free ports, in temporary directories, as users without rights
//! - [`PgBouncer`]: a pooler in front of a PostgreSQL
//! - [`Site`]: a database with the schemas and a virtual host, on a test's own servers or on shared ones
//! - [`Daemon`]: a process under test and its log lines · [`run`]: a command · [`probe`]: a process seen from outside
//! - [`Recorder`], [`Commits`]: what arrived, and the ledger of what was committed · [`amqp`]: queues, publishes, dead letters
//! - [`Proxy`]: a network that can be cut, stalled or delayed
//! - [`certificates`]: a certificate authority of our own
//! - [`raw`], [`liar`]: hand-made AMQP bytes of a publisher and of a broker · [`crowd()`]: clients that occupy a port
//! - [`hostile_settings`], [`shadows()`]: hostile settings, and hostile objects in a schema
//! - [`eventually`]: waits with a deadline, which name their caller
//!
//! No server or process outlives the process that started it, however that process ends: see `guard`.

pub mod amqp;
pub mod certificates;
pub mod commits;
mod crowd;
mod daemon;
mod guard;
pub mod liar;
mod pgbouncer;
mod port;
mod postgres;
pub mod probe;
mod proxy;
mod rabbitmq;
pub mod raw;
mod recorder;
mod settings;
mod shadows;
pub mod site;
mod tls;
mod wait;

pub use commits::{Commits, drained};
pub use crowd::crowd;
pub use daemon::{Daemon, Ran, Transcript, run};
pub use pgbouncer::PgBouncer;
pub use port::{free_port, over};
pub use postgres::{Postgres, PostgresOptions};
pub use programs::{Error, Result};
pub use proxy::{Mode, Proxy};
pub use rabbitmq::{RabbitMq, RabbitMqOptions};
pub use recorder::{Record, Recorder, Seen};
pub use settings::hostile_settings;
pub use shadows::shadows;
pub use site::{Held, Plan, Servers, Site};
pub use tls::ServerTls;
pub use wait::{SOON, eventually, nearer};

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
