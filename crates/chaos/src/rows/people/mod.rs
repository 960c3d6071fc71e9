//! What people and their tools do to the outbox, the servers and the process. Rows 58 to 67, 71 to 73.

mod connections;
mod destinations;
mod marking;
mod positions;
mod process;
mod settings;
mod tables;

use crate::row::Row;

pub const ROWS: &[&[Row]] = &[
    tables::ROWS,
    positions::ROWS,
    settings::ROWS,
    marking::ROWS,
    destinations::ROWS,
    connections::ROWS,
    process::ROWS,
];
