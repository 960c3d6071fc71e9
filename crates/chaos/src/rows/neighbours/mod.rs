//! Hostile neighbours: whoever has some access, at his worst. The others' work goes on, memory and descriptors are bounded,
//! nothing is read, written or run that the role may not. H1 to H9.

mod bounds;
mod clients;
mod messages;
mod roles;

use crate::row::Row;

pub const ROWS: &[&[Row]] = &[roles::ROWS, messages::ROWS, clients::ROWS];
