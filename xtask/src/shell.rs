//! Runs other programs, and locates cargo's build outputs.

use std::{path::Path, process::Command};

use programs::Result;

/// Runs a command to its end, with its output visible.
pub fn command(program: &str, args: &[&str]) -> Result<()> {
    eprintln!("$ {program} {}", args.join(" "));
    let status = Command::new(program).args(args).status();
    let status = status.map_err(|e| format!("{program}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program} {}: {status}", args.join(" ")).into())
    }
}

/// Path of a package's program, built with this profile.
pub fn built(profile: &str, program: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let folder = if profile == "dev" { "debug" } else { profile };
    let program = Path::new(&target).join(folder).join(program);
    program.display().to_string()
}

/// Standard output of a command that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{name}: {}", errors.trim()).into())
    }
}
