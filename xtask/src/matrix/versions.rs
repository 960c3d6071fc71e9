//! Versions of a server: their order, and the folders of the downloads.

use std::path::{Path, PathBuf};

use programs::Result;

/// Folder of the versions that are not the machine's own.
pub const VERSIONS: &str = "target/versions";

/// The numbers of a version, for sorting.
pub fn numbers(version: &str) -> Vec<u32> {
    let pieces = version.split(|c: char| !c.is_ascii_digit());
    pieces.filter_map(|piece| piece.parse().ok()).collect()
}

/// A folder that is either complete or missing, even after an interrupted download.
pub fn unpacked(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = std::path::absolute(VERSIONS)?.join(name);
    if !folder.exists() {
        let unfinished = folder.with_file_name(format!("{name}.unfinished"));
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        std::fs::create_dir_all(&unfinished)?;
        eprintln!("fetching {name}");
        fill(&unfinished)?;
        std::fs::rename(&unfinished, &folder)?;
    }
    Ok(folder)
}
