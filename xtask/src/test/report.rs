//! Finds the failures in the output of `cargo test` and `deploy/check.sh`, line by line.

use std::fmt;

/// The results of `cargo test`, by binary.
#[derive(Debug, Default)]
pub struct Tests {
    binaries: Vec<Binary>,
    /// A failure of cargo itself or of the filter.
    other: Option<String>,
}

#[derive(Debug, Default)]
struct Binary {
    name: String,
    passed: usize,
    failed: usize,
    ignored: usize,
    seconds: f64,
    /// Names of the failed tests.
    names: Vec<String>,
    /// Tests that took long and have not ended.
    slow: Vec<String>,
    /// The line is inside of a list of names; the list is complete when the result follows.
    listing: bool,
    ended: bool,
}

impl Binary {
    fn read(&mut self, line: &str) {
        if let Some(counts) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        {
            let of = |what: &str| {
                let counts = counts.1.split("; ");
                let mut found = counts.filter_map(|count| count.strip_suffix(what));
                found
                    .next()
                    .and_then(|n| n.trim().parse::<usize>().ok())
                    .unwrap_or(0)
            };
            let failed = of("failed");
            self.passed += of("passed");
            self.failed += failed;
            self.ignored += of("ignored");
            let (_, took) = counts.1.split_once("finished in ").unwrap_or_default();
            self.seconds += took.trim_end_matches('s').parse().unwrap_or(0.0);
            self.listing = false;
            self.ended = true;
        } else if line == "failures:" {
            // cargo prints two lists: first the output of the failed tests, then their names. Doc-tests may print
            // several results, and the names of earlier results stay.
            self.names.truncate(self.failed);
            self.listing = true;
        } else if let Some(test) = line.strip_prefix("test ") {
            if let Some((name, _)) = test.split_once(" has been running for over ") {
                self.slow.push(name.to_owned());
            } else if let Some((name, _)) = test.split_once(" ... ") {
                self.slow.retain(|slow| slow != name);
            }
        } else if line.starts_with("running ") {
            self.ended = false;
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.listing) {
            self.names.push(name.to_owned());
        }
    }

    /// Nothing ran, and nothing failed.
    fn is_empty(&self) -> bool {
        self.ended && self.passed + self.failed + self.ignored == 0
    }

    fn failures(&self) -> Vec<String> {
        let known = self.names.iter().take(self.failed);
        let mut failures: Vec<String> = known.map(|n| format!("{}: {n}", self.name)).collect();
        if failures.len() < self.failed {
            let more = self.failed - failures.len();
            failures.push(format!("{}: {more} more, see above", self.name));
        }
        if !self.ended {
            let within = match self.slow.join(", ") {
                none if none.is_empty() => String::new(),
                slow => format!(", within {slow}"),
            };
            failures.push(format!(
                "{}: it ended before its last test{within}",
                self.name
            ));
        }
        failures
    }
}

impl Tests {
    pub fn read(&mut self, line: &str) {
        if let Some(name) = binary(line) {
            self.binaries.push(Binary {
                name,
                ..Binary::default()
            });
        } else if let Some(binary) = self.binaries.last_mut() {
            binary.read(line);
        }
    }

    /// `said`: the exit status of cargo.
    pub fn end(&mut self, success: bool, said: &str, filter: Option<&str>) {
        if !success && self.failures().is_empty() {
            // The build failed, or cargo was stopped.
            self.other = Some(format!("cargo test: {said}; see above"));
        } else if let (Some(filter), 0) = (filter, self.sum(|b| b.passed + b.failed + b.ignored)) {
            self.other = Some(format!("no test has {filter:?} in its name"));
        }
    }

    pub fn failures(&self) -> Vec<String> {
        let binaries = self.binaries.iter().flat_map(Binary::failures);
        binaries.chain(self.other.clone()).collect()
    }

    fn sum(&self, of: impl Fn(&Binary) -> usize) -> usize {
        self.binaries.iter().map(of).sum()
    }

    pub fn counts(&self) -> String {
        let counts = format!(
            "{} passed; {} failed; {} ignored",
            self.sum(|b| b.passed),
            self.sum(|b| b.failed),
            self.sum(|b| b.ignored),
        );
        match self.sum(|b| usize::from(!b.ended)) {
            0 => counts,
            n => format!("{counts}; {n} ended before their last test"),
        }
    }
}

/// One line for each binary, and one for all.
impl fmt::Display for Tests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for binary in self.binaries.iter().filter(|b| !b.is_empty()) {
            writeln!(f, "{binary}")?;
        }
        write!(f, "{:<38} {}", "all tests", self.counts())
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<38} ", self.name)?;
        if !self.ended {
            return write!(f, "ended before its last test");
        }
        write!(
            f,
            "{} passed; {} failed; {} ignored; {:.1} s",
            self.passed, self.failed, self.ignored, self.seconds
        )
    }
}

/// The binary that cargo announces with this line: its name, and its source file.
fn binary(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(of) = line.strip_prefix("Doc-tests ") {
        return Some(format!("doc-tests of {of}"));
    }
    let line = line.strip_prefix("Running ")?;
    let line = line.strip_prefix("unittests ").unwrap_or(line);
    let (source, path) = line.strip_suffix(')')?.split_once(" (")?;
    let (name, _hash) = path.rsplit('/').next()?.rsplit_once('-')?;
    Some(format!("{name} ({source})"))
}

/// The results of `deploy/check.sh`.
#[derive(Debug, Default)]
pub struct Checks {
    ok: usize,
    skipped: usize,
    failed: Vec<String>,
}

impl Checks {
    pub fn read(&mut self, line: &str) {
        if line.starts_with("ok: ") {
            self.ok += 1;
        } else if line.starts_with("SKIPPED: ") {
            self.skipped += 1;
        } else if let Some(what) = line.strip_prefix("FAILED: ") {
            self.failed.push(what.to_owned());
        }
    }

    pub fn end(&mut self, success: bool, said: &str) {
        if !success && self.failed.is_empty() {
            self.failed.push(format!("{said}; see above"));
        }
    }

    pub fn failures(&self) -> Vec<String> {
        let failed = self.failed.iter();
        failed
            .map(|what| format!("deploy/check.sh: {what}"))
            .collect()
    }
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<38} {} passed; {} failed; {} skipped",
            "deploy/check.sh",
            self.ok,
            self.failed.len(),
            self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Tests {
        let mut tests = Tests::default();
        text.lines().for_each(|line| tests.read(line));
        tests
    }

    const SUITE: &str =
        "     Running tests/suite/main.rs (target/debug/deps/suite-0a1b2c3d4e5f6071)\n";

    #[test]
    fn counts_and_names_are_of_their_binary() {
        let text = format!(
            "   Compiling p v0.1.0 (/p)\n     Running unittests src/lib.rs (target/debug/deps/my-crate-8ff0)\n\n\
             running 2 tests\ntest a ... ok\ntest b ... ignored, too long\n\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\n\
             {SUITE}\nrunning 3 tests\ntest order::one ... FAILED\ntest order::two ... ok\ntest three ... FAILED\n\n\
             failures:\n\n---- order::one stdout ----\n    indented words\n\nthread panicked\n\n\n\
             failures:\n    order::one\n    three\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s\n\n\
             error: test failed, to rerun pass `-p p --test suite`\n"
        );
        let mut tests = read(&text);
        tests.end(false, "exit status: 101", None);
        let expected = [
            "suite (tests/suite/main.rs): order::one",
            "suite (tests/suite/main.rs): three",
        ];
        assert_eq!(tests.failures(), expected);
        let expected = "\
            my-crate (src/lib.rs)                  1 passed; 0 failed; 1 ignored; 0.0 s\n\
            suite (tests/suite/main.rs)            1 passed; 2 failed; 0 ignored; 1.0 s\n\
            all tests                              2 passed; 2 failed; 1 ignored";
        assert_eq!(tests.to_string(), expected);
    }

    /// Doc-tests of two kinds have one result each.
    #[test]
    fn a_binary_with_two_results_is_counted_whole() {
        let result = |name: &str, passed: usize| {
            format!(
                "running 2 tests\n\nfailures:\n\n---- {name} stdout ----\n    words\n\nfailures:\n    {name}\n\n\
                 test result: FAILED. {passed} passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s\n"
            )
        };
        let text = format!("   Doc-tests p\n\n{}{}", result("one", 4), result("two", 5));
        let tests = read(&text);
        assert_eq!(
            tests.failures(),
            ["doc-tests of p: one", "doc-tests of p: two"]
        );
        assert_eq!(tests.sum(|b| b.passed), 9);
    }

    /// A process under test may write into the middle of a line.
    #[test]
    fn a_failure_without_a_name_is_not_lost() {
        let text = format!(
            "{SUITE}running 2 tests\nfailures:\nnoise    one\n    two\n\n\
             test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s\n"
        );
        let expected = [
            "suite (tests/suite/main.rs): two",
            "suite (tests/suite/main.rs): 1 more, see above",
        ];
        assert_eq!(read(&text).failures(), expected);
    }

    #[test]
    fn a_killed_binary_names_its_running_tests() {
        let text = format!(
            "{SUITE}\nrunning 3 tests\ntest one has been running for over 60 seconds\n\
             test two has been running for over 60 seconds\ntest one ... ok\n"
        );
        let killed = "suite (tests/suite/main.rs): it ended before its last test, within two";
        assert_eq!(read(&text).failures(), [killed]);
    }

    #[test]
    fn a_binary_without_a_result_failed() {
        let text = format!(
            "{SUITE}\nrunning 2 tests\ntest one ... ok\n   Doc-tests p\n\nrunning 0 tests\n\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n"
        );
        let aborted = "suite (tests/suite/main.rs): it ended before its last test";
        assert_eq!(read(&text).failures(), [aborted]);
    }

    #[test]
    fn a_cargo_that_fails_before_all_tests_is_a_failure() {
        let mut tests = read("error[E0425]: cannot find value `x`\nerror: could not compile `p`\n");
        tests.end(false, "exit status: 101", Some("x"));
        assert_eq!(
            tests.failures(),
            ["cargo test: exit status: 101; see above"]
        );
    }

    #[test]
    fn each_failed_check_is_named_and_so_is_a_script_that_breaks_off() {
        let text = "ok: one\nFAILED: two (promtool)\n    its words\nSKIPPED: three: no tool\nFAILED: four\n2 failed, 1 skipped\n";
        let mut checks = Checks::default();
        text.lines().for_each(|line| checks.read(line));
        checks.end(false, "exit status: 1");
        let expected = ["deploy/check.sh: two (promtool)", "deploy/check.sh: four"];
        assert_eq!(checks.failures(), expected);
        assert_eq!(
            checks.to_string(),
            "deploy/check.sh                        1 passed; 2 failed; 1 skipped"
        );
        let mut broken = Checks::default();
        broken.end(false, "exit status: 127");
        assert_eq!(
            broken.failures(),
            ["deploy/check.sh: exit status: 127; see above"]
        );
    }
}
