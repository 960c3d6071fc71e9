//! Installs Debian's packages of missing servers. It starts no service, because tests run private instances.

use std::{path::Path, process::Command};

use crate::{
    error::Result,
    place::{pgbouncer, postgres, rabbitmq},
};

/// The programs that are needed besides the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    None,
    /// Only for the tests.
    Tests,
    /// Also for the fault matrix.
    Chaos,
    /// Also for the tests against other versions of the servers.
    Matrix,
    /// No server; only the programs that count instructions.
    Instructions,
}

pub fn install(tools: Tools) -> Result<()> {
    let chaos = tools == Tools::Chaos;
    let instructions = tools == Tools::Instructions;
    // Debian packages.
    let wanted = [
        ("postgresql", instructions || postgres().is_ok()),
        ("rabbitmq-server", instructions || rabbitmq().is_ok()),
        (
            "prometheus",
            instructions || tools == Tools::None || in_path("promtool"),
        ),
        // Needed to build jemalloc.
        ("make", in_path("make")),
        ("valgrind", !instructions || in_path("valgrind")),
        (
            "mmdebstrap",
            tools != Tools::Matrix || in_path("mmdebstrap"),
        ),
        ("pgbouncer", !chaos || pgbouncer().is_ok()),
        ("faketime", !chaos || in_path("faketime")),
    ];
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(_, there)| !there)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let by_hand =
        format!("not found here: {packages}. Install them (Debian: apt-get install {packages})");
    if !in_path("apt-get") {
        return Err(by_hand.into());
    }
    let root = nix::unistd::Uid::effective().is_root();
    if !root && !in_path("sudo") {
        return Err(by_hand.into());
    }
    eprintln!("installing {packages}");
    let apt = |args: &[&str]| -> Result<()> {
        // With RUNLEVEL=1, Debian's scripts start no service.
        let env = [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "RUNLEVEL=1",
            "apt-get",
            "-q",
            "-y",
        ];
        let mut words: Vec<&str> = if root { vec![] } else { vec!["sudo", "-n"] };
        words.extend(env.iter().chain(args));
        let output = Command::new(words[0]).args(&words[1..]).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{by_hand}\n{}", String::from_utf8_lossy(&output.stderr)).into())
    };
    let install = || apt(&[&["install", "--no-install-recommends"], &missing[..]].concat());
    // Try the existing package lists first, which saves the time of an update.
    install().or_else(|_| apt(&["update"]).and_then(|()| install()))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists())
}
