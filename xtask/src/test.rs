//! `cargo xtask test`: runs every test binary, the doc-tests and the checks of `deploy/`, even after failures. Then
//! lists each failure by name.

mod report;

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use programs::{Result, Tools, install};

use report::{Checks, Tests};

#[derive(clap::Args)]
pub struct Args {
    /// Runs only tests whose name contains this text, without the checks of deploy/
    filter: Option<String>,
}

/// Tests mostly wait for a server.
const THREADS: &str = "6";

/// A binary without output for this long hangs, and would block all others. Each test has its own deadlines of minutes,
/// and so has the build of a crate on a slow machine.
const SILENCE: Duration = Duration::from_secs(20 * 60);

pub fn run(args: &Args) -> Result<()> {
    install(Tools::Tests)?;
    let began = Instant::now();
    let filter = args.filter.as_deref();
    let options = ["--locked", "--features", "outboxd/failpoints"];
    let tests = tests(&options, &[], filter)?;
    // The checks of deploy/ run even if a test has failed.
    let checks = match filter {
        None => Some(checks()?),
        Some(_) => None,
    };
    let failures: Vec<String> = tests
        .failures()
        .into_iter()
        .chain(checks.iter().flat_map(Checks::failures))
        .collect();
    println!("\n{tests}");
    match &checks {
        Some(checks) => println!("{checks}"),
        None => println!("{:<38} not run: a filter was given", "deploy/check.sh"),
    }
    println!("{:<38} {} s", "in all", began.elapsed().as_secs());
    if failures.is_empty() {
        return Ok(());
    }
    Err(format!("{} failed\n  {}", failures.len(), failures.join("\n  ")).into())
}

/// Runs all test binaries of the workspace and its doc-tests, or those that the options name.
pub fn tests(options: &[&str], env: &[(&str, PathBuf)], filter: Option<&str>) -> Result<Tests> {
    let always = ["test", "--workspace", "--no-fail-fast", "--color", "never"];
    let mut cargo = Command::new("cargo");
    cargo.args(always).args(options);
    cargo.args(["--", "--test-threads", THREADS]).args(filter);
    cargo.envs(env.iter().map(|(name, value)| (name, value)));
    let mut tests = Tests::default();
    let status = watched(&mut cargo, SILENCE, |line| tests.read(line))?;
    tests.end(status.success(), &status.to_string(), filter);
    Ok(tests)
}

fn checks() -> Result<Checks> {
    let mut checks = Checks::default();
    let mut script = Command::new("sh");
    script.arg("deploy/check.sh");
    let status = watched(&mut script, SILENCE, |line| checks.read(line))?;
    checks.end(status.success(), &status.to_string());
    Ok(checks)
}

/// Runs a command to its end, with its output visible, and passes each line to `read`. After `silence` without output,
/// the processes that the command started are killed; the command itself continues with the next one.
fn watched(
    command: &mut Command,
    silence: Duration,
    mut read: impl FnMut(&str),
) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    eprintln!("$ {program} {}", words.join(" "));
    // One pipe for both outputs: only the order of the lines tells which binary a result belongs to.
    let (reader, writer) = std::io::pipe()?;
    let output = writer.try_clone()?;
    let child = command.stdout(output).stderr(writer).spawn();
    let mut child = child.map_err(|e| format!("{program}: {e}"))?;
    // The command would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (lines, said) = mpsc::channel();
    thread::spawn(move || {
        // A process under test may write any bytes, not only UTF-8.
        for line in BufReader::new(reader).split(b'\n').map_while(|l| l.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    // The end of the command ends the wait, not the end of the pipe: a process that a test left behind would hold the
    // pipe open.
    let (mut ended, mut heard) = (None, Instant::now());
    loop {
        match said.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                println!("{line}");
                read(&line);
                heard = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) if ended.is_none() => {
                ended = child.try_wait()?;
                if ended.is_none() && heard.elapsed() > silence {
                    eprintln!(
                        "{program} has written nothing for {silence:?}; its processes are killed"
                    );
                    kill_children(child.id())?;
                    heard = Instant::now();
                }
            }
            Err(_) => return Ok(child.wait()?),
        }
    }
}

fn kill_children(of: u32) -> Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // The parent is the second field after the name. The name is in parentheses and may contain any character.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, fields)| fields.split_whitespace().nth(1)?.parse::<u32>().ok());
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (Some(pid), true) = (pid, parent == Some(of)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// A package whose first binary fails and whose second binary aborts, with more tests after them.
    fn package(folder: &Path) {
        for (file, text) in [
            (
                "Cargo.toml",
                "[package]\nname = 'p'\nversion = '0.1.0'\nedition = '2024'\n[workspace]\n",
            ),
            (
                "src/lib.rs",
                "/// ```\n/// panic!();\n/// ```\npub fn documented() {}\n",
            ),
            (
                "tests/a_fails.rs",
                "#[test] fn early() { panic!(\"red\") }\n#[test] fn fine() {}\n",
            ),
            (
                "tests/b_aborts.rs",
                "#[test] fn gone() { std::process::abort() }\n",
            ),
            (
                "tests/c_is_late.rs",
                "mod inner { #[test] fn late() { panic!(\"red, too\") } }\n#[test] fn fine() {}\n\
                 #[test] #[ignore] fn slow() {}\n",
            ),
        ] {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_hanging_binary_is_killed_and_later_ones_run() {
        let script = "echo before; sleep 3600; echo behind it";
        let mut lines = Vec::new();
        let second = Duration::from_secs(1);
        let mut shell = Command::new("sh");
        watched(shell.args(["-c", script]), second, |line| {
            lines.push(line.to_owned());
        })
        .unwrap();
        lines.retain(|line| !line.contains("Killed"));
        assert_eq!(lines, ["before", "behind it"]);
    }

    #[test]
    fn a_binary_that_fails_or_aborts_hides_nothing_of_those_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        package(folder.path());
        let manifest = folder.path().join("Cargo.toml").display().to_string();
        let target = folder.path().join("target").display().to_string();
        let options = [
            "--manifest-path",
            &manifest,
            "--target-dir",
            &target,
            "--offline",
        ];
        let all = tests(&options, &[], None).unwrap();
        let failures = all.failures();
        let expected = [
            "a_fails (tests/a_fails.rs): early",
            "b_aborts (tests/b_aborts.rs): it ended before its last test",
            "c_is_late (tests/c_is_late.rs): inner::late",
            "doc-tests of p: src/lib.rs - documented (line 1)",
        ];
        assert_eq!(failures, expected);
        let all = all.to_string();
        let counts = "2 passed; 3 failed; 1 ignored; 1 ended before their last test";
        assert!(all.ends_with(counts), "{all}");

        let some = tests(&options, &[], Some("fine")).unwrap();
        assert_eq!(some.failures(), [""; 0]);
        let some = tests(&options, &[], Some("inner::")).unwrap();
        assert_eq!(
            some.failures(),
            ["c_is_late (tests/c_is_late.rs): inner::late"]
        );
        let none = tests(&options, &[], Some("nobody")).unwrap();
        assert_eq!(none.failures(), ["no test has \"nobody\" in its name"]);
    }
}
