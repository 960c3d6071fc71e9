//! Scheduling: which lanes are read next, how many messages of each, and when the relay looks for work again. No I/O.
//!
//! | decision | made by | one for each |
//! |---|---|---|
//! | which lanes a worker takes now, or until when it waits; which lanes the scout polls | [`LaneSchedule`] | source |
//! | how long the scout pauses, when it may sleep, when it tidies marks | [`Polling`] | connection of the scout |
//! | how many messages a claim reads | [`BatchLimit`] | worker |
//! | how many messages of each lane a claim reads | [`shares`] | claim |
//!
//! Every constant of these decisions is a field of [`Tuning`], with its reason. `src/relay` does the I/O: it asks the
//! database, wakes tasks and sleeps. Time is an argument.

mod batch;
mod lanes;
mod polling;
mod share;
mod tuning;

pub use batch::BatchLimit;
pub use lanes::{LANES, LaneResult, LaneSchedule, Next, all_lanes};
pub use polling::{Pause, Polling, Tidied};
pub use share::shares;
pub use tuning::Tuning;
