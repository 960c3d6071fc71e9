//! `outboxd where`: the state of a message, in one command, and never a wrong "unknown".

mod ask;
mod asking;
mod bounds;
mod search;
mod states;

pub use ask::hold_lane_of;
