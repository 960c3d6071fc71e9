//! The lines, for people.

use std::{fmt::Write as _, io};

use super::line::{Line, Reported, State};
use crate::cli::output::{self, on_a_terminal};

pub fn lines(all: &[Reported]) -> io::Result<()> {
    output::bytes(arranged(all).as_bytes())
}

/// The finding begins in this column, and each further line of it, and the cure.
const INDENT: usize = 21;

fn arranged(all: &[Reported]) -> String {
    let mut out = String::new();
    let mut above = None;
    for Reported { source, line } in all {
        let place = (source.as_deref(), line.check.group);
        if above != Some(place) {
            let gap = if above.is_none() { "" } else { "\n" };
            let _ = match source {
                Some(name) => writeln!(out, "{gap}{name}: {}", line.check.group),
                None => writeln!(out, "{gap}{}", line.check.group),
            };
            above = Some(place);
        }
        let (state, code) = (line.state.word(), line.code());
        let _ = writeln!(out, "  {state:<11}  {code}  {}", indented(&line.finding));
        if let Some(cure) = line.cure() {
            let _ = writeln!(out, "{:INDENT$}cure: {}", "", indented(cure));
        }
    }
    let _ = writeln!(out, "\n{}", counts(all));
    out
}

/// A text of a server cannot control the terminal, and begins no line that looks like ours.
fn indented(text: &str) -> String {
    let gap = format!("\n{:INDENT$}", "");
    on_a_terminal(text, &['\n']).replace('\n', &gap)
}

fn counts(all: &[Reported]) -> String {
    let count = |wanted: &str| {
        let of = all.iter().filter(|r| r.line.state.word() == wanted);
        of.count()
    };
    format!(
        "ok: {}, warnings: {}, faults: {}, not checked: {}",
        count(State::Ok.word()),
        count(State::Warning.word()),
        count("fault"),
        count(State::NotChecked.word())
    )
}

/// The codes of the faults, for the last line of a command that fails.
pub fn faults<'l>(lines: impl Iterator<Item = &'l Line>) -> String {
    let mut codes: Vec<&str> = lines.filter(|l| l.is_fault()).map(Line::code).collect();
    codes.sort_unstable();
    codes.dedup();
    format!("the doctor found faults: {}", codes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::checks::{CONFIGURATION, LOCKS, PRIVILEGES};

    #[test]
    fn each_line_has_its_code_and_a_cure_if_it_needs_one() {
        let at = |source: Option<&str>, line| Reported {
            source: source.map(str::to_owned),
            line,
        };
        let text = arranged(&[
            at(None, Line::ok(&CONFIGURATION, "file: none")),
            at(
                Some("shop"),
                Line::fault(&PRIVILEGES, "it lacks\nGRANT x;").with_cure("run it"),
            ),
            at(
                Some("shop"),
                Line::not_checked(&LOCKS, "because of D401\u{1b}"),
            ),
        ]);
        let expected = "configuration\n  ok           D101  file: none\n\n\
                        shop: roles and privileges\n  fault        D401  it lacks\n                     GRANT x;\n\
                        \x20                    cure: run it\n\nshop: locks, marks and vacuum\n\
                        \x20 not checked  D601  because of D401\\u{1b}\n\nok: 1, warnings: 0, faults: 1, not checked: 1\n";
        assert_eq!(text, expected);
    }
}
