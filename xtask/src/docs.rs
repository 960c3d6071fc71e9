//! `cargo xtask docs`.

use outboxd::config::keys;

use crate::Result;

pub fn write() -> Result<()> {
    std::fs::write("config/outboxd.toml", keys::example())?;
    std::fs::write("docs/configuration.md", keys::reference())?;
    Ok(())
}
