//! `cargo xtask chaos`: the fault matrix. The rows are in crates/chaos.

use crate::{Result, built, command, servers};

#[derive(clap::Args)]
pub struct Args {
    /// Passed on; `--help` shows what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    servers::install(servers::Tools::Tests)?;
    if let Err(error) = servers::install(servers::Tools::Chaos) {
        eprintln!("some rows will be skipped: {error}");
    }
    let build = [
        "build",
        "--quiet",
        "--locked",
        "-p",
        "outboxd",
        "--features",
        "failpoints",
    ];
    command("cargo", &build)?;
    let outboxd = built("debug").display().to_string();
    let mut words = vec!["run", "--quiet", "--locked", "-p", "chaos", "--"];
    words.extend(["--outboxd", &outboxd]);
    words.extend(args.args.iter().map(String::as_str));
    command("cargo", &words)
}
