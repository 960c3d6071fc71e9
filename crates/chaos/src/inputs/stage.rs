//! One PostgreSQL, one RabbitMQ and one relay for all bad inputs: none of them may harm what the others use.

use test_support::{Daemon, Recorder, amqp, probe};
use tokio::sync::oneshot;

use crate::{
    arena::{Arena, QUEUE, SOON, Setup},
    row::{Result, expect},
    stage::{SharedStage, Stage},
};

/// Bytes of a body that the stage's relay takes.
pub const MAX_PAYLOAD: usize = 1 << 20;

impl SharedStage {
    pub async fn get(&self, setup: &Setup) -> Result<&Stage> {
        let stage = self.0.get_or_init(|| async {
            let started = Stage::start(setup.clone()).await;
            started.map_err(|error| error.to_string())
        });
        stage.await.as_ref().map_err(|error| error.as_str().into())
    }
}

impl Stage {
    /// On a thread with a runtime of its own. The rows that use it come and go, each with theirs; and a process dies with
    /// the thread that started it.
    async fn start(setup: Setup) -> Result<Self> {
        let (ready, started) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = match tokio::runtime::Runtime::new() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            runtime.block_on(async {
                let parts = Self::parts(&setup, ended).await;
                if ready.send(parts).is_ok() {
                    let _: std::result::Result<(), _> = end.await;
                }
            });
        });
        started.await?
    }

    async fn parts(setup: &Setup, ended: oneshot::Sender<()>) -> Result<Self> {
        let mut arena = Arena::start(setup).await?;
        arena.set(
            "OUTBOXD__RELAY__MAX_PAYLOAD_BYTES",
            &MAX_PAYLOAD.to_string(),
        );
        // JSON escapes line breaks by its nature.
        arena.set("OUTBOXD__LOG__FORMAT", "human");
        let channel = amqp::channel(&arena.broker_url()).await?;
        amqp::bind(&channel, "audit", QUEUE).await?;
        amqp::exchange(&channel, "unbound").await?;
        let relay = arena.relay()?;
        relay.line("connected to both servers", SOON).await;
        let deliveries = Recorder::start(&arena.broker_url(), QUEUE);
        let env = arena.env().to_vec();
        let Arena {
            postgres, rabbitmq, ..
        } = arena;
        Ok(Self {
            relay,
            deliveries,
            postgres,
            _rabbitmq: rabbitmq,
            env,
            _ended: ended,
        })
    }
}

/// Lines in which a relay says that it panicked or lost its connections.
pub fn harms(relay: &Daemon) -> Vec<String> {
    let said = |line: &String| {
        ["panicked", "backing off"]
            .iter()
            .any(|word| line.contains(word))
    };
    relay.lines().into_iter().filter(said).collect()
}

/// The relay is the process that was started, and nothing in it came to harm beside what had `before`.
pub fn unharmed(relay: &Daemon, before: usize) -> Result<()> {
    // A process that ended has no memory, even before anybody has asked for its exit code.
    expect(probe::resident_kib(relay.pid()).is_ok(), || {
        format!("the relay is dead:\n{}", relay.lines().join("\n"))
    })?;
    let harms = harms(relay);
    expect(harms.len() <= before, || {
        format!("the relay said: {:?}", harms.last())
    })
}
