//! The matrix as it is printed, and as JSON.

use std::path::Path;

use serde::Serialize;

use crate::row::{Line, Name, Result, Verdict};

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

/// Rows that were skipped, and must not be; without a list any row may be.
fn missed<'a>(lines: &'a [Line], may_skip: Option<&[Name]>) -> Vec<&'a Line> {
    let Some(may_skip) = may_skip else {
        return Vec::new();
    };
    let skipped = lines.iter().filter(|line| line.result == Verdict::Skipped);
    skipped
        .filter(|line| !may_skip.contains(&line.name()))
        .collect()
}

/// The rows that failed, or were skipped and must not be, once more, and the closing line; `true` when there are none.
pub fn summary(lines: &[Line], may_skip: Option<&[Name]>) -> bool {
    let failures = lines.iter().filter(|line| line.result == Verdict::Failed);
    let missed = missed(lines, may_skip);
    for (what, lines) in [
        ("failed", failures.collect()),
        ("must not be skipped", missed.clone()),
    ] {
        for (n, said) in lines.into_iter().enumerate() {
            if n == 0 {
                println!("\n{what}:");
            }
            line(said);
        }
    }
    let of = |verdict| lines.iter().filter(|line| line.result == verdict).count();
    let (passed, failed, skipped) = (
        of(Verdict::Passed),
        of(Verdict::Failed),
        of(Verdict::Skipped),
    );
    println!("\nmatrix: {passed} passed, {failed} failed, {skipped} skipped");
    failed == 0 && missed.is_empty()
}

#[derive(Serialize)]
struct Document<'a> {
    rows: &'a [Line],
}

pub fn json(path: &Path, lines: &[Line]) -> Result<()> {
    let document = Document { rows: lines };
    std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Kind, Outcome};

    #[test]
    fn a_skipped_row_is_green_only_where_it_may_be_skipped() {
        let skipped = |number| {
            let ended = Ok(Outcome::skipped("not here"));
            Line::new(Name(Kind::Fault, number), "a fault", 0.0, ended)
        };
        let lines = [skipped(37), skipped(42)];
        let names = |may_skip: Option<&[Name]>| {
            let missed = missed(&lines, may_skip);
            missed.iter().map(|line| line.row).collect::<Vec<_>>()
        };
        assert_eq!(names(None), [0; 0]);
        assert_eq!(names(Some(&[])), [37, 42]);
        assert_eq!(names(Some(&[Name(Kind::Fault, 37)])), [42]);
        assert!(!summary(&lines, Some(&[])));
        assert!(summary(&lines, None));
    }
}
