//! `cargo xtask docs`: the generated pages, and the documents as a site.

mod cli;
mod metrics;
mod schema;
mod site;

use outboxd::config::keys;

use crate::Result;

pub fn write() -> Result<()> {
    for (file, text) in generated()? {
        std::fs::write(file, text)?;
    }
    site::build()
}

/// Each generated file, with the text that the code gives it.
pub fn generated() -> Result<[(&'static str, String); 5]> {
    Ok([
        ("config/outboxd.toml", keys::example()),
        ("docs/reference/configuration.md", keys::reference()),
        ("docs/reference/cli.md", cli::reference()),
        ("docs/reference/metrics.md", metrics::reference()?),
        ("docs/reference/schema.md", schema::reference()?),
    ])
}
