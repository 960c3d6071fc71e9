//! The result of a row: its figures, or the expectation that was not met.

use std::time::{Duration, Instant};

use checker::Report;

use crate::pace;

pub type Result<T> = test_support::Result<T>;

/// How a row ended, when it could be run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub report: Report,
    /// From the end of the fault until everything that was due had arrived.
    pub recovery_seconds: Option<f64>,
    /// What else the row asserts, and saw.
    pub notes: Vec<String>,
    /// It cannot be run here, and why.
    pub skipped: Option<String>,
}

impl Outcome {
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            skipped: Some(why.into()),
            ..Self::default()
        }
    }
}

/// Something took longer, or more of a core, than it may, even on a machine as busy as this one is. Such a row is run
/// again, alone: beside other rows it may have had its bad luck. Nothing else is.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Late(String);

/// `Err` with what was expected, unless it holds.
pub fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(what().into()) }
}

/// Seconds since `then`.
pub fn since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64()
}

/// What began then has taken until now, and no longer than `bound`: see [`within`].
pub fn in_time(began: Instant, bound: Duration, what: impl FnOnce() -> String) -> Result<()> {
    within(began.elapsed(), bound, pace::slowness(began), what)
}

/// [`expect`], of a time that is allowed on a machine at rest. On one that is so many times slower it is as many times
/// longer, and the row says so.
pub fn within(
    took: Duration,
    bound: Duration,
    slowness: f64,
    what: impl FnOnce() -> String,
) -> Result<()> {
    if took <= bound {
        return Ok(());
    }
    if took <= bound.mul_f64(slowness) {
        pace::lengthened(took, bound, slowness);
        return Ok(());
    }
    let what = what();
    Err(Late(format!(
        "{what}: {took:.1?}, and {bound:?} are allowed at rest (this machine is {slowness:.1} times as slow)"
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bound_is_as_much_longer_as_the_machine_is_slower() {
        let second = Duration::from_secs(1);
        let late = |took: u32, slowness| {
            let ended = within(second * took, second, slowness, || "it came".to_owned());
            ended.is_err_and(|error| error.is::<Late>())
        };
        let (ended, notes) =
            pace::row(async { [late(1, 1.0), late(2, 1.0), late(2, 3.0), late(4, 3.0)] }).await;
        assert_eq!(ended, [false, true, false, true]);
        assert_eq!(
            notes,
            ["2.0s instead of 1s, on a machine 3.0 times as slow as at rest"]
        );
    }
}
