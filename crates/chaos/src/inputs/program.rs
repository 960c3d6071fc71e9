//! One run of the program, to its end.

use std::{process::Stdio, time::Duration};

use crate::{
    arena::{SOON, Setup},
    row::Result,
};

/// A program that refuses does so at once; this is for a machine that is busy.
const END: Duration = SOON;

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// With this environment and no other, in a folder without a configuration file.
pub async fn outboxd(
    setup: &Setup,
    args: &[&str],
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Ran> {
    let run = tokio::process::Command::new(&setup.outboxd)
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(END, run)
        .await
        .map_err(|_| format!("outboxd {} still runs after {END:?}", args.join(" ")))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
