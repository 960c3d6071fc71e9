//! Which file the configuration is read from.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The variable that names the file. `OUTBOXD__…`, with two underscores, are keys.
const VARIABLE: &str = "OUTBOXD_CONFIG";
/// The places that are searched when nobody names a file; the first file that exists is read.
const SEARCHED: [&str; 2] = ["config/outboxd.toml", "/etc/outboxd/outboxd.toml"];

/// The file that the configuration is read from, and why this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// `by` is a flag or a variable.
    Named {
        path: PathBuf,
        by: &'static str,
    },
    Found(PathBuf),
    /// Nobody names a file, and none is at the searched places.
    Absent,
}

impl ConfigFile {
    pub(super) fn chosen(flag: Option<PathBuf>, env: &BTreeMap<OsString, OsString>) -> Self {
        if let Some(path) = flag {
            return Self::Named {
                path,
                by: "--config",
            };
        }
        // A template may leave the variable empty.
        match env
            .get(OsStr::new(VARIABLE))
            .filter(|path| !path.is_empty())
        {
            Some(path) => Self::Named {
                path: path.into(),
                by: VARIABLE,
            },
            None => first(SEARCHED),
        }
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Named { path, .. } | Self::Found(path) => Some(path),
            Self::Absent => None,
        }
    }
}

/// The first place that has something. A file that exists and cannot be read counts, and is an error later: the defaults
/// would silently replace its settings.
fn first<P: Into<PathBuf>>(places: impl IntoIterator<Item = P>) -> ConfigFile {
    let is_absent = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    let mut there = places.into_iter().map(Into::into).filter(|p| !is_absent(p));
    there.next().map_or(ConfigFile::Absent, ConfigFile::Found)
}

impl fmt::Display for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { path, by } => write!(f, "{} (named by {by})", path.display()),
            Self::Found(path) => path.display().fmt(f),
            Self::Absent => write!(f, "none: there is no {}", SEARCHED.join(" and no ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_exists_is_read_even_if_that_fails() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (one, other) = (at("one"), at("other"));
        let found = || first([&one, &other]);
        assert_eq!(found(), ConfigFile::Absent);
        std::fs::write(&other, "").unwrap();
        assert_eq!(found(), ConfigFile::Found(other.clone()));
        // It cannot be read, and is no reason to read another.
        std::fs::create_dir(&one).unwrap();
        assert_eq!(found(), ConfigFile::Found(one.clone()));
        assert_eq!(first([other.join("below")]), ConfigFile::Absent);
    }
}
