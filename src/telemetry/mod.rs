//! Logs, the names of the metrics, and what the relay tells of its work by both.

pub mod logs;
pub mod metrics;
pub mod relaying;
