//! Where the value of a key is found: a `[[source]]` takes what it leaves out from the common sections.

use super::layers::{Found, Values};

/// The places where a section's values are read: the section itself, and for a `[[source]]` also the common section.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// `""`, or `source.0.`.
    pub prefix: String,
}

/// The keys of a server's section that are taken together: a source with a URL of its own does not take the common
/// section's password.
const TOGETHER: [&str; 3] = ["url", "url_file", "password_file"];

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

    /// The scope of the URL and the password of `section`.
    pub fn of_secrets(&self, values: &Values, section: &str) -> Self {
        let own = |name| values.contains_key(&format!("{}{section}.{name}", self.prefix));
        if own("url") || own("url_file") {
            self.clone()
        } else {
            Self::top()
        }
    }

    /// The value in its own scope, otherwise in the common section, with the key under which it was found.
    pub fn find<'v>(&self, values: &'v Values, key: &str) -> (String, Option<&'v Found>) {
        let own = format!("{}{key}", self.prefix);
        match (values.get(&own), values.get(key)) {
            (None, Some(found)) => (key.to_owned(), Some(found)),
            (found, _) => (own, found),
        }
    }

    /// The value that the relay uses, of any key of a section.
    pub fn effective<'v>(&self, values: &'v Values, key: &str) -> Option<&'v Found> {
        match key.split_once('.') {
            Some((section, name)) if TOGETHER.contains(&name) => {
                let scope = self.of_secrets(values, section);
                values.get(&format!("{}{key}", scope.prefix))
            }
            _ => self.find(values, key).1,
        }
    }
}
