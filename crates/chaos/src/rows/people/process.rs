//! What is done to the process: signals, its log. Row 73.

use std::{path::Path, process::Command};

use nix::sys::signal::Signal;
use test_support::{Daemon, eventually, probe};

use crate::{
    arena::{SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::{AUDITED, Scene},
};

pub const ROWS: &[Row] = rows! { setup;
    73, "SIGHUP, SIGUSR1, SIGPIPE and the like; logrotate; a full disk under the log" => signalled(setup);
};

/// That are not meant to end a process.
const SIGNALS: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGPIPE,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGXFSZ,
    Signal::SIGSTKFLT,
];

async fn signalled(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    for signal in SIGNALS {
        scene.relay.signal(signal)?;
        scene.flow.steady(30).await?;
    }
    real_time(scene.relay.pid())?;
    scene.flow.steady(30).await?;
    scene.logs("SIGHUP: configuration read again").await?;
    // It is still there to be stopped.
    scene.stop().await?;
    scene.relay = logging_to(&mut scene, "/dev/full", "debug")?;
    full(&scene).await?;
    scene.stop().await?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    scene.relay = logging_to(&mut scene, &log.display().to_string(), "info")?;
    rotated(&scene, &log).await?;
    scene.endured(AUDITED, 0).await?;
    scene.end().await
}

/// As `systemctl kill --signal=RTMIN+1` does; nix has no names for these signals.
fn real_time(pid: u32) -> Result<()> {
    let kill = format!("kill -s RTMIN+1 {pid}");
    let sent = Command::new("bash").args(["-c", &kill]).status()?;
    expect(sent.success(), || format!("{kill}: {sent}"))
}

/// A relay whose log goes there.
fn logging_to(scene: &mut Scene<'_>, file: &str, level: &str) -> Result<Daemon> {
    scene.arena.set("OUTBOXD__LOG__LEVEL", level);
    let script = format!("exec \"$0\" run 2>>{file}");
    let program = scene.arena.setup.outboxd.display().to_string();
    let (logs, args) = (&scene.arena.setup.logs, ["-c", &script, &program]);
    logs.start("relay", Path::new("sh"), &args, scene.arena.env())
}

/// Nothing is repeated, nothing waits, and it is counted.
async fn full(scene: &Scene<'_>) -> Result<()> {
    scene.flow.steady(200).await?;
    scene.relay.signal(Signal::SIGHUP)?;
    scene.flow.steady(200).await?;
    eventually("the lines that are missing", SOON, async || {
        let dropped = probe::metric(scene.port, "outbox_log_lines_dropped_total").await?;
        (dropped > 0.0).then_some(())
    })
    .await;
    Ok(())
}

/// `copytruncate` cuts the file under a process that goes on writing to it; the other way moves it away.
async fn rotated(scene: &Scene<'_>, log: &Path) -> Result<()> {
    let holds = async |file: &Path, text: &str| {
        eventually(text, SOON, async || {
            let log = std::fs::read_to_string(file).ok()?;
            log.contains(text).then_some(log)
        })
        .await
    };
    holds(log, "connected to both servers").await;
    scene.flow.steady(50).await?;
    std::fs::File::create(log)?;
    scene.relay.signal(Signal::SIGHUP)?;
    let text = holds(log, "SIGHUP: configuration read again").await;
    expect(text.starts_with('{'), || {
        "a hole at the log's beginning".to_owned()
    })?;
    scene.flow.steady(50).await?;
    let moved = log.with_extension("1");
    std::fs::rename(log, &moved)?;
    std::fs::File::create(&moved)?;
    scene.relay.signal(Signal::SIGHUP)?;
    holds(&moved, "SIGHUP: configuration read again").await;
    scene.flow.steady(50).await
}
