//! Finds the keys in which two configurations differ: a reload logs the keys that it applied and those that need a restart.

use std::{collections::BTreeMap, fmt, path::Path};

use config::ValueKind;
use sha2::{Digest, Sha256};

use super::{
    keys::{self, Key},
    layers::Values,
};
use crate::file;

/// Fingerprints of the values that differ from the default, and of the files that keys name. Fingerprints, because a value
/// may be a secret.
#[derive(Clone, PartialEq, Default)]
pub(super) struct Given {
    values: BTreeMap<String, Fingerprint>,
    files: BTreeMap<String, Fingerprint>,
}

type Fingerprint = [u8; 32];

/// The changes that a reload found, by key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys with another value.
    pub keys: Vec<String>,
    /// Keys that name the same file, whose contents changed.
    pub files: Vec<String>,
}

impl Given {
    pub fn of(values: &Values) -> Self {
        let mut given = Self::default();
        for (key, found) in values {
            let text = match &found.kind {
                ValueKind::Array(items) if items.is_empty() => "[]".to_owned(),
                kind => kind.to_string(),
            };
            let default = keys::find(key).and_then(Key::plain_default);
            if default.is_none_or(|default| default != text) {
                given.values.insert(key.clone(), hash(text.as_bytes()));
            }
            if key.ends_with("_file")
                && let Ok(bytes) = file::read(Path::new(&text), file::MOST, file::Guard::Any)
            {
                given.files.insert(key.clone(), hash(&bytes));
            }
        }
        given
    }

    pub fn changes(&self, newer: &Self) -> Changes {
        let keys = differing(&self.values, &newer.values);
        let mut files = differing(&self.files, &newer.files);
        files.retain(|key| !keys.contains(key));
        Changes { keys, files }
    }

    /// Takes over the values of `keys` and the contents of all files from `newer`.
    pub fn adopt(&mut self, newer: &Self, keys: &[&str]) {
        for key in keys {
            match newer.values.get(*key) {
                Some(value) => self.values.insert((*key).to_owned(), *value),
                None => self.values.remove(*key),
            };
        }
        for (key, value) in &newer.files {
            if let Some(known) = self.files.get_mut(key) {
                *known = *value;
            }
        }
    }
}

fn differing(
    one: &BTreeMap<String, Fingerprint>,
    other: &BTreeMap<String, Fingerprint>,
) -> Vec<String> {
    let mut keys: Vec<String> = one
        .keys()
        .chain(other.keys().filter(|key| !one.contains_key(*key)))
        .filter(|key| one.get(*key) != other.get(*key))
        .cloned()
        .collect();
    keys.sort();
    keys
}

fn hash(bytes: &[u8]) -> Fingerprint {
    Sha256::digest(bytes).into()
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Somebody could guess a short secret from its fingerprint.
        f.write_str("[fingerprints]")
    }
}
