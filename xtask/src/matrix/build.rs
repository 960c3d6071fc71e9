//! The executables of the tests, from cargo's messages.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use programs::Result;
use serde::Deserialize;

use crate::shell::output;

pub struct Built {
    pub suite: Executable,
    /// The tests of crates/outbox.
    pub postgres: Executable,
    pub chaos: Executable,
    pub outboxd: Executable,
    /// The commit of the build.
    pub commit: String,
}

pub struct Executable {
    pub path: PathBuf,
    /// The folder in which cargo would run it.
    pub folder: PathBuf,
}

#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    manifest_path: PathBuf,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

pub fn run() -> Result<Built> {
    let describe = ["describe", "--always", "--dirty", "--exclude=*"];
    let commit = output(Command::new("git").args(describe))?
        .trim()
        .to_owned();
    // The whole workspace, as `cargo xtask test` builds it: other features would rebuild everything.
    let mut command = Command::new("cargo");
    command.args([
        "build",
        "--workspace",
        "--locked",
        "--features",
        "outboxd/failpoints",
    ]);
    command.args([
        "--bin", "outboxd", "--bin", "chaos", "--test", "suite", "--test", "postgres",
    ]);
    command.arg("--message-format=json-render-diagnostics");
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("the tests do not build".into());
    }
    let said = String::from_utf8(output.stdout)?;
    let mut artifacts: Vec<Artifact> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut take = |name: &str| -> Result<Executable> {
        let at = artifacts
            .iter()
            .position(|artifact| artifact.target.name == name && artifact.executable.is_some())
            .ok_or_else(|| format!("cargo built no {name}"))?;
        let artifact = artifacts.swap_remove(at);
        Ok(Executable {
            path: artifact.executable.ok_or("no executable")?,
            folder: artifact
                .manifest_path
                .parent()
                .ok_or("no folder")?
                .to_owned(),
        })
    };
    Ok(Built {
        suite: take("suite")?,
        postgres: take("postgres")?,
        chaos: take("chaos")?,
        outboxd: take("outboxd")?,
        commit,
    })
}
