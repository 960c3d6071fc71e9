//! `cargo xtask check`: the checks that take seconds. Runs all of them, then fails if one failed.

use programs::Result;

use crate::{circles, commits, layers, lengths, links, named_tests, run, shell::command};

/// Returns one text for each fault.
type Look = fn() -> Result<Vec<String>>;

/// The checks that need no compiler: name, check, and the cure for its faults.
const LOOKS: &[(&str, Look, &str)] = &[
    (
        "layers",
        layers::broken,
        "docs/internals/architecture.md says why: move the code, or hand the value in as an argument",
    ),
    (
        "circles",
        circles::found,
        "move what both use into a file of its own, which uses neither",
    ),
    ("lengths", lengths::wrong, "split a file by subject"),
    (
        "commits",
        commits::wrong,
        "CONTRIBUTING.md says what a message has; `git rebase -i` corrects it",
    ),
    (
        "tests",
        named_tests::missing,
        "correct the name, or the list of .ci/run",
    ),
    ("links", links::dead, "correct the link, or docs/SUMMARY.md"),
];

fn looked(name: &str, look: Look, cure: &str) -> Result<()> {
    let found = look()?;
    if found.is_empty() {
        return Ok(());
    }
    Err(format!("{name}: {cure}\n    {}", found.join("\n    ")).into())
}

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
    let looks = LOOKS.iter();
    let mut results: Vec<Result<()>> = looks
        .map(|(name, look, cure)| looked(name, *look, cure))
        .collect();
    results.extend([
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
    ]);
    // A service may ask for one feature alone. The workspace builds all of them together.
    results.extend(["", "consumer", "http"].map(|feature| {
        let of = ["clippy", "-p", "outbox", "--locked", "--features", feature];
        command("cargo", &[&of[..], &["--", "-D", "warnings"]].concat())
    }));
    let problems: Vec<String> = results
        .into_iter()
        .filter_map(|result| result.err().map(|e| e.to_string()))
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n").into())
    }
}
