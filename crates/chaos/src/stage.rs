//! What the bad inputs have in common: one PostgreSQL, one RabbitMQ and one relay.

use test_support::{Daemon, Postgres, RabbitMq};
use tokio::sync::{OnceCell, oneshot};

use crate::deliveries::Deliveries;

/// Started by the first that needs it; ended with the run.
#[derive(Default)]
pub struct SharedStage(pub OnceCell<std::result::Result<Stage, String>>);

pub struct Stage {
    pub relay: Daemon,
    /// Everything that was delivered, to anybody.
    pub deliveries: Deliveries,
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
    /// The relay's settings.
    pub env: Vec<(String, String)>,
    /// When it is dropped, the thread ends that started them.
    pub _ended: oneshot::Sender<()>,
}
