//! Checks that every test named in the documents exists.

use std::fs;

use programs::Result;

use crate::files::files;

const DOCUMENTS: &[&str] = &["README.md", "docs"];
const CODE: &[&str] = &["src", "tests", "crates", "examples"];

pub fn missing() -> Result<Vec<String>> {
    let mut functions = Vec::new();
    for file in files(CODE, "rs")? {
        let text = fs::read_to_string(file)?;
        let names = text
            .lines()
            .filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next());
        functions.extend(names.map(str::to_owned));
    }
    let mut missing = Vec::new();
    for document in files(DOCUMENTS, "md")? {
        let text = fs::read_to_string(&document)?;
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

/// A test's name is a sentence with underscores; an abbreviated one ends in `…`.
fn is_test(code: &str) -> bool {
    let sentence = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_…".contains(c);
    code.chars().all(sentence)
        && (code.ends_with("_…") || code.matches('_').count() >= 4)
        // Names of metrics, columns and server settings can be long as well.
        && !["outbox_", "inbox_", "pg_"].iter().any(|metric| code.starts_with(metric))
        && !["_timeout", "_seconds"].iter().any(|unit| code.ends_with(unit))
}
