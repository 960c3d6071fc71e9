//! How long a row waits, and waited.

use std::time::{Duration, Instant};

/// A wait that should take a moment; a slow machine gets this long.
pub const SOON: Duration = Duration::from_secs(180);

/// Seconds since `then`.
pub fn since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64()
}
