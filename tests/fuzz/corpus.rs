//! Inputs that are kept: one JSON file each.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target)
}

pub fn read<I: DeserializeOwned>(target: &str) -> Vec<(PathBuf, I)> {
    let entries = fs::read_dir(folder(target)).expect("the corpus is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has a corpus");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let input = serde_json::from_str(&text);
            let input = input.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, input)
        })
        .collect()
}

pub fn write<I: Serialize>(target: &str, input: &I) -> PathBuf {
    let text = serde_json::to_string_pretty(input).unwrap();
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let path = folder(target).join(format!("found-{:016x}.json", hasher.finish()));
    fs::write(&path, text + "\n").unwrap();
    path
}
