//! The released program on the stage: a relay that is measured, and commands.

use test_support::{Daemon, Result, probe};

use crate::{
    outbox::Outbox,
    stage::{SOON, Stage},
};

/// Environment variables of a relay.
pub type Settings = &'static [(&'static str, &'static str)];
pub const DEFAULTS: Settings = &[];

impl Stage {
    /// The environment of the released program for this outbox.
    pub fn environment(&self, outbox: &Outbox) -> Vec<(String, String)> {
        [
            ("DATABASE_URL", outbox.url.clone()),
            ("AMQP_URL", self.rabbitmq.url("/")),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
    }

    /// The released program, with default settings but for those given; it works when this returns.
    pub async fn relay(&self, outbox: &Outbox, settings: Settings) -> Result<Relay> {
        let port = test_support::free_port()?;
        let mut env = self.environment(outbox);
        env.push((
            "OUTBOXD__ADMIN__LISTEN".to_owned(),
            format!("127.0.0.1:{port}"),
        ));
        env.extend(
            settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        let program = test_support::outboxd()?;
        let daemon = Daemon::start(&program, &["run"], &env)?;
        daemon.line("connected to both servers", SOON).await;
        Ok(Relay { daemon, port })
    }

    /// What a command of the released program prints.
    pub async fn command(&self, outbox: &Outbox, args: &[&str]) -> Result<String> {
        let program = test_support::outboxd()?;
        let ran = test_support::run(&program, args, self.environment(outbox)).await?;
        if ran.code == 0 {
            return Ok(ran.stdout);
        }
        let name = args.join(" ");
        Err(format!("`outboxd {name}` ended with {}: {}", ran.code, ran.stderr).into())
    }
}

pub struct Relay {
    daemon: Daemon,
    port: u16,
}

impl Relay {
    /// User and system time so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        probe::cpu_seconds(self.daemon.pid())
    }

    /// Most memory that it has held, in bytes.
    pub fn peak_memory(&self) -> Result<f64> {
        Ok(probe::peak_kib(self.daemon.pid())? as f64 * 1024.0)
    }

    pub async fn scrape(&self) -> Result<Scrape> {
        match probe::get(self.port, "/metrics").await {
            Some((200, text)) => Ok(Scrape(text)),
            other => Err(format!("/metrics answered {other:?}").into()),
        }
    }

    /// As an operator ends it: what is published is settled.
    pub async fn stop(mut self) -> Result<()> {
        self.daemon.terminate()?;
        let status = self.daemon.ended(SOON).await?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the relay ended with {status}").into())
        }
    }
}

/// What a relay answered on /metrics.
pub struct Scrape(String);

impl Scrape {
    /// 0 for what was not measured yet.
    pub fn value(&self, name: &str) -> f64 {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        self.0.lines().find_map(value).unwrap_or(0.0)
    }

    pub fn published(&self) -> f64 {
        self.value("outbox_published_total")
    }

    /// Mean of a histogram since the relay's start.
    pub fn mean(&self, histogram: &str) -> f64 {
        self.value(&format!("{histogram}_sum")) / self.value(&format!("{histogram}_count")).max(1.0)
    }
}
