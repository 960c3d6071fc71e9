//! Limits the length of a source file, so that a reader can take it in at once.

use std::fs;

use programs::Result;

use crate::files;

/// Longest file in lines, including its unit tests.
const MOST: usize = 600;

const CODE: &[&str] = &["src", "crates", "tests", "xtask", "benches", "examples"];

/// Longer files, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[(
    "crates/core/src/route.rs",
    "one grammar of patterns; half of it are its tests",
)];

pub fn wrong() -> Result<Vec<String>> {
    let mut lengths = Vec::new();
    for file in files::files(CODE, "rs")? {
        let path = file.display().to_string();
        // Skip build outputs and downloads.
        if !path
            .split('/')
            .any(|part| matches!(part, "target" | "node_modules"))
        {
            lengths.push((path, fs::read_to_string(&file)?.lines().count()));
        }
    }
    Ok(judged(&lengths, EXCEPTIONS))
}

fn judged(lengths: &[(String, usize)], exceptions: &[(&str, &str)]) -> Vec<String> {
    let is_excepted = |path: &str| exceptions.iter().any(|(file, _)| *file == path);
    let is_long = |path: &str| lengths.iter().any(|(file, n)| file == path && *n > MOST);
    let long = lengths
        .iter()
        .filter(|(path, n)| *n > MOST && !is_excepted(path))
        .map(|(path, n)| format!("{path} has {n} lines, more than {MOST}"));
    let unneeded = exceptions
        .iter()
        .filter(|(path, _)| !is_long(path))
        .map(|(path, why)| {
            format!("{path} ({why}) no longer needs an exception; correct xtask/src/lengths.rs")
        });
    long.chain(unneeded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_fails_unless_it_is_excepted_and_an_exception_fails_unless_it_is_needed() {
        let lengths = |n: usize| [("src/a.rs".to_owned(), n)];
        assert_eq!(judged(&lengths(MOST), &[]), [""; 0]);
        assert_eq!(judged(&lengths(MOST + 1), &[]).len(), 1);
        let exception = [("src/a.rs", "a reason")];
        assert_eq!(judged(&lengths(MOST + 1), &exception), [""; 0]);
        assert_eq!(judged(&lengths(MOST), &exception).len(), 1);
        assert_eq!(judged(&[], &exception).len(), 1);
    }
}
