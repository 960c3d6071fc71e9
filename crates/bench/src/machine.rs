//! Where the numbers come from.

use std::{process::Command, time::SystemTime};

use serde::Serialize;
use test_support::Result;

use crate::stage::Stage;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_gib: f64,
    pub system: String,
    pub postgresql: String,
    pub rabbitmq: String,
    pub rustc: String,
    /// Of this repository; with a mark when it had changes.
    pub commit: String,
    pub date: String,
}

impl Machine {
    pub async fn describe(stage: &Stage) -> Result<Self> {
        let client = stage.postgres.connect("postgres").await?;
        let version = client
            .query_one("SELECT current_setting('server_version')", &[])
            .await?;
        let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kilobytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(0.0);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu,
            memory_gib: kilobytes / f64::from(1 << 20),
            system: format!("Linux {}", kernel.trim()),
            postgresql: version.get(0),
            rabbitmq: stage.rabbitmq.ctl(&["version"]).await?.trim().to_owned(),
            rustc: said("rustc", &["--version"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        })
    }
}

/// Of a file of lines "name : value".
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn said(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
