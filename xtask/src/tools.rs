//! Third-party programs that a task needs, each in a fixed version, below target/.

use std::path::{Path, PathBuf};

use programs::Result;

use crate::shell::command;

/// The path of a program from a package of crates.io; installs the package unless this version is there.
pub fn installed(package: &str, version: &str, more: &[&str]) -> Result<PathBuf> {
    let root = Path::new("target/tools");
    let program = root.join("bin").join(package);
    // Read cargo's own record, because not every program reports its version in the same way.
    let record = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    let current = program.exists() && record.contains(&format!("\"{package} {version} "));
    if !current {
        let package = format!("{package}@{version}");
        let root = root.display().to_string();
        // The installed program's own work takes no time, so an unoptimised build, which takes half as long, is enough.
        let install = [
            "install", "--quiet", "--debug", "--locked", &package, "--root", &root,
        ];
        command("cargo", &[&install[..], more].concat())?;
    }
    Ok(program.canonicalize()?)
}
