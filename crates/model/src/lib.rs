//! A model of the claim–publish–settle protocol and of the inbox as a small state machine, checked in every reachable
//! state.
//!
//! The model calls the relay's own decisions instead of copying them: `low_water`, `share`, `plan`, `outcome`,
//! `circuit`, `caution` and `settlement` of `outbox_core`. SQL, PostgreSQL, lapin, RabbitMQ and handlers are written
//! here, step by step.
//!
//! Each safeguard can be removed ([`Safeguard`]). The checker must then find that the safeguard's invariant is
//! violated. See docs/internals/model.md.

#![forbid(unsafe_code)]

mod audit;
mod breaker;
mod broker;
mod caution;
mod check;
mod circuit;
mod consumer;
mod holds;
mod invariant;
mod machine;
mod outbox;
mod publishing;
mod real;
mod relay;
mod safeguard;
pub mod scenario;
mod scout;
mod settle;
mod sighting;
mod state;
mod steps;

pub use check::{Checked, Violation, check};
pub use invariant::Invariant;
pub use machine::{Action, Machine};
pub use safeguard::Safeguard;
pub use scenario::Scenario;
pub use sighting::Sighting;
pub use state::State;
