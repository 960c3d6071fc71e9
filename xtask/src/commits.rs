//! Each commit message has a subject that says what the commit does, and a body that says why.

use std::{io, path::Path, process::Command};

use programs::Result;

/// The last unchecked commit. All later commits are checked, merges too.
const BASE: &str = "68328c5eb5dec9530b1b1802a6381942ddcdadf1";

/// Longest subject, in characters: `git log --oneline` and mail lists show this many.
const SUBJECT: usize = 72;

pub fn wrong() -> Result<Vec<String>> {
    match look(Path::new("."), BASE)? {
        Looked::Not(why) => {
            eprintln!("commits: cannot look, {why}");
            Ok(Vec::new())
        }
        Looked::Found(problems) => Ok(problems),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// The history cannot be checked, with the reason.
    Not(String),
    /// The problems found, one for each commit.
    Found(Vec<String>),
}

fn look(folder: &Path, base: &str) -> Result<Looked> {
    let top = match git(folder, &["rev-parse", "--show-toplevel"]) {
        Ok(Ok(top)) => top,
        Ok(Err(said)) => return Ok(Looked::Not(format!("no repository: {said}"))),
        Err(error) => return Ok(Looked::Not(format!("git: {error}"))),
    };
    // An archive that was unpacked inside of another repository.
    if Path::new(&top).canonicalize()? != folder.canonicalize()? {
        return Ok(Looked::Not(format!("the repository is that of {top}")));
    }
    if git(folder, &["rev-parse", "--is-shallow-repository"])?? == "true" {
        return Ok(Looked::Not("the clone is shallow".to_owned()));
    }
    // An import of only the files has another history.
    if git(folder, &["merge-base", "--is-ancestor", base, "HEAD"])?.is_err() {
        return Ok(Looked::Not(format!("{base} is not in this history")));
    }
    let range = format!("{base}..HEAD");
    let log = git(folder, &["log", "-z", "--format=%h%n%B", &range])??;
    let commits = log.split('\0').filter_map(|commit| commit.split_once('\n'));
    let problems = commits.filter_map(|(hash, message)| {
        let problem = problem(message)?;
        let subject = message.lines().next().unwrap_or_default();
        Some(format!("{hash} {problem}: {subject}"))
    });
    Ok(Looked::Found(problems.collect()))
}

/// Standard output of git, or its error text.
fn git(folder: &Path, args: &[&str]) -> io::Result<std::result::Result<String, String>> {
    let mut command = Command::new("git");
    // Inside of a git hook, these variables point to another repository.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    let output = command.arg("-C").arg(folder).args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    })
}

fn problem(message: &str) -> Option<String> {
    let mut lines = message.lines();
    let length = lines.next().unwrap_or_default().chars().count();
    if length > SUBJECT {
        return Some(format!(
            "has a subject of {length} characters; {SUBJECT} are allowed"
        ));
    }
    if lines.next().is_some_and(|second| !second.trim().is_empty()) {
        return Some("has no empty line below its subject".to_owned());
    }
    if lines.all(|line| line.trim().is_empty() || is_trailer(line)) {
        return Some("has no body".to_owned());
    }
    None
}

/// A trailer such as `Signed-off-by: Somebody` gives no reason, so it is not a body.
fn is_trailer(line: &str) -> bool {
    line.split_once(": ")
        .is_some_and(|(name, _)| name.contains('-') && !name.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_a_short_subject_and_a_body() {
        let long = format!("{}\n\nWhy.", "ä".repeat(SUBJECT + 1));
        for (message, expected) in [
            ("Subject\n\nProblem: this.\n", None),
            (
                long.as_str(),
                Some("has a subject of 73 characters; 72 are allowed"),
            ),
            ("Subject", Some("has no body")),
            ("Subject\n\n \n", Some("has no body")),
            ("Subject\n\nSigned-off-by: Somebody", Some("has no body")),
            (
                "Subject\nmore\n\nWhy.",
                Some("has no empty line below its subject"),
            ),
        ] {
            assert_eq!(problem(message).as_deref(), expected, "{message}");
        }
        let longest = format!("{}\n\nWhy.", "ä".repeat(SUBJECT));
        assert_eq!(problem(&longest), None);
    }

    fn done(folder: &Path, args: &[&str]) -> String {
        let who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"];
        git(folder, &[&who[..], args].concat()).unwrap().unwrap()
    }

    fn commit(folder: &Path, message: &str) -> String {
        let args = ["commit", "--quiet", "--allow-empty", "--no-gpg-sign", "-m"];
        done(folder, &[&args[..], &[message]].concat());
        done(folder, &["rev-parse", "HEAD"])
    }

    fn found(problems: &[&str]) -> Looked {
        Looked::Found(
            problems
                .iter()
                .map(|problem| (*problem).to_owned())
                .collect(),
        )
    }

    #[test]
    fn commits_since_the_base_are_checked_and_merges_too() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        done(folder, &["init", "--quiet", "--initial-branch=main"]);
        let base = commit(folder, "Before the base nobody looks");
        assert_eq!(look(folder, &base).unwrap(), found(&[]));
        commit(folder, "Good\n\nProblem: none.");
        assert_eq!(look(folder, &base).unwrap(), found(&[]));
        let bad = commit(folder, "Bad");
        let short = |hash: &str| done(folder, &["rev-parse", "--short", hash]);
        let problem = format!("{} has no body: Bad", short(&bad));
        assert_eq!(look(folder, &base).unwrap(), found(&[&problem]));

        done(folder, &["checkout", "--quiet", "-b", "side", &base]);
        commit(folder, "Also good\n\nProblem: none.");
        done(
            folder,
            &["merge", "--quiet", "--no-ff", "-m", "Merged", "main"],
        );
        let merged = format!("{} has no body: Merged", short("HEAD"));
        assert_eq!(look(folder, &base).unwrap(), found(&[&merged, &problem]));
        let other = "0".repeat(40);
        let without = look(folder, &other).unwrap();
        assert_eq!(
            without,
            Looked::Not(format!("{other} is not in this history"))
        );
    }

    #[test]
    fn an_incomplete_history_is_reported_as_unchecked() {
        let folder = tempfile::tempdir().unwrap();
        let archive = look(folder.path(), BASE).unwrap();
        assert!(
            matches!(&archive, Looked::Not(why) if why.starts_with("no repository")),
            "{archive:?}"
        );

        let origin = folder.path().join("origin");
        let inside = origin.join("unpacked");
        std::fs::create_dir_all(&inside).unwrap();
        done(&origin, &["init", "--quiet"]);
        commit(&origin, "One\n\nBody.");
        commit(&origin, "Two");
        let within = look(&inside, BASE).unwrap();
        assert!(
            matches!(&within, Looked::Not(why) if why.contains("origin")),
            "{within:?}"
        );

        let url = format!("file://{}", origin.display());
        done(
            folder.path(),
            &["clone", "--quiet", "--depth", "1", &url, "shallow"],
        );
        let shallow = look(&folder.path().join("shallow"), BASE).unwrap();
        assert_eq!(shallow, Looked::Not("the clone is shallow".to_owned()));
    }
}
