//! The matrix as it is printed, and as JSON.

use std::path::Path;

use serde::Serialize;

use crate::{
    row::{Line, Result, Verdict},
    timeline::{Band, Section, Timeline},
};

/// Columns of a fault's text; what is longer goes on in the next line.
const FAULT: usize = 58;

pub fn header() {
    println!(
        "{:>3}  {:<FAULT$} {:>7} {:>9} {:>9} {:>5} {:>4} {:>4} {:>7} {:>8}  result",
        "row",
        "fault",
        "seconds",
        "committed",
        "delivered",
        "dupl",
        "dead",
        "lost",
        "reorder",
        "recovery"
    );
}

pub fn line(line: &Line) {
    let recovery = line.recovery_seconds.map(|s| format!("{s:.1} s"));
    let mut fault = wrapped(line.fault, FAULT).into_iter();
    println!(
        "{:>3}  {:<FAULT$} {:>7.1} {:>9} {:>9} {:>5} {:>4} {:>4} {:>7} {:>8}  {}",
        line.name(),
        fault.next().unwrap_or_default(),
        line.seconds,
        line.committed,
        line.delivered,
        line.duplicates,
        line.dead,
        line.lost,
        line.reordered,
        recovery.unwrap_or_default(),
        match line.result {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "SKIPPED",
        }
    );
    for more in fault {
        println!("     {more}");
    }
    for note in &line.notes {
        println!("     {}", note.replace('\n', "\n     "));
    }
}

/// At the spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The rows that failed, once more, and the closing line; `true` when none did.
pub fn summary(lines: &[Line]) -> bool {
    let failures = lines.iter().filter(|line| line.result == Verdict::Failed);
    for (n, failure) in failures.enumerate() {
        if n == 0 {
            println!("\nfailed:");
        }
        line(failure);
    }
    let of = |verdict| lines.iter().filter(|line| line.result == verdict).count();
    let (passed, failed, skipped) = (
        of(Verdict::Passed),
        of(Verdict::Failed),
        of(Verdict::Skipped),
    );
    println!("\nmatrix: {passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}

#[derive(Serialize)]
struct Document<'a> {
    rows: &'a [Line],
    sections: Vec<Section>,
    faults: Vec<Band>,
}

pub fn json(path: &Path, lines: &[Line], timeline: &Timeline) -> Result<()> {
    let document = Document {
        rows: lines,
        sections: timeline.sections(),
        faults: timeline.bands(),
    };
    std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    Ok(())
}
