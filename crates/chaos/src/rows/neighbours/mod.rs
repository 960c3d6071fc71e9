//! Hostile neighbours: whoever has some access, at his worst. The others' work goes on, memory and descriptors are bounded,
//! nothing is read, written or run that the role may not. H1 to H9.

mod clients;
mod messages;
mod roles;

use test_support::Daemon;

use crate::{
    probe,
    row::{Result, Row, expect},
};

pub const ROWS: &[&[Row]] = &[roles::ROWS, messages::ROWS, clients::ROWS];

/// What a relay takes in these rows at most: 64 MiB, four times the bodies of its batches, and room.
const MEMORY_KIB: u64 = 400 * 1024;
const DESCRIPTORS: usize = 128;

/// It has never taken more than it may; says how much.
fn bounded(relay: &Daemon) -> Result<String> {
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
