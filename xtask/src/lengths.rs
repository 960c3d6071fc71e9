//! Limits the length of a source file, so that a reader can take it in at once.

use std::fs;

use programs::Result;

use crate::files;

/// Longest file in lines, including its unit tests.
const MOST: usize = 600;

const CODE: &[&str] = &["src", "crates", "tests", "xtask", "benches", "examples"];

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
    Ok(judged(&lengths))
}

fn judged(lengths: &[(String, usize)]) -> Vec<String> {
    let long = lengths.iter().filter(|(_, n)| *n > MOST);
    long.map(|(path, n)| format!("{path} has {n} lines, more than {MOST}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_fails() {
        let lengths = |n: usize| [("src/a.rs".to_owned(), n)];
        assert_eq!(judged(&lengths(MOST)), [""; 0]);
        assert_eq!(judged(&lengths(MOST + 1)).len(), 1);
    }
}
