//! `cargo xtask test`.

use crate::{Result, command, servers};

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name holds this
    filter: Option<String>,
}

/// Most of a test is waiting for a server.
pub const THREADS: &str = "6";

pub fn run(args: &Args) -> Result<()> {
    servers::install(servers::Tools::Tests)?;
    let mut words = vec![
        "test",
        "--workspace",
        "--locked",
        "--features",
        "outboxd/failpoints",
        "--",
    ];
    words.extend(["--test-threads", THREADS]);
    words.extend(args.filter.as_deref());
    command("cargo", &words)?;
    // Alert rules and what else lies in deploy/.
    if args.filter.is_none() {
        command("sh", &["deploy/check.sh"])?;
    }
    Ok(())
}
