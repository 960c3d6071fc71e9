//! The decisions of the relay, without I/O: functions of plain data, and the data.
//!
//! ```text
//! row -> Candidate -> Item, with its Envelope -> Outgoing -> (Outgoing, Answer) -> Item, with its Outcome -> Settlement
//! ```
//!
//! The crate depends on nothing that does I/O. A decision cannot wait for a server, and tests, the model (crates/model)
//! and the fuzz targets run the same decisions as the relay. Time and randomness are arguments.
//!
//! - a row and its route: [`message`], [`claim`], [`route`], [`header`], [`envelope`]
//! - the answer and its consequence: [`outcome`], [`reason`], [`backoff`], [`settlement`], [`low_water`]
//! - which messages, and in which order: [`plan`], [`wave`], [`culprits`], [`caution`], [`circuit`]
//! - which lanes, how many messages of each, and when: [`scheduling`]
//! - limits of AMQP, which services check as well: [`limits`]

#![forbid(unsafe_code)]

pub mod backoff;
pub mod caution;
pub mod circuit;
pub mod claim;
pub mod culprits;
pub mod deadline;
pub mod envelope;
pub mod header;
pub mod limits;
pub mod low_water;
pub mod message;
pub mod outcome;
pub mod plan;
pub mod reason;
pub mod route;
pub mod scheduling;
pub mod settlement;
pub mod wave;
