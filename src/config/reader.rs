//! Typed, bounded values. The reader collects all problems instead of stopping at the first.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use config::ValueKind;

use super::{
    ConfigError,
    keys::{self, KEYS, ROUTE_KEYS},
    layers::{Found, Values},
    scope::Scope,
    takes::Takes,
};

pub(super) struct Reader {
    values: Values,
    used: BTreeSet<String>,
    problems: Vec<ConfigError>,
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
            .map(|(key, found)| (key.clone(), found.origin.to_string()))
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

    /// The value in its scope, with the key under which it was found.
    fn scoped(&mut self, scope: &Scope, key: &str) -> (String, Option<Found>) {
        let name = scope.find(&self.values, key).0;
        let found = self.take(&name);
        (name, found)
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
        scope.find(&self.values, key).0
    }

    /// The scope of a section's URL and password.
    pub fn secrets(&self, scope: &Scope, section: &str) -> Scope {
        scope.of_secrets(&self.values, section)
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

    /// The value, or the default of the table of keys. `parse` returns `None` for a value that the key does not take.
    fn parsed<T: Default>(
        &mut self,
        scope: &Scope,
        key: &str,
        parse: impl FnOnce(&Takes, &str) -> Option<T>,
    ) -> T {
        let (name, found) = self.scoped(scope, key);
        let Some(known) = keys::find(key) else {
            self.problem(&name, "is not in the table of keys");
            return T::default();
        };
        let (text, origin) = match found {
            Some(Found { kind, origin }) => (plain(&kind), origin.to_string()),
            None => {
                let default = known.plain_default().unwrap_or_default();
                (default.to_owned(), "by default".to_owned())
            }
        };
        parse(&known.takes, &text).unwrap_or_else(|| {
            let (shown, refusal) = (text.escape_debug(), known.takes.refusal());
            self.problem(&name, format!("\"{shown}\" {origin}: {refusal}"));
            T::default()
        })
    }

    pub fn text(&mut self, key: &str) -> String {
        self.parsed(&Scope::top(), key, Takes::text)
    }

    pub fn duration(&mut self, scope: &Scope, key: &str) -> Duration {
        self.parsed(scope, key, Takes::duration)
    }

    pub fn integer<T: TryFrom<u64> + Default>(&mut self, key: &str) -> T {
        self.parsed(&Scope::top(), key, |takes, text| {
            takes.integer(text)?.try_into().ok()
        })
    }

    pub fn size(&mut self, key: &str) -> u64 {
        self.parsed(&Scope::top(), key, Takes::size)
    }

    pub fn flag(&mut self, scope: &Scope, key: &str) -> bool {
        self.parsed(scope, key, Takes::flag)
    }

    /// The meaning of the word. `meanings` has every word that the key takes.
    pub fn choice<T: Copy>(
        &mut self,
        scope: &Scope,
        key: &str,
        meanings: &[(&str, T)],
    ) -> Option<T> {
        self.parsed(scope, key, |takes, text| {
            let word = takes.word(text)?;
            let (_, meaning) = meanings.iter().find(|(name, _)| *name == word)?;
            Some(Some(*meaning))
        })
    }

    /// `None` for `off`.
    pub fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.parsed(&Scope::top(), key, Takes::address)
    }

    /// An array of texts, or one text with commas between the items, which is how the environment and `--set` give it. Such a
    /// text names no empty item: a variable that a template left empty must not allow the default exchange.
    pub fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let Found { kind, origin } = self.take(key)?;
        match kind {
            ValueKind::String(text) if text.is_empty() => Some(Vec::new()),
            ValueKind::String(text) => {
                let items: Vec<String> =
                    text.split(',').map(|item| item.trim().to_owned()).collect();
                if items.iter().any(String::is_empty) {
                    let problem = format!(
                        "\"{}\" {origin}: has an empty item; give the items with one comma between two of them, or nothing \
                         for an empty list",
                        text.escape_debug()
                    );
                    self.problem(key, problem);
                    return None;
                }
                Some(items)
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
        let flag = Takes::Flag.flag(&plain(&found.kind));
        if flag.is_none() {
            self.problem(key, Takes::Flag.refusal());
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
pub(super) fn plain(kind: &ValueKind) -> String {
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
    let routes = ROUTE_KEYS
        .iter()
        .map(|(key, _)| format!("routing.routes.{key}"));
    KEYS.iter()
        .map(|key| key.name.to_owned())
        .chain(routes)
        .map(|known| (strsim::damerau_levenshtein(asked, &known), known))
        .min()
        .filter(|(distance, known)| *distance <= 3.max(known.len() / 4))
        .map(|(_, known)| known)
}
