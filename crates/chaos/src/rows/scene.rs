//! A relay at work that can be asked how it is, for incidents one after the other.

use std::time::{Duration, Instant};

use test_support::{Daemon, Ran, drained, eventually, free_port, probe};
use tokio_postgres::Client;

use crate::{
    arena::{Arena, SOON, Setup},
    flow::{Flow, connect},
    row::{Outcome, Result, expect, in_time},
    traffic::Rate,
};

/// Within which what is wrong is said.
const MINUTE: Duration = Duration::from_secs(60);
/// The whole of a small table is audited again every few seconds.
pub const AUDITED: Duration = Duration::from_secs(30);

async fn done(client: &Client, sql: &str) -> Result<()> {
    let done = client.batch_execute(sql).await;
    done.map_err(|error| format!("{sql}: {error:?}").into())
}

pub struct Scene<'a> {
    pub arena: Arena<'a>,
    pub flow: Flow,
    pub relay: Daemon,
    /// The ordinary role that owns everything.
    pub owner: Client,
    /// For what only a superuser may.
    pub admin: Client,
    pub port: u16,
}

impl<'a> Scene<'a> {
    pub async fn start(setup: &'a Setup) -> Result<Self> {
        Self::of(Arena::start(setup).await?).await
    }

    /// With the settings that the arena has.
    pub async fn of(arena: Arena<'a>) -> Result<Self> {
        let url = arena.owner_url();
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
            admin: arena.client().await?,
            arena,
            flow,
            relay,
            port,
        })
    }

    /// As the owner.
    pub async fn sql(&self, sql: &str) -> Result<()> {
        done(&self.owner, sql).await
    }

    /// What only a superuser may.
    pub async fn superuser(&self, sql: &str) -> Result<()> {
        done(&self.admin, sql).await
    }

    /// The incident is over: see [`Flow::endured`].
    pub async fn endured(&mut self, bound: Duration, duplicates: usize) -> Result<()> {
        self.flow.endured(Instant::now(), bound, duplicates).await
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
        in_time(began, MINUTE, || format!("{text:?} was said late"))
    }

    /// It is ready, or is so again.
    pub async fn ready(&self) -> Result<()> {
        self.says(200, "\"ready\":true").await
    }

    /// The log says so within a minute.
    pub async fn logs(&self, text: &str) -> Result<()> {
        let began = Instant::now();
        self.relay.line(text, SOON).await;
        in_time(began, MINUTE, || format!("{text:?} was logged late"))
    }

    /// How many lines of the log say so by now.
    pub fn said(&self, text: &str) -> usize {
        let lines = self.relay.lines();
        lines.iter().filter(|line| line.contains(text)).count()
    }

    /// The log says so once more than `before`, within a minute.
    pub async fn logs_again(&self, text: &str, before: usize) -> Result<()> {
        let began = Instant::now();
        eventually(&format!("another line with {text:?}"), SOON, async || {
            (self.said(text) > before).then_some(())
        })
        .await;
        in_time(began, MINUTE, || format!("{text:?} was logged late"))
    }

    /// One number of /metrics, now.
    pub async fn metric(&self, name: &str) -> f64 {
        eventually(&format!("the metric {name}"), SOON, async || {
            probe::metric(self.port, name).await
        })
        .await
    }

    /// This number of /metrics is such a one within a minute.
    pub async fn shows(&self, name: &str, such: impl Fn(f64) -> bool) -> Result<()> {
        let (began, seen) = (Instant::now(), std::cell::Cell::new(None));
        let there = eventually(&format!("the metric {name}"), SOON * 2, async || {
            seen.set(probe::metric(self.port, name).await);
            let there = seen.get().is_some_and(&such);
            (there || began.elapsed() > SOON).then_some(there)
        })
        .await;
        expect(there, || {
            format!("{name} was {:?} after {SOON:?}", seen.get())
        })?;
        in_time(began, MINUTE, || format!("{name} changed late"))
    }

    /// Everything that is there now was audited: an audit that began from here on has ended.
    pub async fn audited(&self) -> Result<()> {
        // The first that ends may have begun before.
        for _ in 0..2 {
            let now = "SELECT clock_timestamp()::text";
            let now: String = self.owner.query_one(now, &[]).await?.get(0);
            let since = format!("outbox.relay WHERE audited_at > '{now}'");
            // What nobody has written to is audited once a minute only. The server counts the writes of a session that ends.
            let write = "UPDATE outbox.lane SET low_water = low_water WHERE lane = 0";
            self.arena.owner().await?.batch_execute(write).await?;
            self.arena
                .until_count("an audit to end", &since, |n| n > 0)
                .await;
        }
        Ok(())
    }

    pub async fn until(&self, what: &str, of: &str, n: i64) {
        self.arena.until_count(what, of, |found| found == n).await;
    }

    /// Nothing is pending. Producers must stand still.
    pub async fn drained(&self) {
        drained(&self.owner).await;
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
        let env = self.arena.env().iter().cloned();
        self.arena.setup.outboxd(args, env).await
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
