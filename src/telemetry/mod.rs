//! Logs, the names of the metrics, and the reports of a worker to both.

pub mod logs;
pub mod metrics;
pub mod panics;
pub mod relaying;
