//! Hostile neighbours: a role, a client or a server with some access attacks. The others' work goes on, memory and
//! descriptors are bounded.

mod bounds;
mod clients;
mod messages;
mod roles;

use crate::row::Row;

pub const ROWS: &[&[Row]] = &[roles::ROWS, messages::ROWS, clients::ROWS];
