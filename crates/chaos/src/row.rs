//! A row of the fault matrix, or one of its hostile neighbours, and what came of it.

use std::{fmt, future::Future, path::Path, pin::Pin, str::FromStr};

use serde::Serialize;

pub use crate::outcome::{Outcome, Result, expect, in_time, within};
use crate::{arena::Setup, logs::Logs, outcome::Late};

pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// Which part of the matrix a row stands in; each is numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Fault,
    Neighbour,
}

/// A row as it is printed, and asked for: 24, H2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub Kind, pub u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.0 {
            Kind::Fault => "",
            Kind::Neighbour => "H",
        };
        f.pad(&format!("{letter}{}", self.1))
    }
}

impl FromStr for Name {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (kind, number) = match text.split_at_checked(1) {
            Some(("H" | "h", number)) => (Kind::Neighbour, number),
            _ => (Kind::Fault, text),
        };
        Ok(Self(kind, number.parse()?))
    }
}

/// One line of the matrix. Its number is the matrix's.
pub struct Row {
    pub number: u32,
    pub fault: &'static str,
    /// Minutes rather than seconds: only when it is asked for.
    pub long: bool,
    pub run: for<'a> fn(&'a Setup) -> Running<'a>,
}

/// The lines of a part of the matrix: `number, "what breaks" => what is run;`. One that takes minutes is `long`.
macro_rules! rows {
    ($setup:ident; $($number:literal, $fault:literal $($long:ident)? => $run:expr;)*) => {
        &[$($crate::row::Row {
            number: $number,
            fault: $fault,
            long: !stringify!($($long)?).is_empty(),
            run: |$setup| Box::pin($run),
        }),*]
    };
}
pub(crate) use rows;

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
    /// Its failure is that it was [`Late`].
    pub late: bool,
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
        Name(kind, row): Name,
        fault: &'static str,
        seconds: f64,
        ended: Result<Outcome>,
    ) -> Self {
        let late = matches!(&ended, Err(error) if error.is::<Late>());
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
                    notes: vec![told(&*error)],
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
            late,
        }
    }

    pub fn name(&self) -> Name {
        Name(self.kind, self.row)
    }

    /// A failure leaves what its processes said.
    pub fn with_logs(mut self, logs: &Logs, out: &Path) -> Result<Self> {
        if self.result == Verdict::Failed {
            let folder = out.join("logs").join(self.name().to_string());
            logs.write(&folder)?;
            self.notes.push(format!("logs: {}", folder.display()));
        }
        Ok(self)
    }
}

/// With its cause: PostgreSQL's driver says "db error" and no more.
fn told(error: &(dyn std::error::Error + Send + Sync)) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_that_was_late_is_late() {
        const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);
        let late = |ended| Line::new(Name(Kind::Fault, 1), "a fault", 0.0, ended).late;
        assert!(late(
            within(MINUTE * 2, MINUTE, 1.0, || "it came".to_owned()).map(|()| Outcome::default())
        ));
        assert!(!late(
            expect(false, || "one lost".to_owned()).map(|()| Outcome::default())
        ));
        assert!(!late(Ok(Outcome::default())));
        assert!(!late(Ok(Outcome::skipped("not here"))));
    }

    #[test]
    fn a_row_is_asked_for_as_it_is_printed() {
        for name in ["24", "H1"] {
            assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
        }
        assert_eq!("h9".parse(), Ok(Name(Kind::Neighbour, 9)));
        for wrong in ["", "H", "B7", "H-1"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }
}
