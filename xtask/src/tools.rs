//! Programs of other people that a task needs, each in one version, below target/.

use std::path::{Path, PathBuf};

use programs::Result;

use crate::shell::command;

/// The program of a package of crates.io, which is installed unless it is there in this version.
pub fn installed(package: &str, version: &str, more: &[&str]) -> Result<PathBuf> {
    let root = Path::new("target/tools");
    let program = root.join("bin").join(package);
    // Cargo's own record: not every program says its version when it is asked alike.
    let record = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    let current = program.exists() && record.contains(&format!("\"{package} {version} "));
    if !current {
        let package = format!("{package}@{version}");
        let root = root.display().to_string();
        // What it does itself takes no time; unoptimised, it is built in half of it.
        let install = [
            "install", "--quiet", "--debug", "--locked", &package, "--root", &root,
        ];
        command("cargo", &[&install[..], more].concat())?;
    }
    Ok(program.canonicalize()?)
}
