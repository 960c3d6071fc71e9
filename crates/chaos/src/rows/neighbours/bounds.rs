//! What a relay may take while its neighbours are at their worst.

use test_support::{Daemon, probe};

use crate::row::{Result, expect};

/// What a relay takes in these rows at most: 64 MiB, four times the bodies of its batches, and room.
const MEMORY_KIB: u64 = 400 * 1024;
const DESCRIPTORS: usize = 128;

/// It has never taken more than it may; says how much.
pub fn bounded(relay: &Daemon) -> Result<String> {
    let (memory, files) = (
        probe::peak_kib(relay.pid())?,
        probe::descriptors(relay.pid())?,
    );
    expect(memory < MEMORY_KIB && files < DESCRIPTORS, || {
        format!("the relay took {memory} KiB, and has {files} descriptors")
    })?;
    Ok(format!(
        "at most {} MiB, {files} descriptors",
        memory / 1024
    ))
}
