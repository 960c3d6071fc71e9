//! A relay at work that can be asked how it is, for incidents one after the other.

use std::time::{Duration, Instant};

use test_support::{Daemon, eventually, free_port};
use tokio_postgres::Client;

use crate::{
    arena::{Arena, DATABASE, SOON, Setup, since},
    flow::{Flow, connect},
    inputs::program::{Ran, outboxd},
    probe,
    row::{Outcome, Result, expect, in_time},
    traffic::Rate,
};

/// Within which what is wrong is said.
const MINUTE: Duration = Duration::from_secs(60);
/// The whole of a small table is audited again every few seconds.
pub const AUDITED: Duration = Duration::from_secs(30);

pub struct Scene<'a> {
    pub arena: Arena<'a>,
    pub flow: Flow,
    pub relay: Daemon,
    /// The owner of everything, and superuser.
    pub owner: Client,
    pub port: u16,
}

impl<'a> Scene<'a> {
    pub async fn start(setup: &'a Setup) -> Result<Self> {
        Self::of(Arena::start(setup).await?).await
    }

    /// With the settings that the arena has.
    pub async fn of(arena: Arena<'a>) -> Result<Self> {
        let url = arena.postgres.url(DATABASE);
        Self::by(arena, &url).await
    }

    /// [`Self::of`]; the owner and the producers take this way to the database.
    pub async fn by(mut arena: Arena<'a>, url: &str) -> Result<Self> {
        let port = free_port()?;
        arena.set("OUTBOXD__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
        let relay = arena.relay()?;
        let flow = arena.flow_over(url, &arena.broker_url(), Rate::default());
        flow.steady(200).await?;
        Ok(Self {
            owner: connect(url).await?,
            arena,
            flow,
            relay,
            port,
        })
    }

    pub async fn sql(&self, sql: &str) -> Result<()> {
        let done = self.owner.batch_execute(sql).await;
        done.map_err(|error| format!("{sql}: {error:?}").into())
    }

    pub fn fault(&self) {
        self.arena.setup.timeline.fault();
    }

    pub fn over(&self) -> Instant {
        self.arena.setup.timeline.over()
    }

    /// The incident is over: see [`Flow::endured`].
    pub async fn endured(&mut self, bound: Duration, duplicates: usize) -> Result<()> {
        let over = self.over();
        self.flow.endured(over, bound, duplicates).await
    }

    /// `/readyz` answers so within a minute.
    pub async fn says(&self, status: u16, text: &str) -> Result<()> {
        let began = Instant::now();
        eventually(
            &format!("/readyz to say {status}, {text}"),
            SOON,
            async || {
                let (code, body) = probe::get(self.port, "/readyz").await?;
                (code == status && body.contains(text)).then_some(())
            },
        )
        .await;
        in_time(began.elapsed() <= MINUTE, || {
            format!("{text:?} was said after {:.0} s", since(began))
        })
    }

    /// It is ready, or is so again.
    pub async fn ready(&self) -> Result<()> {
        self.says(200, "\"ready\":true").await
    }

    /// The log says so within a minute.
    pub async fn logs(&self, text: &str) -> Result<()> {
        let began = Instant::now();
        self.relay.line(text, SOON).await;
        in_time(began.elapsed() <= MINUTE, || {
            format!("{text:?} was logged after {:.0} s", since(began))
        })
    }

    pub async fn until(&self, what: &str, of: &str, n: i64) {
        self.arena.until_count(what, of, |found| found == n).await;
    }

    /// Nothing is pending. Producers must stand still.
    pub async fn drained(&self) {
        crate::flow::drained(&self.owner).await;
    }

    /// All is sent, and the marks have passed it: from here on nobody looks there. Producers must stand still.
    pub async fn passed(&self) {
        self.drained().await;
        let above = "outbox.message m LEFT JOIN outbox.lane l USING (lane) WHERE m.id > coalesce(l.low_water, -1)";
        self.until("the marks to pass what was sent", above, 0)
            .await;
    }

    /// A command beside the relay, with its settings.
    pub async fn command(&self, args: &[&str]) -> Result<Ran> {
        outboxd(self.arena.setup, args, self.arena.env().iter().cloned()).await
    }

    /// Ends by SIGTERM, as a rollout ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.relay.terminate()?;
        let ended = self.relay.ended(SOON).await?;
        expect(ended.success(), || format!("the relay ended: {ended}"))
    }

    /// Ends; nothing is committed any more, and the ledger is judged.
    pub async fn end(self) -> Result<Outcome> {
        self.flow.end().await
    }
}
