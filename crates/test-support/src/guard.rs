//! Starts processes that cannot outlive us.
//!
//! A server runs in a process group of its own, under a shell that reads from a pipe. We hold the other end. When we end, by
//! any signal, the pipe closes and the shell kills the group.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};

use crate::{Result, eventually};

/// Starts "$@" with its output in $LOG, prints its pid, and kills the group at the end of standard input. If standard input ends
/// without a line, we are gone, and the shell removes $FOLDER.
const KEEPER: &str = r#""$@" >>"$LOG" 2>&1 </dev/null & echo $!
if ! read -r word; then kill -9 $!; sleep 1; rm -rf "$FOLDER"; fi
kill -9 0"#;

/// The account of a server: our own, or an account without rights if we are root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub uid: u32,
    pub gid: u32,
    change: bool,
}

impl Account {
    /// If we are root: the account `name` if it exists, otherwise `nobody`.
    pub fn of(name: &str) -> Result<Self> {
        let me = Uid::effective();
        if !me.is_root() {
            return Ok(Self {
                uid: me.as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                change: false,
            });
        }
        let user = match User::from_name(name)? {
            Some(user) => Some(user),
            None => User::from_name("nobody")?,
        };
        let user = user.ok_or("no account without rights on this system")?;
        Ok(Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            change: true,
        })
    }

    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if self.change {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// A private directory of this account.
    pub fn directory(&self, parent: &Path, name: &str) -> Result<PathBuf> {
        let path = parent.join(name);
        fs::create_dir_all(&path)?;
        self.own(&path)?;
        Ok(path)
    }

    pub fn own(&self, path: &Path) -> Result<()> {
        if self.change {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    pub fn write(&self, path: &Path, text: &str, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        self.own(path)
    }
}

pub(crate) struct Guarded {
    keeper: Child,
    pid: Pid,
    log: PathBuf,
}

impl Guarded {
    /// Runs `command`, with its environment and account.
    pub fn start(
        account: Account,
        program: &Path,
        args: &[&str],
        env: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        let mut command = account.command("/bin/sh");
        command
            .args(["-c", KEEPER, "keeper"])
            .arg(program)
            .args(args)
            .env_clear()
            .env(
                "PATH",
                std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned()),
            )
            .env("LANG", "C.UTF-8")
            .env("LOG", log)
            .env("FOLDER", log.parent().unwrap_or(log))
            .envs(env.iter().map(|(k, v)| (*k, v)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        if !log.exists() {
            account.write(log, "", 0o600)?;
        }
        let mut keeper = command.spawn()?;
        let stdout = keeper.stdout.take().ok_or("no pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .map_err(|_| format!("{} did not start", program.display()))?;
        Ok(Self {
            keeper,
            pid: Pid::from_raw(pid),
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// Sends a signal to the process and all its children, because the process may be a script that waits for the server.
    pub fn signal_all(&self, signal: Signal) -> Vec<Pid> {
        let mut all = vec![self.pid];
        all.extend(
            descendants(self.pid())
                .into_iter()
                .map(|pid| Pid::from_raw(pid.cast_signed())),
        );
        for pid in &all {
            // A process that has just ended needs no signal.
            let _ = kill(*pid, signal);
        }
        all
    }

    pub fn is_running(&self) -> bool {
        is_running(self.pid())
    }

    pub async fn ended(&self, within: Duration) {
        eventually("the server to end", within, async || {
            (!self.is_running()).then_some(())
        })
        .await;
    }

    /// Sends SIGKILL to the process and all its children at the same moment, and waits until the last is gone: on a busy machine
    /// a child lives on for a while, and keeps memory or a port that its successor needs.
    pub async fn kill(&self, within: Duration) {
        let all = self.signal_all(Signal::SIGKILL);
        eventually("the server and its children to end", within, async || {
            let gone = |pid: &Pid| !is_running(pid.as_raw().unsigned_abs());
            all.iter().all(gone).then_some(())
        })
        .await;
    }

    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        use std::io::Write;
        self.signal_all(Signal::SIGKILL);
        if let Some(mut word) = self.keeper.stdin.take() {
            // The shell waits for no other process.
            let _ = word.write_all(b"done\n");
        }
        let _ = self.keeper.wait();
    }
}

pub(crate) fn is_running(pid: u32) -> bool {
    // The state follows the name in parentheses; a zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}

fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    for child in children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
    {
        found.push(child);
        found.extend(descendants(child));
    }
    found
}
