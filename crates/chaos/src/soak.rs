//! Random faults at a steady rate, for as long as asked. The seed decides everything but the machine's timing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use test_support::{Daemon, Mode, Proxy};
use tokio::time::sleep;

use crate::{
    arena::{Arena, SOON, Setup, since},
    flow::Flow,
    row::{Outcome, Result},
    traffic::Rate,
    usage::Watch,
};

/// Messages a second, over all producers.
const PRODUCERS: usize = 4;
const EVENTS: usize = 10;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub duration: Duration,
    /// Messages a second.
    pub rate: u32,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    RelayKilled,
    RelayTerminated,
    RelayStalled,
    BrokerRestarted,
    BrokerKilled,
    BrokerFrozen,
    ConnectionsClosed,
    MemoryAlarm,
    PostgresRestarted,
    PostgresKilled,
    BackendsTerminated,
    TablesLocked,
    Network(Mode),
}

/// Three in five are small, as in life.
fn draw(random: &mut impl Rng) -> Fault {
    let ms = random.random_range(200..1500);
    match random.random_range(0..18) {
        0 | 1 => Fault::RelayKilled,
        2 => Fault::RelayTerminated,
        3 => Fault::RelayStalled,
        4 => Fault::BrokerRestarted,
        5 => Fault::BrokerKilled,
        6 => Fault::BrokerFrozen,
        7 | 8 => Fault::ConnectionsClosed,
        9 => Fault::MemoryAlarm,
        10 => Fault::PostgresRestarted,
        11 => Fault::PostgresKilled,
        12 | 13 => Fault::BackendsTerminated,
        14 => Fault::TablesLocked,
        15 => Fault::Network(Mode::Cut),
        16 => Fault::Network(Mode::StallAnswers),
        _ => Fault::Network(Mode::Delay(Duration::from_millis(ms))),
    }
}

/// Everything that is broken on purpose.
struct Stage<'a> {
    arena: Arena<'a>,
    /// Between the relays and the broker.
    network: Proxy,
    /// Never killed: what it uses is watched.
    steady: Daemon,
    other: Daemon,
}

pub async fn run(setup: &Setup, plan: Plan) -> Result<Outcome> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut arena = Arena::start(setup).await?;
    arena.rabbitmq.remember().await?;
    for name in ["BATCH_SIZE", "WORKERS"] {
        arena.unset(&format!("OUTBOXD__RELAY__{name}"));
    }
    arena.short_confirms();
    let network = arena.broker_proxy().await?;
    let (steady, other) = (arena.relay()?, arena.relay()?);
    let per_producer = plan.rate / u32::try_from(PRODUCERS * EVENTS)?;
    let flow = arena
        .flow_at(Rate {
            producers: PRODUCERS,
            per_second: per_producer.max(1),
            events: EVENTS,
            keys: 250,
        })
        .await?;
    flow.steady(1000).await?;
    let mut stage = Stage {
        arena,
        network,
        steady,
        other,
    };
    let watch = Watch::start(stage.steady.pid());
    let ended = stage.break_things(plan, &mut random).await;
    let flat = watch.flat();
    match ended {
        Ok(note) => finish(flow, note, flat).await,
        Err(error) => Err(error),
    }
}

async fn finish(mut flow: Flow, note: String, flat: Result<String>) -> Result<Outcome> {
    flow.note(note);
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(90)).await?;
    // Bounded row by row in the matrix; here they are counted.
    let mut outcome = flow.finish(usize::MAX).await?;
    match flat {
        Ok(note) => outcome.notes.push(note),
        Err(error) => return Err(format!("{error}; the ledger: {}", outcome.report).into()),
    }
    Ok(outcome)
}

impl Stage<'_> {
    async fn break_things(&mut self, plan: Plan, random: &mut StdRng) -> Result<String> {
        let began = Instant::now();
        let mut faults = 0;
        while began.elapsed() < plan.duration {
            sleep(Duration::from_millis(random.random_range(4_000..15_000))).await;
            let fault = draw(random);
            println!("{:>7.1}s  {fault:?}", since(began));
            self.inject(fault, random).await?;
            faults += 1;
        }
        Ok(format!(
            "seed {}, {faults} faults in {:.0} s",
            plan.seed,
            since(began)
        ))
    }

    async fn inject(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        let a_while = Duration::from_millis(random.random_range(1_000..8_000));
        match fault {
            Fault::RelayKilled => {
                self.other.kill().await?;
                sleep(a_while / 4).await;
                self.other = self.arena.relay()?;
            }
            Fault::RelayTerminated => {
                self.other.terminate()?;
                self.other.ended(SOON).await?;
                self.other = self.arena.relay()?;
            }
            Fault::RelayStalled => {
                self.other.signal(Signal::SIGSTOP)?;
                sleep(a_while).await;
                self.other.signal(Signal::SIGCONT)?;
            }
            Fault::BrokerRestarted => {
                self.arena.rabbitmq.stop().await?;
                self.arena.rabbitmq.restart().await?;
            }
            Fault::BrokerKilled => {
                self.arena.rabbitmq.kill().await;
                self.arena.rabbitmq.restart().await?;
            }
            Fault::BrokerFrozen => {
                self.arena.rabbitmq.pause()?;
                sleep(a_while).await;
                self.arena.rabbitmq.resume()?;
            }
            Fault::ConnectionsClosed => {
                self.arena.ctl("close_all_connections chaos").await?;
            }
            Fault::MemoryAlarm => {
                self.arena
                    .ctl("set_vm_memory_high_watermark 0.000001")
                    .await?;
                sleep(a_while).await;
                self.arena.ctl("set_vm_memory_high_watermark 0.4").await?;
            }
            Fault::PostgresRestarted => {
                self.arena.postgres.stop().await?;
                self.arena.postgres.restart().await?;
            }
            Fault::PostgresKilled => {
                self.arena.postgres.kill().await;
                self.arena.postgres.restart().await?;
            }
            Fault::BackendsTerminated => {
                let client = self.arena.client().await?;
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'";
                client.batch_execute(all).await?;
            }
            Fault::TablesLocked => {
                let mut client = self.arena.client().await?;
                let lock = client.transaction().await?;
                let exclusive = "LOCK TABLE outbox.lane IN ACCESS EXCLUSIVE MODE";
                lock.batch_execute(exclusive).await?;
                sleep(a_while).await;
                lock.rollback().await?;
            }
            Fault::Network(mode) => {
                self.network.set(mode);
                sleep(a_while).await;
                self.network.set(Mode::Forward);
            }
        }
        Ok(())
    }
}
