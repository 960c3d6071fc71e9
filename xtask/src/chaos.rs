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
    // What lasts: at these rates and sizes a debug build would be what is measured.
    let lasts = |word: &String| word == "--long" || word.starts_with("--minutes");
    let release = args.args.iter().any(lasts);
    let profile = if release { "release" } else { "dev" };
    let cargo = ["--quiet", "--locked", "--profile", profile];
    let relay = ["-p", "outboxd", "--features", "failpoints"];
    command("cargo", &[&["build"], &cargo[..], &relay].concat())?;
    let outboxd = built(if release { "release" } else { "debug" });
    let outboxd = outboxd.display().to_string();
    let mut words = [&["run"], &cargo[..], &["-p", "chaos", "--"]].concat();
    words.extend(["--outboxd", &outboxd]);
    words.extend(args.args.iter().map(String::as_str));
    command("cargo", &words)
}
