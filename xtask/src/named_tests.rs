//! Checks that every test, and every row of the fault matrix, that the documents name exists; and that CI runs each row that
//! the README names.

use std::fs;

use programs::Result;

use crate::files::files;

const DOCUMENTS: &[&str] = &["README.md", "docs"];
const CODE: &[&str] = &["src", "tests", "crates", "examples"];
/// It names the rows that prove a guarantee, and says that CI runs them.
const README: &str = "README.md";
const CI: &str = ".ci/run";

pub fn missing() -> Result<Vec<String>> {
    let mut functions = Vec::new();
    let mut rows = Vec::new();
    for file in files(CODE, "rs")? {
        let text = fs::read_to_string(&file)?;
        if file.starts_with("crates/chaos/src/rows") {
            let neighbour = file.starts_with("crates/chaos/src/rows/neighbours");
            let letter = if neighbour { "H" } else { "" };
            rows.extend(text.lines().filter_map(|line| {
                let (number, fault) = line.trim().split_once(", \"")?;
                let fault = fault.split_once("\" ")?.0;
                Some(format!("row {letter}{number} ({fault})"))
            }));
        }
        let names = text
            .lines()
            .filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next());
        functions.extend(names.map(str::to_owned));
    }
    let ci = fs::read_to_string(CI)?;
    let ci = rows_of_ci(&ci);
    let mut missing = Vec::new();
    for document in files(DOCUMENTS, "md")? {
        let text = fs::read_to_string(&document)?;
        for (at, _) in text.match_indices("row ") {
            let named = &text[at..];
            let Some(number) = row_named(named) else {
                continue;
            };
            if document.ends_with(README) && !ci.contains(&number) {
                missing.push(format!(
                    "{README} names row {number}, and {CI} does not run it"
                ));
            }
            if !rows.iter().any(|row| named.starts_with(row.as_str())) {
                let end = named.find(['|', '\n']).unwrap_or(named.len());
                missing.push(format!(
                    "{} names `{}`, which is no row of the fault matrix",
                    document.display(),
                    named[..end].trim()
                ));
            }
        }
        // Every second part between backticks is code.
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|code| is_test(code))
        {
            let known = |function: &String| match name.strip_suffix('…') {
                Some(beginning) => function.starts_with(beginning),
                None => function == name,
            };
            if !functions.iter().any(known) {
                missing.push(format!(
                    "{} names `{name}`, which is no test",
                    document.display()
                ));
            }
        }
    }
    Ok(missing)
}

/// The number in `row 7 (…)` or `row H2 (…)`; the words in brackets are the row's title.
fn row_named(text: &str) -> Option<&str> {
    let (number, _) = text["row ".len()..].split_once(" (")?;
    let digits = number.strip_prefix('H').unwrap_or(number);
    let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    is_number.then_some(number)
}

/// The numbers in the lines `rows=…` of the script; the later ones begin with `$rows`.
fn rows_of_ci(script: &str) -> Vec<&str> {
    let lists = script.lines().filter_map(|line| line.strip_prefix("rows="));
    lists.flat_map(|list| list.split(',')).collect()
}

/// A test's name is a sentence with underscores; an abbreviated one ends in `…`.
fn is_test(code: &str) -> bool {
    let sentence = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_…".contains(c);
    code.chars().all(sentence)
        && (code.ends_with("_…") || code.matches('_').count() >= 4)
        // Names of metrics, columns and server settings can be long as well.
        && !["outbox_", "inbox_", "pg_"].iter().any(|metric| code.starts_with(metric))
        && !["_timeout", "_seconds"].iter().any(|unit| code.ends_with(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_named_with_its_number_and_its_title() {
        assert_eq!(row_named("row 7 (SIGSTOP with a claim)"), Some("7"));
        assert_eq!(row_named("row H2 (any role with CONNECT)"), Some("H2"));
        assert_eq!(row_named("row of outbox.message (see there)"), None);
        assert_eq!(row_named("row 7"), None);
    }

    #[test]
    fn the_rows_of_ci_are_those_of_all_its_lists() {
        let script =
            "set -eu\nrows=1,20\nrows=$rows,21,H2\nstep cargo xtask chaos --rows $rows --inputs\n";
        let rows = rows_of_ci(script);
        for row in ["1", "20", "21", "H2"] {
            assert!(rows.contains(&row), "{row}");
        }
        assert!(!rows.contains(&"2"));
    }
}
