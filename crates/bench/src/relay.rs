//! The released program on the stage: a relay that is measured, and commands.

use std::process::Stdio;

use test_support::{Daemon, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    outbox::Outbox,
    process,
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
    pub async fn command(&self, outbox: &Outbox, args: &[&str]) -> Result<Vec<u8>> {
        let command = tokio::process::Command::new(test_support::outboxd()?)
            .args(args)
            .envs(self.environment(outbox))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let name = args.join(" ");
        let output = tokio::time::timeout(SOON, command)
            .await
            .map_err(|_| format!("`outboxd {name}` did not end within {SOON:?}"))??;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("`outboxd {name}` ended with {}: {said}", output.status).into())
        }
    }
}

pub struct Relay {
    daemon: Daemon,
    port: u16,
}

impl Relay {
    /// User and system time so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.daemon.pid())
    }

    /// Most memory that it has held, in bytes.
    pub fn peak_memory(&self) -> Result<f64> {
        process::peak_memory(self.daemon.pid())
    }

    pub async fn scrape(&self) -> Result<Scrape> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        if text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200") {
            Ok(Scrape(text))
        } else {
            Err(format!("/metrics answered {:?}", text.lines().next()).into())
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
