//! `outboxd config show`: every key with the value that the relay would use, and where the value comes from.

use std::collections::BTreeMap;

use config::ValueKind;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::config::Host;

use super::{
    Config, ConfigErrors, LoadOptions,
    dsn::{self, Dsn},
    keys::{self, KEYS, Key},
    layers::{Found, Values},
    reader::plain,
    scope::Scope,
    takes::Takes,
    uri::BrokerEndpoint,
};

/// A key's value, as a person or a script may see it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Shown {
    /// `null`: not set, and without a default. A URL has no password.
    pub value: Value,
    pub origin: String,
}

#[derive(Debug, Serialize)]
pub struct Effective {
    /// In words.
    pub file: String,
    /// The keys that all sources share; without `[[source]]`, all keys.
    pub keys: BTreeMap<String, Shown>,
    pub sources: Vec<SourceShown>,
}

/// A `[[source]]`.
#[derive(Debug, Serialize)]
pub struct SourceShown {
    pub name: String,
    pub keys: BTreeMap<String, Shown>,
}

impl Effective {
    /// Only of a configuration without a problem: an unknown key may be a misspelt one, and its value a secret.
    pub fn of(options: LoadOptions) -> Result<Self, ConfigErrors> {
        let (config, values) = Config::read(options)?;
        let of_source = |key: &&Key| {
            ["database.", "broker."]
                .iter()
                .any(|s| key.name.starts_with(s))
        };
        let several = values.contains_key("source.0.name");
        let common = KEYS.iter().filter(|key| !several || !of_source(key));
        let mut keys = shown(&values, &Scope::top(), common);
        for (key, found) in &values {
            if let Some(takes) = keys::of_route(key) {
                keys.insert(key.clone(), Shown::given(takes, found));
            }
        }
        if !config.routing.routes.is_empty() {
            keys.remove("routing.routes");
        }
        let sources = config.sources.into_iter().enumerate().filter(|_| several);
        let sources = sources.map(|(i, source)| SourceShown {
            name: source.name,
            keys: shown(&values, &Scope::source(i), KEYS.iter().filter(of_source)),
        });
        Ok(Self {
            file: config.file.to_string(),
            keys,
            sources: sources.collect(),
        })
    }
}

fn shown<'k>(
    values: &Values,
    scope: &Scope,
    keys: impl Iterator<Item = &'k Key>,
) -> BTreeMap<String, Shown> {
    let each = keys.map(|key| {
        let shown = match scope.effective(values, key.name) {
            Some(found) => Shown::given(key.takes, found),
            None => Shown {
                value: default(key),
                origin: match key.default {
                    Some(_) => "default".to_owned(),
                    None => "not set".to_owned(),
                },
            },
        };
        (key.name.to_owned(), shown)
    });
    each.collect()
}

/// `null`: there is none.
pub(super) fn default(key: &Key) -> Value {
    let text = key.plain_default().map(str::to_owned);
    text.map_or(Value::Null, |text| {
        value(key.takes, &ValueKind::String(text))
    })
}

impl Shown {
    fn given(takes: Takes, found: &Found) -> Self {
        Self {
            value: value(takes, &found.kind),
            origin: found.origin.label(),
        }
    }
}

/// The environment gives texts for numbers, flags and lists.
fn value(takes: Takes, kind: &ValueKind) -> Value {
    let text = plain(kind);
    match (takes, kind) {
        (Takes::Database, _) => database(&text),
        (Takes::Broker, _) => broker(&text),
        (_, ValueKind::Array(items)) => items.iter().map(|item| plain(&item.kind)).collect(),
        (Takes::List, _) if text.is_empty() => json!([]),
        (Takes::List, _) => text.split(',').map(str::trim).collect(),
        (Takes::Routes, _) => json!([]),
        (Takes::Integer(..), _) => takes.integer(&text).map_or(Value::Null, Value::from),
        (Takes::Flag, _) => takes.flag(&text).map_or(Value::Null, Value::from),
        _ => json!(text),
    }
}

const HIDDEN: &str = "***";

/// The URL of the parts that are no secret.
fn database(url: &str) -> Value {
    let Ok(Dsn {
        config, sslmode, ..
    }) = dsn::parse(url, "")
    else {
        return json!(HIDDEN);
    };
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(i, host)| {
        let host = match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => encoded(&path.to_string_lossy()),
        };
        match ports.get(i).or_else(|| ports.first()) {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    });
    let hosts = hosts.collect::<Vec<_>>().join(",");
    let login = login(config.get_user(), config.get_password().is_some());
    let name = config.get_dbname().map_or(String::new(), encoded);
    let sslmode = sslmode.map_or(String::new(), |mode| format!("?sslmode={mode}"));
    json!(format!("postgres://{login}{hosts}/{name}{sslmode}"))
}

fn broker(url: &str) -> Value {
    let Ok(endpoint) = BrokerEndpoint::parse(url) else {
        return json!(HIDDEN);
    };
    let scheme = if endpoint.tls { "amqps" } else { "amqp" };
    let login = login(endpoint.username.as_deref(), endpoint.password.is_some());
    let vhost = encoded(&endpoint.vhost);
    json!(format!("{scheme}://{login}{}/{vhost}", endpoint.address()))
}

fn login(user: Option<&str>, has_password: bool) -> String {
    let password = if has_password {
        format!(":{HIDDEN}")
    } else {
        String::new()
    };
    user.map_or(String::new(), |user| {
        format!("{}{password}@", encoded(user))
    })
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
