//! The results of every pair: target/matrix/report.json, and the document that is written from it.

use std::{fmt::Write, path::Path};

use programs::Result;
use serde::{Deserialize, Serialize};

use super::versions::numbers;

/// Folder of the results.
pub const OUT: &str = "target/matrix";
pub const DOCUMENT: &str = "docs/internals/compatibility.md";

#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    cells: Vec<Cell>,
    pub missing: Vec<Missing>,
}

/// A version that was not available, with the reason.
#[derive(Serialize, Deserialize)]
pub struct Missing {
    pub what: String,
    pub why: String,
}

#[derive(Serialize, Deserialize)]
pub struct Cell {
    pub postgres: String,
    pub rabbitmq: String,
    pub erlang: String,
    pub date: String,
    pub commit: String,
    pub seconds: u64,
    pub parts: Vec<Part>,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub passed: usize,
    /// Tests that failed among the others and passed alone.
    pub passed_alone: Vec<String>,
    pub failed: Vec<Said>,
    pub skipped: Vec<Said>,
}

#[derive(Serialize, Deserialize)]
pub struct Said {
    pub name: String,
    pub why: String,
}

impl Cell {
    pub fn passed(&self) -> bool {
        self.parts.iter().all(|part| part.failed.is_empty())
    }
}

impl Part {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Records the second run of a failed test, alone.
    pub fn again(&mut self, name: String, passed: bool, why: impl FnOnce() -> String) {
        if passed {
            self.passed_alone.push(name);
        } else {
            self.failed.push(Said { name, why: why() });
        }
    }

    pub fn print(&self) {
        println!("  {}: {}", self.name, self.sum());
        for name in &self.passed_alone {
            println!("    passed alone only: {name}");
        }
        for (word, list) in [("FAILED", &self.failed), ("skipped", &self.skipped)] {
            for Said { name, why } in list {
                println!("    {word}: {name}: {why}");
            }
        }
    }

    fn sum(&self) -> String {
        let mut sum = format!("{} passed", self.passed + self.passed_alone.len());
        for (count, word) in [
            (self.failed.len(), "failed"),
            (self.skipped.len(), "skipped"),
        ] {
            if count > 0 {
                let _ = write!(sum, ", {count} {word}");
            }
        }
        sum
    }
}

impl Report {
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("report.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let read = serde_json::from_slice(&std::fs::read(&path)?);
        Ok(read.map_err(|e| format!("{}: {e}; remove it", path.display()))?)
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(std::fs::write(folder.join("report.json"), text)?)
    }

    pub fn keep(&mut self, wanted: impl Fn(&Cell) -> bool) {
        self.cells.retain(wanted);
    }

    pub fn has(&self, postgres: &str, rabbitmq: &str) -> bool {
        let is = |cell: &Cell| cell.postgres == postgres && cell.rabbitmq == rabbitmq;
        self.cells.iter().any(is)
    }

    /// Replaces the result of an earlier run of the same pair.
    pub fn add(&mut self, cell: Cell) {
        self.cells
            .retain(|known| (&known.postgres, &known.rabbitmq) != (&cell.postgres, &cell.rabbitmq));
        self.cells.push(cell);
        self.cells
            .sort_by_key(|cell| (numbers(&cell.postgres), numbers(&cell.rabbitmq)));
    }

    /// `open`: pairs without a result.
    pub fn document(&self, open: &[String]) -> String {
        let mut text = String::from(HEAD);
        text.push_str("\n| PostgreSQL | RabbitMQ | Erlang |");
        let parts = self.cells.first().map_or(&[][..], |cell| &cell.parts);
        for part in parts {
            let _ = write!(text, " {} |", part.name);
        }
        text.push_str(" minutes | date | commit |\n|");
        text.push_str(&"---|".repeat(parts.len() + 6));
        text.push('\n');
        for cell in &self.cells {
            let _ = write!(
                text,
                "| {} | {} | {} |",
                cell.postgres, cell.rabbitmq, cell.erlang
            );
            for part in &cell.parts {
                let _ = write!(text, " {} |", part.sum());
            }
            let day = cell.date.split('T').next().unwrap_or_default();
            let minutes = cell.seconds.div_ceil(60);
            let _ = writeln!(text, " {minutes} | {day} | `{}` |", cell.commit);
        }
        self.section(&mut text, "Failed", |part| said(&part.failed));
        self.section(&mut text, "Skipped", |part| said(&part.skipped));
        self.section(&mut text, "Passed alone only", |part| {
            part.passed_alone
                .iter()
                .map(|name| format!("`{name}`"))
                .collect()
        });
        if !open.is_empty() {
            let _ = write!(text, "\n## Not run\n\n- {}\n", open.join("\n- "));
        }
        if !self.missing.is_empty() {
            text.push_str("\n## Could not be had\n\n");
            for Missing { what, why } in &self.missing {
                let _ = writeln!(text, "- {what}: {}", one_line(why));
            }
        }
        text
    }

    fn section(&self, text: &mut String, title: &str, of: impl Fn(&Part) -> Vec<String>) {
        let mut lines = Vec::new();
        for cell in &self.cells {
            for line in cell.parts.iter().flat_map(&of) {
                lines.push(format!("- {} × {}: {line}\n", cell.postgres, cell.rabbitmq));
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "\n## {title}\n\n{}", lines.concat());
        }
    }
}

fn said(list: &[Said]) -> Vec<String> {
    let line = |Said { name, why }: &Said| format!("`{name}`: {}", one_line(why));
    list.iter().map(line).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

const HEAD: &str = "\
<!-- Written by `cargo xtask matrix`. -->

# Compatibility

`cargo xtask matrix` runs the same tests, unchanged, against each pair of versions: `tests/suite`, the tests of
`crates/outbox` against a database, and the rows of the fault matrix in which a process or a server dies. It runs every
PostgreSQL with the oldest RabbitMQ, and every RabbitMQ with the newest PostgreSQL; `cargo xtask matrix --all-pairs`
runs all pairs.

If a test fails beside others, it runs again alone. The page names it if it passes then: beside the others it lacked
time or a resource.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(postgres: &str, passed: usize) -> Cell {
        let mut part = Part::new("tests");
        part.passed = passed;
        part.again("slow".to_owned(), true, String::new);
        part.again("broken".to_owned(), false, || "left\nright".to_owned());
        Cell {
            postgres: postgres.to_owned(),
            rabbitmq: "4.3.6".to_owned(),
            erlang: "29".to_owned(),
            date: "2026-01-02T03:04:05Z".to_owned(),
            commit: "abc".to_owned(),
            seconds: 61,
            parts: vec![part],
        }
    }

    #[test]
    fn a_pair_has_one_line_and_its_failures_have_reasons() {
        let mut report = Report::default();
        report.add(cell("18.4", 1));
        report.add(cell("14.23", 2));
        report.add(cell("18.4", 3));
        assert!(report.has("18.4", "4.3.6") && !report.has("17.1", "4.3.6"));
        let text = report.document(&["18.4 × 3.10.8".to_owned()]);
        assert!(text.contains(
            "| 14.23 | 4.3.6 | 29 | 3 passed, 1 failed | 2 | 2026-01-02 | `abc` |\n\
             | 18.4 | 4.3.6 | 29 | 4 passed, 1 failed |"
        ));
        assert!(text.contains("- 18.4 × 4.3.6: `broken`: left right"));
        assert!(text.contains("- 18.4 × 4.3.6: `slow`"));
        assert!(text.ends_with("## Not run\n\n- 18.4 × 3.10.8\n"));
    }
}
