//! Finds files of the repository by extension.

use std::{fs, path::PathBuf};

use programs::Result;

/// The files with the extension among and below these paths, sorted.
pub fn files(places: &[&str], extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
    while let Some(place) = left.pop() {
        if place.is_dir() {
            for entry in fs::read_dir(place)? {
                left.push(entry?.path());
            }
        } else if place.extension().is_some_and(|e| e == extension) {
            found.push(place);
        }
    }
    found.sort();
    Ok(found)
}
