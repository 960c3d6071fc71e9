//! The claim–publish–settle protocol and the inbox as a small state machine, checked in every state that it can reach.
//!
//! What decides in the relay decides here too: `outbox::low_water`, `outbox::share`, `relay::plan`, `outcome`,
//! `circuit`, `caution` and `settlement` are called, not copied. What is SQL, PostgreSQL, lapin, RabbitMQ or a handler is written down here, step by
//! step.
//!
//! Each safeguard can be taken away ([`Safeguard`]); the checker then has to find the invariant broken that the
//! safeguard is for. See docs/model.md.

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
