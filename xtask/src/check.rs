//! `cargo xtask check`: the checks that take seconds. Runs all of them, then fails if one failed.

use programs::Result;

use crate::{circles, commits, layers, lengths, links, named_tests, run, shell::command};

pub fn run() -> Result<()> {
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "outboxd/failpoints",
        "--locked",
        "--",
    ];
    let results = [
        layers::check(),
        circles::check(),
        lengths::check(),
        commits::check(),
        named_tests::check(),
        links::check(),
        command("cargo", &["fmt", "--all", "--check"]),
        command("cargo", &[&lints[..], &["-D", "warnings"]].concat()),
        // Without the failpoints, as in a release.
        command(
            "cargo",
            &[
                "clippy", "-p", "outboxd", "--locked", "--", "-D", "warnings",
            ],
        ),
        run::generated_documents_are_current(),
    ];
    let problems: Vec<String> = results
        .into_iter()
        .filter_map(|r| r.err().map(|e| e.to_string()))
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n").into())
    }
}
