//! Clients of the process, and what it reads. H7 and H8.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nix::{sys::stat::Mode as FileMode, unistd::mkfifo};
use test_support::{Proxy, crowd, eventually, probe};

use super::bounds::bounded;
use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    7, "clients of the admin port: idle, half-sent heads, never reading, 2,000 of them, no descriptors left" => admin_port(setup);
    8, "secret files that are FIFOs, endless, group-writable, at work" => secret_files(setup);
};

const AGAIN: Duration = Duration::from_secs(15);

/// More than the admin port takes, and more than the process may open.
const CLIENTS: usize = 2000;
/// Of files and sockets: little more than the relay needs.
const FEW: usize = 96;
/// Of them, for what the relay has to open meanwhile.
const LEFT: usize = 24;

/// Does it, and says how many descriptors a process had open at most meanwhile.
async fn most_open<T>(pid: u32, work: impl Future<Output = T>) -> Result<(T, usize)> {
    let mut work = std::pin::pin!(work);
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut most = 0;
    loop {
        tokio::select! {
            done = &mut work => return Ok((done, most.max(probe::descriptors(pid)?))),
            _ = looks.tick() => most = most.max(probe::descriptors(pid)?),
        }
    }
}

async fn admin_port(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let database = arena.database_proxy().await?;
    let mut scene = Scene::of(arena).await?;
    scene.stop().await?;
    let limit = format!("--nofile={FEW}:{FEW}");
    let program = setup.outboxd.display().to_string();
    let env = scene.arena.env();
    scene.relay = setup.logs.start(
        "relay",
        Path::new("prlimit"),
        &[&limit, &program, "run"],
        env,
    )?;
    scene.flow.steady(100).await?;
    for head in [
        "",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let pid = scene.relay.pid();
        let (clients, open) = most_open(pid, crowd(scene.port, head, CLIENTS)).await?;
        eventually("/livez", SOON, async || {
            let (status, _) = probe::get(scene.port, "/livez").await?;
            (status == 200).then_some(())
        })
        .await;
        expect(open + LEFT <= FEW, || {
            format!("{open} descriptors of {FEW} were open: too few are left for the work")
        })?;
        // What the relay has to open again, it can.
        database.sever(SOON).await;
        scene.endured(AGAIN, WINDOW).await?;
        scene.flow.note(format!(
            "{} clients held on, at most {open} descriptors",
            clients?.len()
        ));
    }
    scene.end().await
}

/// Files that must not be taken for a secret, and what is said of each. tests/suite/typed.rs has them at the start.
const TRAPS: [(&str, &str); 5] = [
    ("pipe", "it is a pipe, and must be a file"),
    (
        "huge",
        "it has more than 65536 bytes; is it the right file?",
    ),
    ("link", "it is a device, and must be a file"),
    ("group", "can be changed by its group (mode 660); chmod g-w"),
    ("open", "is open to everybody (mode 604); chmod o="),
];

/// Written there with this mode; returns its path.
fn file(folder: &Path, name: &str, text: &str, mode: u32) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(path.display().to_string())
}

async fn secret_files(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    mkfifo(&at("pipe"), FileMode::from_bits_truncate(0o600))?;
    let huge = std::fs::File::create(at("huge"))?;
    huge.set_len(3 << 30)?;
    huge.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::symlink("/dev/zero", at("link"))?;
    file(folder.path(), "group", "hunter2", 0o660)?;
    file(folder.path(), "open", "hunter2", 0o604)?;
    // It is read again at each connect.
    let password = file(folder.path(), "password", "relay", 0o600)?;
    let url = arena.database_url().replace("relay:relay@", "relay@");
    let (database, url) = Proxy::before(&url).await?;
    arena.set("DATABASE_URL", &url);
    arena.set("OUTBOXD__DATABASE__PASSWORD_FILE", &password);
    let mut scene = Scene::of(arena).await?;
    for (trap, says) in TRAPS {
        std::fs::rename(at("password"), at("kept"))?;
        std::fs::rename(at(trap), at("password"))?;
        database.sever(SOON).await;
        scene.says(503, "database.password_file").await?;
        scene.says(503, says).await?;
        std::fs::rename(at("password"), at(trap))?;
        std::fs::rename(at("kept"), at("password"))?;
        scene.endured(AGAIN, WINDOW).await?;
    }
    scene.flow.note(bounded(&scene.relay)?);
    scene.end().await
}
