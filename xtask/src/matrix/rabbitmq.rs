//! RabbitMQ: the machine's own version, and those of newer Debian suites, each with its Erlang and its libraries.
//!
//! The programs of a newer suite need the libraries of that suite. So all packages are unpacked into a folder, and a
//! node runs in a separate mount namespace, where the folder's `usr` covers the machine's `usr`. Everything else is the
//! machine's. A user namespace makes this possible without root.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use programs::Result;

use super::{
    report::Missing,
    versions::{VERSIONS, numbers, unpacked},
};
use crate::shell::output;

/// Suites that have their own RabbitMQ.
const SUITES: [&str; 2] = ["trixie", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Packages that RabbitMQ's scripts need, besides the dependencies of its package.
const BESIDES: [&str; 7] = [
    "dash",
    "coreutils",
    "libc-bin",
    "sed",
    "grep",
    "mawk",
    "util-linux",
];

pub struct RabbitMq {
    pub version: String,
    from: From,
}

enum From {
    /// The installation, with the folder `sbin`.
    Machine(PathBuf),
    Suite(Apt),
}

/// All available versions, the oldest first.
pub fn offered(missing: &mut Vec<Missing>) -> Result<Vec<RabbitMq>> {
    let home = programs::rabbitmq()?;
    let home = home.parent().ok_or("RabbitMQ's scripts lie in no folder")?;
    let mut offered = vec![RabbitMq {
        version: version_of(home)?,
        from: From::Machine(home.to_owned()),
    }];
    for suite in SUITES {
        match namespaces().and_then(|()| Apt::of(suite)) {
            Ok((apt, version)) => offered.push(RabbitMq {
                version,
                from: From::Suite(apt),
            }),
            Err(error) => missing.push(Missing {
                what: format!("RabbitMQ of Debian {suite}"),
                why: error.to_string(),
            }),
        }
    }
    offered.sort_by_key(|rabbitmq| numbers(&rabbitmq.version));
    // The machine itself may run one of these suites.
    offered.dedup_by(|a, b| a.version == b.version);
    Ok(offered)
}

/// Checks that a process may have its own /usr here.
fn namespaces() -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]);
    output(command.args(["mount", "--bind", "/usr", "/usr"]))
        .map(drop)
        .map_err(|e| format!("a user may have no mount namespace here: {e}").into())
}

impl RabbitMq {
    pub fn describe(&self) -> String {
        let from = match &self.from {
            From::Machine(_) => "the machine's".to_owned(),
            From::Suite(apt) => format!("Debian {}", apt.suite),
        };
        format!("RabbitMQ {} ({from})", self.version)
    }

    /// The installation with the folder `sbin`; downloads it if it is missing.
    pub fn home(&self) -> Result<PathBuf> {
        match &self.from {
            From::Machine(home) => Ok(home.clone()),
            From::Suite(apt) => unpacked(&format!("rabbitmq-{}", self.version), |folder| {
                apt.unpack(folder)?;
                wrap(folder)
            }),
        }
    }

    /// The major version of its Erlang.
    pub fn erlang(&self) -> Result<String> {
        let usr = match &self.from {
            From::Machine(_) => PathBuf::from("/usr"),
            From::Suite(_) => self.home()?.join("usr"),
        };
        let path = usr.join("lib/erlang/releases/start_erl.data");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(text.split_whitespace().nth(1).unwrap_or("?").to_owned())
    }
}

/// The version in the name of a folder such as rabbitmq_server-3.10.8.
fn version_of(home: &Path) -> Result<String> {
    let name = home
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let version = name
        .as_deref()
        .and_then(|name| name.strip_prefix("rabbitmq_server-"));
    let version = version.ok_or_else(|| format!("{}: which version is it?", home.display()))?;
    Ok(version.to_owned())
}

/// Writes scripts that start this version's programs in a namespace with this version's /usr.
fn wrap(folder: &Path) -> Result<()> {
    let servers = folder.join("usr/lib/rabbitmq/lib");
    let server = fs::read_dir(&servers)?
        .next()
        .ok_or("RabbitMQ is not in its package")??;
    let scripts = Path::new("/usr/lib/rabbitmq/lib")
        .join(server.file_name())
        .join("sbin");
    let sbin = folder.join("sbin");
    fs::create_dir(&sbin)?;
    for program in [
        scripts.join("rabbitmq-server"),
        scripts.join("rabbitmqctl"),
        PathBuf::from("/usr/bin/epmd"),
    ] {
        let script = sbin.join(program.file_name().unwrap_or_default());
        // Use exec at every step, so that the caller's signals reach the program itself.
        let text = format!(
            "#!/bin/sh\n\
             exec unshare --user --map-root-user --mount sh -c \\\n  \
             'mount --bind \"$1\" /usr && shift && exec \"$@\"' sh \"${{0%/*}}/../usr\" {} \"$@\"\n",
            program.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// apt with separate lists: it reads another suite, and changes nothing on this machine.
struct Apt {
    suite: &'static str,
    folder: PathBuf,
}

impl Apt {
    /// Also returns the suite's version of RabbitMQ.
    fn of(suite: &'static str) -> Result<(Self, String)> {
        let folder = std::path::absolute(VERSIONS)?.join(format!("apt-{suite}"));
        for needed in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(needed))?;
        }
        // The status file lists no installed packages, so a package brings all its libraries.
        fs::write(folder.join("status"), "")?;
        let sources = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
            mirror()?
        );
        fs::write(folder.join("debian.sources"), sources)?;
        let apt = Self { suite, folder };
        output(apt.command("apt-get").args(["-q", "update"]))?;
        let shown = output(apt.command("apt-cache").args([
            "show",
            "--no-all-versions",
            "rabbitmq-server",
        ]))?;
        let version = shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "));
        // 4.0.5-6+deb13u2 is the sixth Debian package of RabbitMQ 4.0.5.
        let version = version.and_then(|version| version.split('-').next());
        let version = version.ok_or("the suite has no RabbitMQ")?.to_owned();
        Ok((apt, version))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "debian.sources"),
        ] {
            command
                .arg("-o")
                .arg(format!("{name}={}", self.folder.join(value).display()));
        }
        for option in [
            "Dir::Etc::sourceparts=/dev/null",
            // apt's download account has no rights in this folder.
            "APT::Sandbox::User=root",
            "Acquire::AllowInsecureRepositories=false",
            "APT::Get::AllowUnauthenticated=false",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    fn unpack(&self, into: &Path) -> Result<()> {
        let words = ["-q", "-y", "--download-only", "--no-install-recommends"];
        output(
            self.command("apt-get")
                .args(words)
                .args(["install", "rabbitmq-server"])
                .args(BESIDES),
        )?;
        let archives = self.folder.join("cache/archives");
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(into))?;
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    let format = "$(LABEL)|$(REPO_URI)";
    let said = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let debian = said.lines().find_map(|line| line.strip_prefix("Debian|"));
    Ok(debian
        .ok_or("apt has no source of Debian here; run apt-get update")?
        .to_owned())
}
