//! Starts a process under test, watches its log lines, signals it, and awaits its end.

use std::{
    collections::VecDeque,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{Result, SOON, eventually};

/// Most lines that are kept; the oldest are dropped first.
const LINES: usize = 5000;

pub struct Daemon {
    child: Child,
    pid: u32,
    said: Transcript,
}

/// Lines that a process wrote to its standard error. They stay readable after the process has ended.
#[derive(Clone, Default)]
pub struct Transcript(Arc<Mutex<VecDeque<String>>>);

impl Transcript {
    pub fn lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

impl Daemon {
    /// Starts the process with only PATH and HOME of our environment.
    pub fn start(program: &Path, args: &[&str], env: &[(String, String)]) -> Result<Self> {
        // The process is killed when we end, however we end. The pid is the program's own.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .env_clear()
            .envs(
                ["PATH", "HOME"]
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .envs(env.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("it ended at once")?;
        let stderr = child.stderr.take().ok_or("no pipe")?;
        let said = Transcript::default();
        let into = said.clone();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                into.push(line);
            }
        });
        Ok(Self { child, pid, said })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn lines(&self) -> Vec<String> {
        self.said.lines()
    }

    pub fn transcript(&self) -> Transcript {
        self.said.clone()
    }

    /// Waits for a line that contains `text`; lines that arrived before count too.
    #[track_caller]
    pub fn line(&self, text: &str, within: Duration) -> impl Future<Output = String> {
        let (what, text) = (format!("a line with {text:?}"), text.to_owned());
        eventually(&what, within, async move || {
            self.lines().into_iter().find(|line| line.contains(&text))
        })
    }

    /// Panics if a line contains `text`.
    #[track_caller]
    pub fn never_said(&self, text: &str) {
        let lines = self.lines();
        let said = lines.iter().find(|line| line.contains(text));
        assert!(said.is_none(), "the process said: {said:?}");
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid.cast_signed()), signal)?)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(format!(
                "it still runs after {within:?}:\n{}",
                self.lines().join("\n")
            )
            .into()),
        }
    }
}

/// The end of a command.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Panics unless the command ended with this code and said all of this: a failure on standard error, a success on standard
    /// output.
    #[track_caller]
    pub fn ends(&self, code: i32, says: &[&str]) {
        let said = if code == 0 {
            &self.stdout
        } else {
            &self.stderr
        };
        let missing = says.iter().find(|text| !said.contains(**text));
        assert!(
            self.code == code && missing.is_none(),
            "exit code {}, and not {code}, or without {missing:?}: {}",
            self.code,
            self.said()
        );
    }
}

/// Runs a command to its end, with this environment and no other, in a folder without a configuration file.
pub async fn run(
    program: &Path,
    args: &[&str],
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Ran> {
    let output = Command::new(program)
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, output)
        .await
        .map_err(|_| format!("{} still runs after {SOON:?}", args.join(" ")))??;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

impl Drop for Daemon {
    /// If the test failed, prints the lines of the process.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines();
            eprintln!("--- process {} said:", self.pid);
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}
