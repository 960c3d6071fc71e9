//! What the processes of a row said, for whoever looks into its failure.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use test_support::{Daemon, Transcript};

use crate::row::Result;

#[derive(Default)]
pub struct Logs(Mutex<Vec<(&'static str, Transcript)>>);

impl Logs {
    /// Starts a relay or a consumer, and keeps what it says.
    pub fn start(
        &self,
        what: &'static str,
        program: &Path,
        args: &[&str],
        env: &[(String, String)],
    ) -> Result<Daemon> {
        let process = Daemon::start(program, args, env)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((what, process.transcript()));
        Ok(process)
    }

    /// `1-relay.log` and so on, in the order of their start.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, (what, process)) in kept.iter().enumerate() {
            let file = folder.join(format!("{}-{what}.log", n + 1));
            std::fs::write(file, process.lines().join("\n"))?;
        }
        Ok(())
    }
}
