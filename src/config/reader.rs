//! Typed, bounded values. The reader collects all problems instead of stopping at the first.

use std::{
    collections::BTreeSet, fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf,
    str::FromStr, time::Duration,
};

use config::ValueKind;

use super::{
    ConfigError,
    keys::{self, KEYS, ROUTE_KEYS},
    layers::{Found, Values},
};

pub(super) struct Reader {
    values: Values,
    used: BTreeSet<String>,
    problems: Vec<ConfigError>,
}

/// The places where a section's values are read: the section itself, and for a `[[source]]` also the common section.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// `""`, or `source.0.`.
    pub prefix: String,
}

impl Scope {
    pub fn top() -> Self {
        Self {
            prefix: String::new(),
        }
    }

    pub fn source(index: usize) -> Self {
        Self {
            prefix: format!("source.{index}."),
        }
    }
}

impl Reader {
    pub fn new(values: Values) -> Self {
        Self {
            values,
            used: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// All problems, unknown keys included.
    pub fn finish(mut self) -> Vec<ConfigError> {
        let unknown: Vec<(String, String)> = self
            .values
            .iter()
            .filter(|(key, _)| !self.used.contains(*key))
            .map(|(key, found)| (key.clone(), found.origin.clone()))
            .collect();
        for (key, origin) in unknown {
            let guess = nearest(&key)
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            let shown = if key.is_empty() { "\"\"" } else { &key };
            self.problem(shown, format!("unknown key {origin}{guess}"));
        }
        self.problems
    }

    pub fn problem(&mut self, key: &str, problem: impl Into<String>) {
        self.problems.push(ConfigError::new(key, problem));
    }

    pub fn report(&mut self, error: ConfigError) {
        self.problems.push(error);
    }

    /// The number of tables of `name`. A number after a gap is no table but an unknown key: it would need all numbers before
    /// it.
    pub fn tables(&self, name: &str) -> usize {
        let beginning = format!("{name}.");
        let numbers: BTreeSet<usize> = self
            .values
            .keys()
            .filter_map(|key| {
                key.strip_prefix(&beginning)?
                    .split('.')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        (0..).zip(&numbers).take_while(|(i, n)| i == *n).count()
    }

    fn take(&mut self, key: &str) -> Option<Found> {
        let found = self.values.get(key)?;
        self.used.insert(key.to_owned());
        Some(found.clone())
    }

    /// The value in its own scope, otherwise in the common section, with the key under which it was found.
    fn scoped(&mut self, scope: &Scope, key: &str) -> (String, Option<Found>) {
        let own = format!("{}{key}", scope.prefix);
        let found = self.take(&own);
        if found.is_some() || scope.prefix.is_empty() {
            return (own, found);
        }
        match self.take(key) {
            Some(found) => (key.to_owned(), Some(found)),
            None => (own, None),
        }
    }

    pub fn optional_text(&mut self, scope: &Scope, key: &str) -> Option<String> {
        let (key, found) = self.scoped(scope, key);
        match found?.kind {
            ValueKind::String(text) if text.is_empty() => {
                self.problem(&key, "is empty");
                None
            }
            ValueKind::String(text) => Some(text),
            // Do not show the value: it may be a secret without quotes.
            _ => {
                self.problem(&key, "must be text in quotes");
                None
            }
        }
    }

    /// The key under which a scoped value was found; the scope's own key if there is no value.
    pub fn found_as(&self, scope: &Scope, key: &str) -> String {
        let own = format!("{}{key}", scope.prefix);
        if self.has(key) && !self.has(&own) {
            return key.to_owned();
        }
        own
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The value under exactly this key.
    pub fn own_text(&mut self, key: &str) -> Option<String> {
        self.optional_text(&Scope::top(), key)
    }

    pub fn path(&mut self, scope: &Scope, key: &str) -> Option<PathBuf> {
        self.optional_text(scope, key).map(PathBuf::from)
    }

    /// The value as text, or the default of the table of keys.
    fn text_of(&mut self, scope: &Scope, key: &str) -> (String, String, String) {
        let (name, found) = self.scoped(scope, key);
        match found {
            Some(Found { kind, origin }) => (name, plain(&kind), origin),
            None => {
                let default = keys::find(key).and_then(|k| k.default).unwrap_or_default();
                (
                    name,
                    default.trim_matches('"').to_owned(),
                    "by default".to_owned(),
                )
            }
        }
    }

    fn parsed<T: Default>(
        &mut self,
        scope: &Scope,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let (name, text, origin) = self.text_of(scope, key);
        match parse(&text) {
            Ok(value) => value,
            Err(constraint) => {
                self.problem(
                    &name,
                    format!("\"{}\" {origin}: {constraint}", text.escape_debug()),
                );
                T::default()
            }
        }
    }

    pub fn text(&mut self, key: &str, bytes: RangeInclusive<usize>) -> String {
        self.parsed(&Scope::top(), key, |text| {
            if !bytes.contains(&text.len()) {
                return Err(format!(
                    "must have {} to {} bytes",
                    bytes.start(),
                    bytes.end()
                ));
            }
            if text.contains(char::is_control) {
                return Err("must not contain control characters".to_owned());
            }
            Ok(text.to_owned())
        })
    }

    pub fn duration(
        &mut self,
        scope: &Scope,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.parsed(scope, key, |text| {
            let shown = |d: &Duration| humantime::format_duration(*d).to_string();
            let expected = || {
                format!(
                    "must be a duration from {} to {}, for example \"5s\"",
                    shown(range.start()),
                    shown(range.end())
                )
            };
            let duration = humantime::parse_duration(text).map_err(|_| expected())?;
            if range.contains(&duration) {
                Ok(duration)
            } else {
                Err(expected())
            }
        })
    }

    pub fn integer<T>(&mut self, key: &str, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display + Default,
    {
        self.parsed(&Scope::top(), key, |text| {
            text.parse()
                .ok()
                .filter(|n| range.contains(n))
                .ok_or_else(|| {
                    format!(
                        "must be a whole number from {} to {}",
                        range.start(),
                        range.end()
                    )
                })
        })
    }

    pub fn bytes(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.parsed(&Scope::top(), key, |text| {
            parse_bytes(text)
                .filter(|n| range.contains(n))
                .ok_or_else(|| {
                    format!(
                        "must be a size from {} to {} bytes, for example \"16MiB\"",
                        range.start(),
                        range.end()
                    )
                })
        })
    }

    pub fn flag(&mut self, scope: &Scope, key: &str) -> bool {
        self.parsed(scope, key, |text| {
            text.parse().map_err(|_| "must be true or false".to_owned())
        })
    }

    pub fn choice<T: Copy>(
        &mut self,
        scope: &Scope,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.parsed(scope, key, |text| {
            choices
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, value)| Some(*value))
                .ok_or_else(|| {
                    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                    format!("must be one of {}", names.join(", "))
                })
        })
    }

    /// `None` for `off`.
    pub fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.parsed(&Scope::top(), key, |text| match text {
            "off" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                "must be an IP address and a port, for example \"127.0.0.1:9464\", or \"off\""
                    .to_owned()
            }),
        })
    }

    pub fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let found = self.take(key)?;
        match found.kind {
            ValueKind::String(text) => {
                Some(text.split(',').map(|item| item.trim().to_owned()).collect())
            }
            ValueKind::Array(items) => {
                let texts: Option<Vec<String>> = items
                    .into_iter()
                    .map(|item| match item.kind {
                        ValueKind::String(text) => Some(text),
                        _ => None,
                    })
                    .collect();
                if texts.is_none() {
                    self.problem(key, "must be a list of texts in quotes");
                }
                texts
            }
            _ => {
                self.problem(key, "must be a list of texts in quotes");
                None
            }
        }
    }

    pub fn item_flag(&mut self, key: &str) -> Option<bool> {
        let found = self.take(key)?;
        let flag = plain(&found.kind).parse().ok();
        if flag.is_none() {
            self.problem(key, "must be true or false");
        }
        flag
    }

    /// Reports a value that is not an array of tables; an empty array is allowed.
    pub fn no_tables(&mut self, key: &str) {
        if let Some(found) = self.take(key)
            && !matches!(&found.kind, ValueKind::Array(items) if items.is_empty())
        {
            self.problem(key, format!("must be tables: [[{key}]]"));
        }
    }
}

/// The value as it was written; not for secrets.
fn plain(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => text.clone(),
        ValueKind::Boolean(b) => b.to_string(),
        ValueKind::I64(n) => n.to_string(),
        ValueKind::I128(n) => n.to_string(),
        ValueKind::U64(n) => n.to_string(),
        ValueKind::U128(n) => n.to_string(),
        ValueKind::Float(n) => n.to_string(),
        ValueKind::Nil => String::new(),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The most similar known key.
fn nearest(unknown: &str) -> Option<String> {
    let without_index = |key: &str| {
        key.split('.')
            .filter(|part| part.parse::<usize>().is_err())
            .collect::<Vec<_>>()
            .join(".")
    };
    let asked = without_index(unknown);
    let asked = asked.strip_prefix("source.").unwrap_or(&asked);
    let routes = ROUTE_KEYS.iter().map(|key| format!("routing.routes.{key}"));
    KEYS.iter()
        .map(|key| key.name.to_owned())
        .chain(routes)
        .map(|known| (strsim::damerau_levenshtein(asked, &known), known))
        .min()
        .filter(|(distance, known)| *distance <= 3.max(known.len() / 4))
        .map(|(_, known)| known)
}
