//! What the relay decides, without I/O: functions of plain data, and the data.
//!
//! ```text
//! row -> Candidate -> Item, with its Envelope -> Outgoing -> (Outgoing, Answer) -> Item, with its Outcome -> Settlement
//! ```
//!
//! The crate depends on nothing that does I/O, so no decision can wait for a server, and each of them can be run by a test,
//! by the model (crates/model) and by the fuzz targets as the relay runs it. Time and randomness are arguments.
//!
//! - a row and its way: [`message`], [`claim`], [`route`], [`header`], [`envelope`]
//! - the answer and its consequence: [`outcome`], [`reason`], [`backoff`], [`settlement`], [`low_water`]
//! - how much, and in which order: [`plan`], [`wave`], [`culprits`], [`share`], [`batch`], [`caution`], [`circuit`]
//! - AMQP's limits, which services observe as well: [`limits`]

#![forbid(unsafe_code)]

pub mod backoff;
pub mod batch;
pub mod caution;
pub mod circuit;
pub mod claim;
pub mod culprits;
pub mod envelope;
pub mod header;
pub mod limits;
pub mod low_water;
pub mod message;
pub mod outcome;
pub mod plan;
pub mod reason;
pub mod route;
pub mod settlement;
pub mod share;
pub mod wave;
