//! What commands print, for people or as JSON.

use std::io::{self, Write};

use serde::Serialize;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Json {
    /// Prints JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Columns as wide as their widest cell; the last one as it comes. Control characters are escaped: a row must not
/// write to the operator's terminal.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| cell.escape_debug().to_string())
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
