//! A row of the fault matrix, or one of its bad inputs, and what came of it.

use std::{future::Future, pin::Pin};

use checker::Report;
use serde::Serialize;

use crate::arena::Setup;

pub type Result<T> = test_support::Result<T>;
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// Which half of the matrix a row stands in; each is numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Fault,
    Input,
}

/// One line of the matrix. Its number is the matrix's.
pub struct Row {
    pub number: u32,
    pub fault: &'static str,
    /// Minutes rather than seconds: only when it is asked for.
    pub long: bool,
    pub run: for<'a> fn(&'a Setup) -> Running<'a>,
}

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

/// The line that is printed, and its JSON.
#[derive(Debug, Serialize)]
pub struct Line {
    pub kind: Kind,
    pub row: u32,
    pub fault: &'static str,
    pub result: Verdict,
    pub seconds: f64,
    pub committed: usize,
    pub delivered: usize,
    pub duplicates: usize,
    pub dead: usize,
    pub lost: usize,
    pub reordered: usize,
    pub recovery_seconds: Option<f64>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

impl Line {
    pub fn new(
        kind: Kind,
        row: u32,
        fault: &'static str,
        seconds: f64,
        ended: Result<Outcome>,
    ) -> Self {
        let (result, outcome) = match ended {
            Ok(Outcome {
                skipped: Some(why), ..
            }) => {
                let outcome = Outcome {
                    notes: vec![why],
                    ..Outcome::default()
                };
                (Verdict::Skipped, outcome)
            }
            Ok(outcome) => (Verdict::Passed, outcome),
            Err(error) => {
                let outcome = Outcome {
                    notes: vec![error.to_string()],
                    ..Outcome::default()
                };
                (Verdict::Failed, outcome)
            }
        };
        Self {
            kind,
            row,
            fault,
            result,
            seconds,
            committed: outcome.report.committed,
            delivered: outcome.report.delivered,
            duplicates: outcome.report.duplicates,
            dead: outcome.report.dead,
            lost: outcome.report.lost.len(),
            reordered: outcome.report.reordered.len(),
            recovery_seconds: outcome.recovery_seconds,
            notes: outcome.notes,
        }
    }
}

/// `Err` with what was expected, unless it holds.
pub fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(what().into()) }
}
