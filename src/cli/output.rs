//! The output of commands, for people or as JSON.

use std::io::{self, IsTerminal, Write};

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

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// As it is, but for characters by which a row could control the operator's terminal, or hide something there.
pub(super) fn on_a_terminal(text: &str, kept: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '"' | '\'' | '\\') || kept.contains(&c) {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_cannot_control_the_terminal_and_json_stays_readable() {
        let text = "{\"a\":\"it's \\ é\u{1b}[2J\u{202e}\"}\n";
        assert_eq!(
            on_a_terminal(text, &['\n']),
            "{\"a\":\"it's \\ é\\u{1b}[2J\\u{202e}\"}\n"
        );
        assert_eq!(on_a_terminal("a\nb", &[]), "a\\nb");
    }
}
