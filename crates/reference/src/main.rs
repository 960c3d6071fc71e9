//! The pages of docs/ that are generated from the code: `cargo xtask docs` writes them, `cargo xtask check` compares
//! them.

mod cli;
mod doctor;
mod metrics;
mod schema;

use clap::Parser;
use outboxd::config::{self, keys};
use programs::Result;

#[derive(Parser)]
struct Args {
    /// Fails if a page differs from the code, and writes nothing
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for (file, text) in generated()? {
        if !args.check {
            std::fs::write(file, text)?;
        } else if std::fs::read_to_string(file)? != text {
            return Err(format!("{file} differs from the code: run `cargo xtask docs`").into());
        }
    }
    Ok(())
}

/// Each generated file with its text.
fn generated() -> Result<[(&'static str, String); 7]> {
    Ok([
        ("config/outboxd.toml", keys::example()),
        ("docs/reference/configuration.md", keys::reference()),
        ("docs/reference/outboxd.schema.json", config::schema()),
        ("docs/reference/cli.md", cli::reference()),
        ("docs/operating/doctor.md", doctor::reference()),
        ("docs/reference/metrics.md", metrics::reference()?),
        ("docs/reference/schema.md", schema::reference()?),
    ])
}
