//! The JSON Schema of the configuration file, for editors and for checks before a deployment. It is made from the table of
//! keys, so it knows every key, its type and its bounds. It does not know what only the program can check: relations between
//! keys, files, URLs, and the bounds of durations and of sizes with a unit.

use serde_json::{Map, Value, json};

use super::{
    keys::{KEYS, ROUTE_KEYS, SECTIONS, SOURCE_NAME},
    show,
    takes::Takes,
};

pub fn schema() -> String {
    format!("{:#}\n", document())
}

/// Values as the documents write them: numbers and true or false without quotes.
pub(super) fn document() -> Value {
    let sections = SECTIONS.iter().map(|(name, meaning)| {
        let mut section = table(keys(name));
        section["description"] = json!(meaning);
        (*name, section)
    });
    let definitions: Map<String, Value> = sections.map(|(n, s)| (n.to_owned(), s)).collect();
    let mut properties: Map<String, Value> = definitions
        .keys()
        .map(|name| (name.clone(), reference(name)))
        .collect();
    properties.insert("source".to_owned(), sources());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of outboxd",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "$defs": definitions,
    })
}

fn reference(section: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{section}") })
}

fn keys(section: &str) -> impl Iterator<Item = (&'static str, Value)> {
    KEYS.iter().filter_map(move |key| {
        let name = key.name.strip_prefix(section)?.strip_prefix('.')?;
        let mut value = takes(key.takes);
        value["description"] = json!(format!("{} ({})", key.meaning, key.values()));
        if key.default.is_some() {
            value["default"] = show::default(key);
        }
        Some((name, value))
    })
}

fn table(keys: impl Iterator<Item = (&'static str, Value)>) -> Value {
    let properties: Map<String, Value> = keys.map(|(k, v)| (k.to_owned(), v)).collect();
    let mut table = json!({ "type": "object", "additionalProperties": false });
    if properties.contains_key("url_file") {
        // The program refuses both in one table.
        table["not"] = json!({ "required": ["url", "url_file"] });
    }
    table["properties"] = Value::Object(properties);
    table
}

fn sources() -> Value {
    let name = json!({
        "type": "string",
        "pattern": "^[A-Za-z0-9_-]{1,63}$",
        "description": "Name of the source, for --source and the label `source` of the metrics.",
    });
    let own = [
        (SOURCE_NAME, name),
        ("database", reference("database")),
        ("broker", reference("broker")),
    ];
    let mut source = table(own.into_iter());
    source["required"] = json!([SOURCE_NAME]);
    json!({
        "type": "array",
        "items": source,
        "description": "Databases to relay from, each with its own workers and connections.",
    })
}

fn takes(takes: Takes) -> Value {
    match takes {
        Takes::Integer(least, most) => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Takes::Duration(..) => json!({ "type": "string", "pattern": DURATION }),
        Takes::Size(least, most) => json!({
            "anyOf": [
                { "type": "integer", "minimum": least, "maximum": most },
                { "type": "string", "pattern": "^\\s*[0-9]+\\s*(B|KiB|MiB|GiB)?\\s*$" },
            ],
        }),
        // Bytes in the program, characters here: no text that is short enough is refused.
        Takes::Text(least, most) => json!({
            "type": "string", "minLength": least.min(1), "maxLength": most,
            "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        }),
        Takes::Word(words) => json!({ "enum": words }),
        Takes::Flag => json!({ "type": "boolean" }),
        Takes::Address => json!({ "type": "string", "pattern": "^(off|.+:[0-9]{1,5})$" }),
        Takes::Database => json!({ "type": "string", "pattern": "^\\s*postgres(ql)?://|=" }),
        Takes::Broker => json!({ "type": "string", "pattern": "^amqps?://" }),
        Takes::Described(_) => json!({ "type": "string", "minLength": 1 }),
        Takes::List => json!({
            "anyOf": [
                { "type": "array", "items": { "type": "string" } },
                { "type": "string" },
            ],
        }),
        Takes::Routes => {
            let route = ROUTE_KEYS
                .iter()
                .map(|(name, kind)| (*name, self::takes(*kind)));
            json!({ "type": "array", "items": table(route) })
        }
    }
}

/// As humantime reads it, but for the units that nobody needs here.
const DURATION: &str = "^\\s*(0|([0-9]+(\\.[0-9]+)?\\s*(ns|nsec|us|usec|ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?|M|months?|y|yrs?|years?)\\s*)+)$";

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let file: toml::Table = text.parse().unwrap();
        let schema = jsonschema::validator_for(&document()).unwrap();
        let file = serde_json::to_value(file).unwrap();
        let errors = schema.iter_errors(&file);
        errors
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect()
    }

    fn read(file: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
    }

    fn valid() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid");
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn every_file_that_is_shipped_and_every_valid_one_is_valid() {
        let kubernetes = read("deploy/kubernetes/outboxd.yaml");
        let (_, map) = kubernetes.split_once("  outboxd.toml: |\n").unwrap();
        let map: Vec<&str> = map.lines().take_while(|line| *line != "---").collect();
        let mut texts = vec![
            read("config/outboxd.toml"),
            read("deploy/compose/outboxd.toml"),
            map.join("\n"),
        ];
        texts.extend(
            valid()
                .iter()
                .map(|file| std::fs::read_to_string(file).unwrap()),
        );
        for text in texts {
            assert_eq!(problems(&text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_wrong_name_type_or_number_is_refused_at_its_place() {
        for (name, place) in [
            ("admin_nonsense", "/admin/listen: "),
            ("broker_url_and_file", "/broker: "),
            ("duration_without_unit", "/relay/poll_interval: "),
            ("empty_poll", "/relay/poll_interval: "),
            ("negative_batch", "/relay/batch_size: "),
            ("ordering", "/relay/ordering: "),
            ("password_as_value", "/database: "),
            ("source_key", "/source/0: "),
            ("unknown_key", "/relay: "),
            ("unknown_section", ": "),
            ("unquoted_password", "/broker/password_file: "),
            ("url_and_file", "/database: "),
            ("zero_batch", "/relay/batch_size: "),
        ] {
            let found = problems(&read(&format!("tests/config/invalid/{name}.toml")));
            let [problem] = &found[..] else {
                panic!("{name}: {found:?}");
            };
            assert!(problem.starts_with(place), "{name}: {problem}");
        }
        assert_eq!(problems("[[source]]\ndatabase.listen = true").len(), 1);
        assert_eq!(problems("[[routing.routes]]\nexchnage = \"x\"").len(), 1);
    }
}
