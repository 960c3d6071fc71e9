//! Tables for people. On a terminal a table fits its width; elsewhere nothing is cut, because a program may read it.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
};

use terminal_size::terminal_size_of;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::output::on_a_terminal;

#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    name: &'static str,
    /// A terminal that is too narrow cuts it.
    is_text: bool,
}

/// A column of ids, numbers, times or words: half of one is of no use.
pub(super) const fn whole(name: &'static str) -> Column {
    Column {
        name,
        is_text: false,
    }
}

pub(super) const fn text(name: &'static str) -> Column {
    Column {
        name,
        is_text: true,
    }
}

/// A text column that would get less is not worth reading: then each row is a list of lines.
const LEAST: usize = 12;
/// Where a table does not fit a terminal, a key or a type of a row may have millions of characters.
const MOST: usize = 1_000;
/// A column is not padded beyond this: one long cell must not widen all rows.
const PADDED: usize = 120;
const GAP: &str = "  ";

/// Prints a table. Control characters are escaped, because a row must not control the operator's terminal.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> io::Result<()> {
    let text = arranged(columns, rows, width());
    io::stdout().lock().write_all(text.as_bytes())
}

/// The width of the terminal; `None` if standard output is none.
fn width() -> Option<usize> {
    let out = io::stdout();
    let (width, _) = out
        .is_terminal()
        .then(|| terminal_size_of(&out))
        .flatten()?;
    Some(width.0.into())
}

fn arranged(columns: &[Column], rows: &[Vec<String>], terminal: Option<usize>) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| on_a_terminal(cell, &[])).collect())
        .collect();
    let natural = |(i, column): (usize, &Column)| {
        let cells = rows.iter().filter_map(|row| Some(row.get(i)?.width()));
        cells.fold(column.name.width(), usize::max)
    };
    let mut widths: Vec<usize> = columns.iter().enumerate().map(natural).collect();
    match terminal {
        None => {
            for width in &mut widths {
                *width = (*width).min(PADDED);
            }
            in_columns(columns, &rows, &widths, false)
        }
        Some(terminal) => match fitted(columns, widths, terminal) {
            Some(widths) => in_columns(columns, &rows, &widths, true),
            None => in_lines(columns, &rows),
        },
    }
}

/// The widths of a table that fits: the widest text columns give way first.
fn fitted(columns: &[Column], widths: Vec<usize>, terminal: usize) -> Option<Vec<usize>> {
    let gaps = GAP.len() * columns.len().saturating_sub(1);
    let capped = |cap: usize| -> Vec<usize> {
        let each = columns.iter().zip(&widths);
        each.map(|(column, width)| match column.is_text {
            true => (*width).min(cap.max(column.name.len())),
            false => *width,
        })
        .collect()
    };
    let fits = |cap: usize| capped(cap).iter().sum::<usize>() + gaps <= terminal;
    // Nothing is wider than the terminal, so no cap above its width needs to be tried.
    let cap = (LEAST..=terminal).rev().find(|cap| fits(*cap))?;
    Some(capped(cap))
}

fn in_columns(columns: &[Column], rows: &[Vec<String>], widths: &[usize], cuts: bool) -> String {
    let mut out = String::new();
    let head: Vec<String> = columns.iter().map(|c| c.name.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| {
            let cell = if cuts {
                cut(cell, *width)
            } else {
                cell.clone()
            };
            // Not Rust's padding, which counts characters and allows at most 65,535.
            let padding = width.saturating_sub(cell.width());
            format!("{cell}{}", " ".repeat(padding))
        });
        let line = cells.collect::<Vec<_>>().join(GAP);
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// Each cell on a line of its own, which the terminal wraps.
fn in_lines(columns: &[Column], rows: &[Vec<String>]) -> String {
    let names = columns.iter().map(|column| column.name.width());
    let name_width = names.max().unwrap_or_default();
    let blocks = rows.iter().map(|row| {
        let lines = columns.iter().zip(row).map(|(column, cell)| {
            let line = format!("{:<name_width$}{GAP}{}", column.name, cut(cell, MOST));
            format!("{}\n", line.trim_end())
        });
        lines.collect::<String>()
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// At most this many columns of the terminal; `…` is the last if something is missing.
fn cut(cell: &str, width: usize) -> String {
    if cell.width() <= width {
        return cell.to_owned();
    }
    let mut kept = String::new();
    let mut left = width.saturating_sub(1);
    for c in cell.chars() {
        let Some(rest) = left.checked_sub(c.width().unwrap_or_default()) else {
            break;
        };
        left = rest;
        kept.push(c);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [whole("ID"), text("KEY"), text("LAST ERROR")];

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    fn widest(text: &str) -> usize {
        text.lines().map(UnicodeWidthStr::width).max().unwrap()
    }

    #[test]
    fn a_table_fits_its_terminal_and_ids_stay_whole() {
        let id = "0190163d-8694-739b-aea5-966c26f8ad91";
        let rows = [
            row([id, "order/1", &"日本 ".repeat(50)]),
            row([id, "k", ""]),
        ];
        for terminal in 36 + 2 + 7 + 2 + LEAST..200 {
            let text = arranged(&COLUMNS, &rows, Some(terminal));
            assert!(widest(&text) <= terminal, "{terminal}:\n{text}");
            assert_eq!(text.lines().count(), 3);
            assert_eq!(
                (text.matches(id).count(), text.matches("order/1").count()),
                (2, 1)
            );
        }
        assert!(!arranged(&COLUMNS, &rows, Some(400)).contains('…'));
    }

    #[test]
    fn on_a_narrow_terminal_each_row_is_a_list_of_lines() {
        let id = "0190163d-8694-739b-aea5-966c26f8ad91";
        let rows = [row([id, "order/1", "no"]), row([id, "", "x"])];
        let rows: Vec<_> = rows.into_iter().collect();
        let text = arranged(&COLUMNS, &rows, Some(50));
        assert_eq!(
            text,
            format!(
                "ID          {id}\nKEY         order/1\nLAST ERROR  no\n\nID          {id}\nKEY\nLAST ERROR  x\n"
            )
        );
    }

    #[test]
    fn elsewhere_nothing_is_cut_and_one_long_cell_does_not_widen_the_others() {
        let long = "é\n".repeat(100_000);
        let text = arranged(
            &COLUMNS,
            &[row(["1", &long, "x"]), row(["2", "k", "y"])],
            None,
        );
        assert!(text.contains(&long.replace('\n', "\\n")));
        let last = text.lines().last().unwrap();
        assert!(last.ends_with('y') && last.width() < 2 * PADDED, "{last}");
    }
}
