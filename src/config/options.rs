//! Where configuration comes from, and how much of it a command needs.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

/// Which URLs a command cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub database: bool,
    pub broker: bool,
}

/// Where configuration comes from. Passed in whole: nothing here reads the process's environment.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// From `--config`. `None`: the variable or the searched places of `place`.
    pub file: Option<PathBuf>,
    pub env: BTreeMap<OsString, OsString>,
    /// From `--set`; the last of several wins.
    pub overrides: Vec<(String, String)>,
    pub needs: Needs,
}
