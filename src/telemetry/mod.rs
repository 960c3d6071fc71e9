//! Logs, and the names of the metrics.

pub mod logs;
pub mod metrics;
