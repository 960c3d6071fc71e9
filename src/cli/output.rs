//! The output of commands, for people or as JSON.

use std::io::{self, Write};

use serde::Serialize;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// A JSON array that is never in memory as a whole.
pub(super) struct Array {
    empty: bool,
}

impl Array {
    pub(super) fn begin() -> io::Result<Self> {
        write!(io::stdout().lock(), "[")?;
        Ok(Self { empty: true })
    }

    pub(super) fn push(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        write!(out, "{}", if self.empty { "\n" } else { ",\n" })?;
        self.empty = false;
        serde_json::to_writer_pretty(&mut out, value)?;
        out.flush()
    }

    pub(super) fn end(self) -> io::Result<()> {
        writeln!(
            io::stdout().lock(),
            "{}]",
            if self.empty { "" } else { "\n" }
        )
    }
}

pub(super) fn bytes(all: &[u8]) -> io::Result<()> {
    io::stdout().lock().write_all(all)
}

/// Writes what standard output still buffers. At the end of the process Rust ignores a failure of this write.
pub(super) fn flush() -> io::Result<()> {
    io::stdout().lock().flush()
}

/// Prints a line on standard error; data is on standard output.
pub(super) fn note(text: &str) {
    // Not eprintln!, which panics if standard error cannot be written.
    let _ = writeln!(io::stderr().lock(), "outboxd: {text}");
}

pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Most characters of a cell: a key or a type of a row may have millions, and Rust's padding allows at most 65,535.
const CELL: usize = 120;

/// Each column is as wide as its widest cell; the last column is not padded. Control characters are escaped, because a row
/// must not control the operator's terminal. Long cells are cut.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| cut(&cell.escape_debug().to_string()))
                .collect()
        })
        .collect();
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = io::stdout().lock();
    let mut write = |cells: Vec<&str>| -> io::Result<()> {
        let text: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", text.join("  ").trim_end())
    };
    write(head.to_vec())?;
    for row in &rows {
        write(row.iter().map(String::as_str).collect())?;
    }
    Ok(())
}

fn cut(cell: &str) -> String {
    match cell.char_indices().nth(CELL) {
        Some((at, _)) => format!("{}…", &cell[..at]),
        None => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_of_any_length_and_content_fits_its_column() {
        let cell = |text: &str| vec![text.to_owned(), "x".to_owned()];
        let long = "é\n".repeat(100_000);
        table(&["A", "B"], &[cell(&long), cell("")]).unwrap();
        assert_eq!(cut(&long).chars().count(), CELL + 1);
        assert_eq!(cut("short"), "short");
    }
}
