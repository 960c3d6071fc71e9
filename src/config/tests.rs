//! Fixtures: every file of `tests/config/valid` loads; every file of `tests/config/invalid` is refused with the text
//! of its first line, and never quotes a password.

use std::{path::Path, time::Duration};

use outbox_core::plan::Ordering;

use super::{keys::Key, takes::Takes, *};

const BOTH: Needs = Needs {
    database: true,
    broker: true,
};

fn load(
    file: Option<&Path>,
    env: &[(&str, &str)],
    overrides: &[(&str, &str)],
) -> Result<Config, ConfigErrors> {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    Config::load(LoadOptions {
        file: file.map(Path::to_owned),
        env: env.iter().map(|(k, v)| (k.into(), v.into())).collect(),
        overrides: overrides.iter().map(owned).collect(),
        needs: BOTH,
    })
}

fn fixtures(folder: &str) -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(folder);
    let files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!files.is_empty());
    files
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(name)
}

const URLS: [(&str, &str); 2] = [
    ("DATABASE_URL", "postgres://relay:hunter2@localhost/shop"),
    ("AMQP_URL", "amqp://relay:hunter2@localhost"),
];

fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    URLS.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn every_valid_fixture_loads() {
    for file in fixtures("valid") {
        let env: &[_] = if file.ends_with("empty.toml") {
            &URLS
        } else {
            &[]
        };
        load(Some(&file), env, &[]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

#[test]
fn every_invalid_fixture_is_refused_with_its_own_words() {
    for file in fixtures("invalid") {
        let text = std::fs::read_to_string(&file).unwrap();
        let says = text
            .lines()
            .next()
            .unwrap()
            .strip_prefix("# says: ")
            .unwrap();
        let error = load(Some(&file), &[], &[]).unwrap_err().to_string();
        assert!(error.contains(says), "{}: {error}", file.display());
        assert!(!error.contains("hunter2"), "{}: {error}", file.display());
    }
}

#[test]
fn the_shipped_file_holds_the_defaults_and_is_generated() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/outboxd.toml");
    assert_eq!(
        std::fs::read_to_string(&shipped).unwrap(),
        keys::example(),
        "run `cargo xtask docs`"
    );
    let defaults = load(Some(&fixture("valid/empty.toml")), &URLS, &[]).unwrap();
    let shipped = Config {
        file: defaults.file.clone(),
        ..load(Some(&shipped), &URLS, &[]).unwrap()
    };
    assert_eq!(shipped, defaults);
}

#[test]
fn the_reference_is_generated() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/configuration.md");
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        keys::reference(),
        "run `cargo xtask docs`"
    );
}

#[test]
fn the_defaults_are_the_contracted_ones() {
    let config = load(Some(&fixture("valid/empty.toml")), &URLS, &[]).unwrap();
    assert_eq!(config.relay.workers, 4);
    assert_eq!(config.relay.batch_size, 500);
    assert_eq!(config.relay.confirm_timeout, Duration::from_secs(30));
    assert_eq!(config.relay.ordering, Ordering::Strict);
    assert_eq!(config.routing.exchange, "events");
    assert_eq!(config.retention.sent, Duration::from_secs(7 * 24 * 3600));
    assert_eq!(config.admin.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.sources[0].name, "default");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = fixture("valid/everything.toml");
    let workers = |env: &[(&str, &str)], set: &[(&str, &str)]| {
        load(Some(&file), env, set).unwrap().relay.workers
    };
    assert_eq!(workers(&[], &[]), 2);
    assert_eq!(workers(&[("OUTBOXD__RELAY__WORKERS", "3")], &[]), 3);
    assert_eq!(
        workers(
            &[("OUTBOXD__RELAY__WORKERS", "3")],
            &[("relay.workers", "5")]
        ),
        5
    );
}

#[test]
fn the_environment_alone_is_enough() {
    let env = with(&[
        ("OUTBOXD__BROKER__URL", "amqp://relay:00123@localhost"),
        ("OUTBOXD__ROUTING__ALLOWED_EXCHANGES", "audit, events"),
        ("OUTBOXD__BROKER__DECLARE", "true"),
        ("OUTBOXD__ADMIN__LISTEN", "off"),
        // Kubernetes injects these for a Service named outboxd.
        ("OUTBOXD_PORT", "tcp://10.0.0.1:9464"),
        ("OUTBOXD_SERVICE_HOST", "10.0.0.1"),
    ]);
    let config = load(Some(&fixture("valid/empty.toml")), &env, &[]).unwrap();
    let broker = config.sources[0].broker.current().unwrap();
    assert_eq!(
        broker.password.unwrap().expose(),
        "00123",
        "text stays text"
    );
    assert_eq!(
        config.routing.allowed_exchanges.unwrap(),
        ["audit", "events"]
    );
    assert!(config.sources[0].broker.declare);
    assert_eq!(config.admin.listen, None);
}

/// A template whose variable is empty gives `""` or `audit,`, and must not allow the default exchange.
#[test]
fn an_empty_list_is_empty_and_an_empty_item_is_an_error_except_in_an_array_of_the_file() {
    let file = fixture("valid/empty.toml");
    let route = [
        ("OUTBOXD__ROUTING__ROUTES__0__AGGREGATE_TYPE", "sale"),
        ("OUTBOXD__ROUTING__ROUTES__0__EXCHANGE", "sales"),
    ];
    type List = fn(&Config) -> &Option<Vec<String>>;
    let lists: [(&str, &str, List); 2] = [
        (
            "routing.allowed_exchanges",
            "OUTBOXD__ROUTING__ALLOWED_EXCHANGES",
            |config| &config.routing.allowed_exchanges,
        ),
        (
            "routing.routes.0.allowed_exchanges",
            "OUTBOXD__ROUTING__ROUTES__0__ALLOWED_EXCHANGES",
            |config| &config.routing.routes[0].allowed_exchanges,
        ),
    ];
    for (key, variable, list) in lists {
        for value in [
            "",
            "audit",
            " audit , events ",
            ",",
            "audit,",
            ",audit",
            "a,,b",
            " ",
            "a, ,b",
        ] {
            let env = with(&route);
            let own = with(&[route[0], route[1], (variable, value)]);
            for (env, set, origin) in [
                (&env, vec![(key, value)], format!("from --set {key}")),
                (&own, vec![], format!("from {variable}")),
            ] {
                let loaded = load(Some(&file), env, &set);
                let expected: Option<&[&str]> = match value {
                    "" => Some(&[]),
                    "audit" => Some(&["audit"]),
                    " audit , events " => Some(&["audit", "events"]),
                    _ => None,
                };
                match (loaded, expected) {
                    (Ok(config), Some(expected)) => {
                        assert_eq!(list(&config).as_deref().unwrap(), expected, "{value:?}");
                    }
                    (Err(error), None) => {
                        let error = error.to_string();
                        let says = format!("{key}: \"{value}\" {origin}: has an empty item");
                        assert!(error.contains(&says), "{error}");
                    }
                    (loaded, _) => panic!("{key} = {value:?} {origin}: {}", loaded.is_ok()),
                }
            }
        }
    }
    let everything = load(Some(&fixture("valid/everything.toml")), &[], &[]).unwrap();
    assert_eq!(everything.routing.allowed_exchanges.unwrap(), ["audit", ""]);
}

#[test]
fn an_unknown_variable_is_an_error_that_guesses() {
    let error = load(
        Some(&fixture("valid/empty.toml")),
        &with(&[("OUTBOXD__RELAY__WORKER", "hunter2")]),
        &[],
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains(
            "relay.worker: unknown key from OUTBOXD__RELAY__WORKER; did you mean relay.workers?"
        ),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn all_problems_are_told_at_once() {
    let set = [
        ("relay.workers", "0"),
        ("relay.batch_size", "x"),
        ("nope", "1"),
    ];
    let errors = load(Some(&fixture("valid/empty.toml")), &[], &set)
        .unwrap_err()
        .0;
    let keys: Vec<_> = errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "relay.workers",
            "relay.batch_size",
            "database.url",
            "broker.url",
            "nope"
        ]
    );
}

/// Values at the edges of what a key takes, and values just outside. `None` for a key without bounds.
fn edges(takes: Takes) -> Option<(Vec<String>, Vec<String>)> {
    let numbers = |least: u64, most: u64, unit: &str| {
        let below = i128::from(least) - 1;
        let write = |n: i128| format!("{n}{unit}");
        (
            vec![write(least.into()), write(most.into())],
            vec![write(below), write(i128::from(most) + 1)],
        )
    };
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap();
    let words = |words: &[&str]| {
        let inside: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let outside = words.iter().map(|word| word.to_uppercase()).collect();
        (inside, outside)
    };
    Some(match takes {
        Takes::Integer(least, most) => numbers(least, most, ""),
        Takes::Duration(least, most) => numbers(millis(least), millis(most), "ms"),
        Takes::Size(least, most) => numbers(least, most, "B"),
        Takes::Text(least, most) => {
            let text = |bytes: usize| "x".repeat(bytes);
            let below = least.checked_sub(1).map(text);
            let outside = below.into_iter().chain([text(most + 1), "x\ny".to_owned()]);
            (vec![text(least), text(most)], outside.collect())
        }
        Takes::Word(all) => words(all),
        Takes::Flag => words(&["true", "false"]),
        Takes::Address => (
            vec!["127.0.0.1:0".to_owned(), "off".to_owned()],
            vec!["127.0.0.1:65536".to_owned(), "localhost:1".to_owned()],
        ),
        Takes::Database | Takes::Broker | Takes::List | Takes::Routes | Takes::Described(_) => {
            return None;
        }
    })
}

#[test]
fn every_key_keeps_its_bounds_and_the_refusal_names_them() {
    let mut bounded = 0;
    for key in keys::KEYS {
        let Some((inside, outside)) = edges(key.takes) else {
            continue;
        };
        bounded += 1;
        let refusal = key.takes.refusal();
        let bounds = key.takes.to_string();
        assert!(refusal.contains(&bounds), "{}: {refusal}", key.name);
        let refused = |value: &str| {
            let file = fixture("valid/empty.toml");
            let loaded = load(Some(&file), &URLS, &[(key.name, value)]);
            // A value inside may break a relation to another key, with another text.
            loaded.is_err_and(|errors| {
                let named = |e: &ConfigError| e.key == key.name && e.problem.ends_with(&refusal);
                errors.0.iter().any(named)
            })
        };
        for value in inside {
            assert!(!refused(&value), "{} = {value:?}", key.name);
        }
        for value in outside {
            assert!(refused(&value), "{} = {value:?}", key.name);
        }
    }
    assert!(bounded > 0);
}

/// The schema knows no bounds of a duration, nor of a size with a unit.
#[test]
fn the_schema_keeps_the_bounds_of_every_key() {
    let schema = jsonschema::validator_for(&schema::document()).unwrap();
    let accepts = |key: &Key, value: &str| {
        let quoted = match key.takes {
            Takes::Integer(..) | Takes::Flag => value.to_owned(),
            _ => toml::Value::from(value).to_string(),
        };
        let table: toml::Table = format!("{} = {quoted}", key.name).parse().ok()?;
        Some(schema.is_valid(&serde_json::to_value(table).unwrap()))
    };
    for key in keys::KEYS {
        let (inside, outside) = edges(key.takes).unwrap_or_default();
        for value in inside {
            assert_eq!(accepts(key, &value), Some(true), "{} = {value}", key.name);
        }
        let has_no_bounds = matches!(
            key.takes,
            Takes::Duration(..) | Takes::Size(..) | Takes::Address
        );
        for value in outside.iter().filter(|_| !has_no_bounds) {
            assert_ne!(accepts(key, value), Some(true), "{} = {value}", key.name);
        }
    }
}

#[test]
fn a_source_takes_what_it_leaves_out_from_the_common_sections() {
    let config = load(Some(&fixture("valid/sources.toml")), &[], &[]).unwrap();
    let [orders, billing] = &config.sources[..] else {
        panic!("two sources")
    };
    assert_eq!(
        (orders.name.as_str(), billing.name.as_str()),
        ("orders", "billing")
    );
    assert_eq!(orders.database.lock_timeout, Duration::from_secs(1));
    assert_eq!(billing.database.lock_timeout, Duration::from_secs(2));
    assert_eq!(orders.broker.current().unwrap().vhost, "/");
    assert_eq!(billing.broker.current().unwrap().vhost, "billing");
    assert_eq!(
        billing.database.current().unwrap().get_dbname(),
        Some("billing")
    );
}

#[test]
fn the_admin_port_is_on_this_host_unless_allowed() {
    let listens = |address: &str, allowed: &str| {
        let set = [
            ("admin.listen", address),
            ("admin.allow_non_loopback", allowed),
        ];
        load(Some(&fixture("valid/empty.toml")), &URLS, &set).is_ok()
    };
    for (address, here) in [
        ("127.0.0.1:9464", true),
        ("[::1]:9464", true),
        ("127.9.9.9:9464", true),
        ("0.0.0.0:9464", false),
        ("[::]:9464", false),
        ("192.0.2.1:9464", false),
        ("[2001:db8::1]:9464", false),
        ("[::ffff:192.0.2.1]:9464", false),
    ] {
        assert_eq!(listens(address, "false"), here, "{address}");
        assert!(listens(address, "true"), "{address}");
    }
}

#[test]
fn debug_of_the_whole_configuration_shows_no_secret() {
    let config = load(Some(&fixture("valid/empty.toml")), &URLS, &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_certificate_that_expired_or_belongs_to_another_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let key = || rcgen::KeyPair::generate().unwrap();
    let (one, other) = (key(), key());
    let good = rcgen::CertificateParams::new(vec!["relay".to_owned()]).unwrap();
    let mut old = good.clone();
    old.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let good = write("good.pem", good.self_signed(&one).unwrap().pem());
    let old = write("old.pem", old.self_signed(&one).unwrap().pem());
    let one = write("one.key", one.serialize_pem());
    let other = write("other.key", other.serialize_pem());

    let text = write("text.pem", "hunter2\n".to_owned());
    let refused = |set: &[(&str, &str)]| {
        let amqps = [("AMQP_URL", "amqps://relay:p@localhost"), URLS[0]];
        load(Some(&fixture("valid/empty.toml")), &amqps, set)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert_eq!(
        refused(&[("broker.cert_file", &good), ("broker.key_file", &one)]),
        ""
    );
    let mismatch = refused(&[("broker.cert_file", &good), ("broker.key_file", &other)]);
    assert!(
        mismatch.contains("broker.cert_file: the certificate and key do not work together"),
        "{mismatch}"
    );
    let expired = refused(&[("broker.cert_file", &old), ("broker.key_file", &one)]);
    assert!(expired.contains("expired on"), "{expired}");
    for section in ["broker", "database"] {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|part| format!("{section}.{part}_file"));
        for (set, key) in [
            (&[(ca.as_str(), text.as_str())][..], &ca),
            (&[(&ca, &one)], &ca),
            (&[(&cert, &one), (&key, &one)], &cert),
        ] {
            let refused = refused(set);
            let says =
                refused.contains(&format!("{key}: ")) && refused.contains("no PEM certificate");
            assert!(says && !refused.contains("hunter2"), "{refused}");
        }
        let refused = refused(&[(&cert, &good), (&key, &text)]);
        assert!(
            refused.contains(&cert) && refused.contains(&text),
            "{refused}"
        );
    }
    let authority = refused(&[("broker.ca_file", &old)]);
    assert!(
        authority.contains("broker.ca_file: ") && authority.contains("expired on"),
        "{authority}"
    );
}
