//! What the relays of a row said, for whoever looks into its failure.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use test_support::{Daemon, Transcript};

use crate::row::Result;

#[derive(Default)]
pub struct Logs(Mutex<Vec<Transcript>>);

impl Logs {
    pub fn keep(&self, relay: &Daemon) {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        relays.push(relay.transcript());
    }

    /// `relay-1.log` and so on, in the order of their start.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, relay) in relays.iter().enumerate() {
            let file = folder.join(format!("relay-{}.log", n + 1));
            std::fs::write(file, relay.lines().join("\n"))?;
        }
        Ok(())
    }
}
