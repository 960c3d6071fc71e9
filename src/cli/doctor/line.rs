//! The result of one check, and what all results come to.

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::checks::Check;
use crate::{broker::BrokerError, cli::CliError, outbox::OutboxError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ok,
    Warning,
    Fault {
        /// It stays until a person acts.
        needs_a_person: bool,
    },
    NotChecked,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault { .. } => "fault",
            Self::NotChecked => "not checked",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub check: &'static Check,
    pub state: State,
    pub finding: String,
    /// `None`: the finding says it, or the check's own cure fits.
    cure: Option<String>,
}

impl Line {
    fn new(check: &'static Check, state: State, finding: impl Into<String>) -> Self {
        Self {
            check,
            state,
            finding: finding.into(),
            cure: None,
        }
    }

    pub fn ok(check: &'static Check, finding: impl Into<String>) -> Self {
        Self::new(check, State::Ok, finding)
    }

    pub fn warning(check: &'static Check, finding: impl Into<String>) -> Self {
        Self::new(check, State::Warning, finding)
    }

    /// A fault that a person must cure.
    pub fn fault(check: &'static Check, finding: impl Into<String>) -> Self {
        let state = State::Fault {
            needs_a_person: true,
        };
        Self::new(check, state, finding)
    }

    /// A fault that may pass without a change of configuration, schema or grants.
    pub fn passing(check: &'static Check, finding: impl Into<String>) -> Self {
        let state = State::Fault {
            needs_a_person: false,
        };
        Self::new(check, state, finding)
    }

    pub fn not_checked(check: &'static Check, why: impl Into<String>) -> Self {
        Self::new(check, State::NotChecked, why)
    }

    pub fn with_cure(self, cure: impl Into<String>) -> Self {
        Self {
            cure: Some(cure.into()),
            ..self
        }
    }

    pub fn of_broker(check: &'static Check, error: &BrokerError) -> Self {
        match error.needs_a_person() {
            true => Self::fault(check, error.to_string()),
            false => Self::passing(check, error.to_string()),
        }
    }

    /// A question that PostgreSQL did not answer: a fault, or what follows from an earlier fault.
    pub fn of_postgres(check: &'static Check, error: &OutboxError, earlier: &[Self]) -> Self {
        let needs_a_person = error.needs_a_person() || error.is_read_only();
        let cause = earlier.iter().find(|line| match line.state {
            State::Fault { needs_a_person: n } => match needs_a_person {
                true => n,
                false => (error.passes() || error.ends_the_session()) && !n,
            },
            State::Ok | State::Warning | State::NotChecked => false,
        });
        match cause {
            Some(cause) => {
                Self::not_checked(check, format!("because of {}: {error}", cause.code()))
            }
            None if needs_a_person => Self::fault(check, error.to_string()),
            None => Self::passing(check, error.to_string()),
        }
    }

    pub fn code(&self) -> &'static str {
        self.check.code
    }

    pub fn is_fault(&self) -> bool {
        matches!(self.state, State::Fault { .. })
    }

    /// What to do about a warning or a fault.
    pub fn cure(&self) -> Option<&str> {
        match self.state {
            State::Warning | State::Fault { .. } => {
                Some(self.cure.as_deref().unwrap_or(self.check.cure))
            }
            State::Ok | State::NotChecked => self.cure.as_deref(),
        }
    }

    /// Finding and cure, as a log or `check --connect` prints them.
    pub fn text(&self) -> String {
        match &self.cure {
            Some(cure) if self.finding.contains('\n') => format!("{}\n{cure}", self.finding),
            Some(cure) => format!("{}. {cure}", self.finding),
            None => self.finding.clone(),
        }
    }
}

/// A line with the source that it is about.
#[derive(Debug, Clone)]
pub struct Reported {
    /// `None`: the configuration as a whole.
    pub source: Option<String>,
    pub line: Line,
}

impl Serialize for Reported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let line = &self.line;
        let mut object = serializer.serialize_struct("check", 7)?;
        object.serialize_field("code", line.code())?;
        object.serialize_field("source", &self.source)?;
        object.serialize_field("group", &line.check.group.to_string())?;
        object.serialize_field("check", line.check.asks)?;
        object.serialize_field("state", &line.state.word().replace(' ', "_"))?;
        object.serialize_field("finding", &line.finding)?;
        object.serialize_field("cure", &line.cure())?;
        object.end()
    }
}

/// Adds a line for each check of these that has none: it could not be made because of the first fault.
pub fn fill(lines: &mut Vec<Line>, checks: impl Iterator<Item = &'static Check>) {
    let cause = lines.iter().find(|line| line.is_fault());
    let why = match cause {
        Some(line) => format!("because of {}", line.code()),
        None => "the question was not asked".to_owned(),
    };
    for check in checks {
        if !lines.iter().any(|line| line.check == check) {
            lines.push(Line::not_checked(check, why.clone()));
        }
    }
}

/// The exit code of these faults, with this text: 78 if a person must act, 69 if all of them may pass.
pub fn ended<'l>(lines: impl Iterator<Item = &'l Line>, text: String) -> Result<(), CliError> {
    let (mut faults, mut lasting) = (false, false);
    for line in lines {
        if let State::Fault { needs_a_person } = line.state {
            faults = true;
            lasting |= needs_a_person;
        }
    }
    match (faults, lasting) {
        (false, _) => Ok(()),
        (true, true) => Err(CliError::Setup(text)),
        (true, false) => Err(CliError::Unavailable(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::checks::{ALL, CONNECTED, LOCKS, MARKS, PRIVILEGES, READABLE};

    fn code(lines: &[Line]) -> u8 {
        ended(lines.iter(), String::new()).map_or_else(|error| error.code(), |()| 0)
    }

    #[test]
    fn only_faults_fail_and_one_that_needs_a_person_decides() {
        let warning = Line::warning(&MARKS, "x");
        let skipped = Line::not_checked(&READABLE, "x");
        let (passing, lasting) = (Line::passing(&LOCKS, "x"), Line::fault(&PRIVILEGES, "x"));
        assert_eq!(code(&[warning.clone(), skipped]), 0);
        assert_eq!(code(&[warning, passing.clone()]), 69);
        assert_eq!(code(&[passing, lasting]), 78);
    }

    #[test]
    fn what_an_earlier_fault_explains_is_not_checked() {
        let refused = OutboxError::SchemaTooOld {
            found: None,
            known: 1,
        };
        let after = |line: Line| Line::of_postgres(&READABLE, &refused, &[line]).state;
        assert_eq!(after(Line::fault(&PRIVILEGES, "x")), State::NotChecked);
        let fault = State::Fault {
            needs_a_person: true,
        };
        assert_eq!(after(Line::warning(&PRIVILEGES, "x")), fault);
        assert_eq!(after(Line::passing(&LOCKS, "x")), fault);
    }

    #[test]
    fn every_check_gets_a_line_that_says_why_it_was_not_made() {
        let mut lines = vec![Line::passing(&CONNECTED, "no answer")];
        fill(&mut lines, ALL.iter().copied());
        assert_eq!(lines.len(), ALL.len());
        assert!(lines[1..].iter().all(|l| l.finding == "because of D201"));
    }
}
