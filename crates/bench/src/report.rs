//! What a workload found, and how it compares with its target.

use std::fmt;

use serde::Serialize;

use crate::statistics::median;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    PerSecond,
    TransactionsPerSecond,
    Microseconds,
    Milliseconds,
    Bytes,
    Mebibytes,
    Percent,
    /// Statements, queries: a number of things.
    Number,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Value {
    pub value: f64,
    pub unit: Unit,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        match self.unit {
            Unit::PerSecond => write!(f, "{value:.0}/s"),
            Unit::TransactionsPerSecond => write!(f, "{value:.0} commits/s"),
            Unit::Microseconds => write!(f, "{value:.1} µs"),
            Unit::Milliseconds => write!(f, "{value:.1} ms"),
            Unit::Bytes => write!(f, "{value:.0} B"),
            Unit::Mebibytes => write!(f, "{:.0} MiB", value / f64::from(1 << 20)),
            Unit::Percent => write!(f, "{value:.2} %"),
            Unit::Number => write!(f, "{value:.4}"),
        }
    }
}

/// What the relay's number must be.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Target {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtMost(f64),
    /// Above the baseline.
    MoreAtMost(f64),
    /// To be known, not to be met.
    None,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    pub workload: String,
    pub baseline: Option<Value>,
    pub relay: Value,
    pub ratio: Option<f64>,
    pub target: Target,
    /// What is wanted next, once the target is met.
    pub then: Option<f64>,
    pub met: Option<bool>,
    pub notes: Vec<String>,
}

impl Measure {
    pub fn new(
        workload: impl Into<String>,
        unit: Unit,
        baseline: Option<f64>,
        relay: f64,
        target: Target,
    ) -> Self {
        let ratio = baseline.map(|baseline| relay / baseline);
        let met = match target {
            Target::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Target::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Target::AtMost(most) => Some(relay <= most),
            Target::MoreAtMost(more) => baseline.map(|baseline| relay - baseline <= more),
            Target::None => None,
        };
        Self {
            workload: workload.into(),
            baseline: baseline.map(|value| Value { value, unit }),
            relay: Value { value: relay, unit },
            ratio,
            target,
            then: None,
            met,
            notes: Vec::new(),
        }
    }

    /// The medians of runs that took turns.
    pub fn of_runs(
        workload: impl Into<String>,
        unit: Unit,
        baseline: &[f64],
        relay: &[f64],
        target: Target,
    ) -> Self {
        let mut ratios: Vec<f64> = relay.iter().zip(baseline).map(|(r, b)| r / b).collect();
        ratios.sort_by(f64::total_cmp);
        let measure = Self::new(
            workload,
            unit,
            Some(median(baseline)),
            median(relay),
            target,
        );
        match (ratios.first(), ratios.last()) {
            (Some(least), Some(most)) => measure.note(format!(
                "ratios of neighbouring runs: {least:.2} to {most:.2}"
            )),
            _ => measure,
        }
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The ratio that is wanted next.
    pub fn then(mut self, ratio: f64) -> Self {
        self.then = Some(ratio);
        self
    }

    fn wanted(&self) -> String {
        let then = self.then.map_or(String::new(), |r| format!(", then {r}"));
        let with_unit = |value| {
            let unit = self.relay.unit;
            Value { value, unit }
        };
        match self.target {
            Target::RatioAtLeast(least) => format!("≥ {least}{then}"),
            Target::RatioAtMost(most) => format!("≤ {most} ×{then}"),
            Target::AtMost(most) => format!("≤ {}", with_unit(most)),
            Target::MoreAtMost(more) => format!("≤ + {}", with_unit(more)),
            Target::None => String::new(),
        }
    }

    fn verdict(&self) -> String {
        let next = |then: f64| self.ratio.is_some_and(|ratio| ratio >= then);
        match (self.met, self.then) {
            (Some(true), Some(then)) if next(then) => "yes, both".to_owned(),
            (Some(true), Some(_)) => "yes, the first".to_owned(),
            (Some(true), None) => "yes".to_owned(),
            (Some(false), _) => "**no**".to_owned(),
            (None, _) => String::new(),
        }
    }

    pub fn row(&self) -> String {
        let baseline = self.baseline.map_or(String::new(), |v| v.to_string());
        let ratio = self.ratio.map_or(String::new(), |r| format!("{r:.2}"));
        format!(
            "| {} | {baseline} | {} | {ratio} | {} | {} |",
            self.workload,
            self.relay,
            self.wanted(),
            self.verdict()
        )
    }
}

pub const HEAD: &str = "| workload | ceiling or baseline | measured | ratio | target | met? |\n|---|---|---|---|---|---|";

/// The notes below a table.
pub fn notes(measures: &[Measure]) -> String {
    let mut text = String::new();
    for measure in measures {
        for note in &measure.notes {
            text.push_str(&format!("- {}: {note}\n", measure.workload));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, baseline: Option<f64>, relay: f64, target: Target) -> String {
        Measure::new("w", unit, baseline, relay, target).row()
    }

    #[test]
    fn a_row_says_whether_its_target_is_met() {
        let least = Target::RatioAtLeast(0.85);
        assert_eq!(
            row(Unit::PerSecond, Some(100.0), 90.0, least),
            "| w | 100/s | 90/s | 0.90 | ≥ 0.85 | yes |"
        );
        assert!(row(Unit::PerSecond, Some(100.0), 80.0, least).ends_with("| **no** |"));
        let most = Target::MoreAtMost(5.0);
        assert_eq!(
            row(Unit::Milliseconds, Some(1.0), 6.5, most),
            "| w | 1.0 ms | 6.5 ms | 6.50 | ≤ + 5.0 ms | **no** |"
        );
        assert_eq!(
            row(Unit::Percent, None, 0.5, Target::AtMost(1.0)),
            "| w |  | 0.50 % |  | ≤ 1.00 % | yes |"
        );
        assert_eq!(
            row(Unit::PerSecond, Some(1.0), 1.0, Target::None),
            "| w | 1/s | 1/s | 1.00 |  |  |"
        );
    }

    #[test]
    fn a_number_that_could_not_be_measured_meets_nothing() {
        let least = Target::RatioAtLeast(0.85);
        let measure = Measure::new("w", Unit::PerSecond, Some(1.0), f64::NAN, least);
        assert_eq!(measure.met, Some(false));
    }

    #[test]
    fn the_second_target_counts_once_the_first_is_met() {
        let measure = |relay| {
            let least = Target::RatioAtLeast(0.85);
            Measure::new("w", Unit::PerSecond, Some(1.0), relay, least).then(0.93)
        };
        assert!(
            measure(0.9)
                .row()
                .ends_with("| ≥ 0.85, then 0.93 | yes, the first |")
        );
        assert!(measure(0.95).row().ends_with("| yes, both |"));
        assert!(measure(0.8).row().ends_with("| **no** |"));
    }
}
