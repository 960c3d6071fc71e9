//! What the bad inputs have in common: one PostgreSQL, one RabbitMQ and one relay.

use checker::Delivered;
use test_support::{Daemon, Held, Postgres, RabbitMq, Recorder};
use tokio::sync::{OnceCell, oneshot};

/// Started by the first that needs it; ended with the run.
#[derive(Default)]
pub struct SharedStage(pub OnceCell<std::result::Result<Stage, String>>);

pub struct Stage {
    pub relay: Daemon,
    /// Everything that was delivered, to anybody.
    pub deliveries: Recorder<Delivered>,
    pub postgres: Held<Postgres>,
    pub _rabbitmq: Held<RabbitMq>,
    /// The relay's settings.
    pub env: Vec<(String, String)>,
    /// When it is dropped, the thread ends that started them.
    pub _ended: oneshot::Sender<()>,
}
