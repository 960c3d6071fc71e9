//! Merges file, environment and flags into one value for each key.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use config::{Environment, File, FileFormat, Map, Source as _, Value, ValueKind};

use super::{ConfigError, ConfigFile, LoadOptions};
use crate::file::{self, Guard};

const PREFIX: &str = "OUTBOXD";
/// Largest configuration file: a hundred times the file with every key.
const MOST: u64 = 1 << 20;

/// A value and its origin.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub kind: ValueKind,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    File(PathBuf),
    Variable(String),
    /// `--set` with this key.
    Set(String),
}

impl Origin {
    /// For `config show`.
    pub fn label(&self) -> String {
        match self {
            Self::File(path) => format!("file:{}", path.display()),
            Self::Variable(name) => format!("env {name}"),
            Self::Set(_) => "--set".to_owned(),
        }
    }
}

/// For the sentence of an error.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Variable(name) => write!(f, "from {name}"),
            Self::Set(key) => write!(f, "from --set {key}"),
        }
    }
}

/// Dotted keys; an item of an array of tables is `source.0.name`.
pub(super) type Values = BTreeMap<String, Found>;

/// Everything that was given, and what could not be read.
pub(super) struct Gathered {
    pub file: ConfigFile,
    pub values: Values,
    pub problems: Vec<ConfigError>,
}

pub(super) fn gather(options: LoadOptions) -> Gathered {
    let mut values = Values::new();
    let file = ConfigFile::chosen(options.file, &options.env);
    let (env, mut problems) = readable(options.env);
    if let Some(path) = file.path() {
        match file_values(path) {
            Ok(table) => flatten("", table, &Origin::File(path.to_owned()), &mut values),
            // Who named the file is who must mend its name.
            Err(problem) => problems.push(ConfigError::new(file.to_string(), problem)),
        }
    }
    for (variable, key) in [("DATABASE_URL", "database.url"), ("AMQP_URL", "broker.url")] {
        if let Some(url) = env.get(variable).filter(|url| !url.is_empty()) {
            let found = Found {
                kind: ValueKind::String(url.clone()),
                origin: Origin::Variable(variable.to_owned()),
            };
            values.insert(key.to_owned(), found);
        }
    }
    // Case does not count in the names, so it would be chance which of two variables wins.
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for name in env.keys() {
        let key = name.to_lowercase();
        if key.starts_with("outboxd__")
            && let Some(other) = seen.insert(key, name)
        {
            let problem = format!("{other} and {name} are one key; set one of them");
            problems.push(ConfigError::new("environment", problem));
        }
    }
    // The separator follows the prefix too, because Kubernetes injects OUTBOXD_PORT for a Service named outboxd.
    // try_parsing stays off, because it would turn the password 00123 into 123.
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator("__")
        .separator("__")
        .source(Some(env.into_iter().collect()));
    match environment.collect() {
        Ok(map) => {
            for (key, value) in map {
                let name = format!("{PREFIX}__{}", key.replace('.', "__").to_uppercase());
                let origin = Origin::Variable(name);
                values.insert(
                    key,
                    Found {
                        kind: value.kind,
                        origin,
                    },
                );
            }
        }
        Err(_) => problems.push(ConfigError::new(
            "environment",
            "a variable that begins with OUTBOXD__ cannot be read",
        )),
    }
    for (key, value) in options.overrides {
        let origin = Origin::Set(key.clone());
        values.insert(
            key,
            Found {
                kind: ValueKind::String(value),
                origin,
            },
        );
    }
    Gathered {
        file,
        values,
        problems,
    }
}

/// The variables that are text, and a problem for each other variable that the relay would read. Without the problem, the
/// relay would run with a default that nobody chose: every exchange allowed, for example.
fn readable(env: BTreeMap<OsString, OsString>) -> (BTreeMap<String, String>, Vec<ConfigError>) {
    let mut texts = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, value) in env {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => {
                texts.insert(name, value);
            }
            (name, _) => {
                let name = name.unwrap_or_else(|name| name.to_string_lossy().into_owned());
                let ours = name.to_lowercase().starts_with("outboxd__");
                if ours || name == "DATABASE_URL" || name == "AMQP_URL" {
                    // The value may be a secret.
                    problems.push(ConfigError::new(name, "is not UTF-8 text"));
                }
            }
        }
    }
    (texts, problems)
}

fn file_values(path: &Path) -> Result<Map<String, Value>, String> {
    let bytes = file::read(path, MOST, Guard::Trusted)?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?;
    // This first parse serves only the position of an error: an error that quotes the line could show a password.
    if let Err(error) = text.parse::<toml::Table>() {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        return Err(format!("line {line} is not TOML: {}", error.message()));
    }
    File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|_| "is not TOML".to_owned())
}

fn flatten(prefix: &str, table: Map<String, Value>, origin: &Origin, into: &mut Values) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value.kind {
            ValueKind::Table(inner) => flatten(&key, inner, origin, into),
            ValueKind::Array(items)
                if items
                    .iter()
                    .any(|item| matches!(item.kind, ValueKind::Table(_))) =>
            {
                for (i, item) in items.into_iter().enumerate() {
                    match item.kind {
                        ValueKind::Table(inner) => {
                            flatten(&format!("{key}.{i}"), inner, origin, into)
                        }
                        kind => {
                            into.insert(
                                format!("{key}.{i}"),
                                Found {
                                    kind,
                                    origin: origin.clone(),
                                },
                            );
                        }
                    }
                }
            }
            kind => {
                into.insert(
                    key,
                    Found {
                        kind,
                        origin: origin.clone(),
                    },
                );
            }
        }
    }
}
