//! The result of a row: its figures, or the expectation that was not met.

use std::time::Instant;

use checker::Report;

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

/// Something took longer, or more of a core, than it may. On a machine that other rows keep busy that proves nothing:
/// such a row is run again, alone. Nothing else is.
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

/// [`expect`], of a time.
pub fn in_time(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Late(what()).into())
    }
}
