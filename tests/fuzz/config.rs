//! Configuration: whatever text, environment and flags, it loads, or every problem names its key; and no secret shows.

use std::{collections::BTreeMap, io::Write, path::Path, time::Duration};

use outbox_core::{
    deadline::publishing_time,
    route::{Router, RoutingRules},
};
use outboxd::config::{Config, ConfigErrors, LoadOptions, Needs, keys};
use proptest::{prelude::*, test_runner::TestCaseResult};
use serde::{Deserialize, Serialize};

/// Part of every secret, and of nothing else.
const CANARY: &str = "cAnArY";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    toml: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    set: Vec<(String, String)>,
    /// Only in the corpus: `accepted`, or words of the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
}

fn values() -> Vec<&'static str> {
    let numbers = "0 1 -1 5 100 4294967296 18446744073709551615 99999999999999999999 0.5 1e9 NaN";
    let lengths = "0s 1ms 250ms 5s 30s 1h 7d -5s 9999999999y 1MiB 0B 16EiB 18446744073709551615EiB";
    let words =
        "true false yes off strict pipelined plain external cloudevents json human auto info";
    let places = "127.0.0.1:9464 0.0.0.0:9464 [::1]:0 localhost /nonexistent / /etc/hostname";
    let texts = "outboxd= [ { {aggregate_type} {nobody} events * a,b,,c é";
    let lists = [numbers, lengths, words, places, texts];
    let odd = ["", " ", "1y 2months", "a\r\nb", "\u{0}"];
    let all = lists.into_iter().flat_map(str::split_whitespace);
    all.chain(odd).collect()
}

fn urls() -> Vec<&'static str> {
    vec![
        "amqp://relay:cAnArY@localhost",
        "amqps://relay:cAnArY@mq.example",
        "amqp://relay:cAnArY@mq.example",
        "amqp://relay:cAnArY@h/",
        "amqp://relay:?cAnArY@h",
        "amqp://relay:1/cAnArY@h",
        "amqp://relay:#cAnArY@h",
        "amqp://relay:cAnArY%zz@h",
        "amqp://relay:cAnArY@a,b",
        "amqp://relay:cAnArY@127.1",
        "amqp://relay@localhost",
        "postgres://relay:cAnArY@localhost/shop",
        "postgres://relay:cAnArY@db.example/shop?sslmode=prefer",
        "postgres://relay:cAnArY@db.example/shop?sslmode=verify-full",
        "postgres://relay:cAnArY@db/shop?sslmode=cAnArY",
        "postgres://relay:cAn%zzArY@h/shop",
        "postgres://relay:cAnArY@h:port/shop",
        "postgres://relay:cA/cAnArY@h/shop",
        "postgres://relay:?sslmode=prefer&x=cAnArY@db.example/shop",
        "host=localhost user=relay password=cAnArY dbname=shop",
        "host=h user=relay password='cAnArY dbname=shop",
        "host=h password=cAnArY",
        "host=h user=relay cAnArY",
        "cAnArY",
        "",
        "postgres://relay:cAnArY@/shop",
        "postgres://[::1",
        "amqp://[::1",
    ]
}

fn key() -> impl Strategy<Value = String> {
    let known: Vec<&str> = keys::KEYS.iter().map(|key| key.name).collect();
    let sources = "0.name 1.name 0.database.url 0.broker.url 0.relay.workers 2.name 4000000000.name \
                   18446744073709551615.name -1.name x.name";
    let routes = "0.exchange 0.routing_key 9999999999.mandatory";
    let sources = sources
        .split_whitespace()
        .map(|key| format!("source.{key}"));
    let routes = routes
        .split_whitespace()
        .map(|key| format!("routing.routes.{key}"));
    let others = "source routing.routes broker.password database.password relay.worker relay unknown \
                  relay.workers.x";
    let others = others.split_whitespace().map(str::to_owned);
    let others: Vec<String> = others.chain(sources).chain(routes).collect();
    prop_oneof![
        8 => prop::sample::select(known).prop_map(str::to_owned),
        2 => prop::sample::select(others),
        1 => "[a-z_.é\n\"]{0,12}",
    ]
}

fn entry() -> impl Strategy<Value = (String, String)> {
    let value = prop_oneof![
        6 => prop::sample::select(values()).prop_map(str::to_owned),
        1 => "[0-9]{0,22}[a-zA-Z]{0,4}",
        1 => any::<String>(),
    ];
    (key(), value, prop::sample::select(urls())).prop_map(|(key, value, url)| {
        let secret = key.ends_with(".url") || key.ends_with(".password");
        (key, if secret { url.to_owned() } else { value })
    })
}

fn toml() -> impl Strategy<Value = String> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let line = (entry(), 0..4u8).prop_map(move |((key, value), how)| {
        // As a text, or as it stands: a number, a list, or no TOML at all.
        let value = if how == 0 { value } else { quoted(&value) };
        format!("{key} = {value}\n")
    });
    let lines = prop::collection::vec(line, 0..4)
        .prop_map(|lines| lines.concat())
        .boxed();
    let whole = prop::sample::select(vec![
        "[[source]]\nname = \"a\"\ndatabase.url = \"postgres://r:cAnArY@localhost/a\"\n",
        "[[source]]\n[[source]]\nname = 1\n",
        "[[routing.routes]]\naggregate_type = \"a*\"\nmandatory = 3\n",
        "[broker]\nurl = amqp://relay:cAnArY@localhost\n",
        "[broker]\nurl = \"amqp://relay:cAnArY\n@localhost\"\n",
        "broker.url = { password = \"cAnArY\" }\n",
        "broker.url = [\"amqp://relay:cAnArY@localhost\"]\n",
        "broker = \"amqp://relay:cAnArY@localhost\"\n",
        "[database\nurl = \"cAnArY\"\n",
        "source = []\n",
        "source = [1, {name = \"a\"}]\n",
        "relay.workers = 0x10\nrelay.batch_size = 1_000\n",
        "relay = 2026-01-01T00:00:00Z\n",
    ]);
    prop_oneof![
        4 => lines.clone(),
        2 => (lines, whole.clone()).prop_map(|(lines, whole)| lines + whole),
        1 => whole.prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn inputs() -> impl Strategy<Value = Input> {
    let variable = entry().prop_map(|(key, value)| {
        (
            format!("OUTBOXD__{}", key.replace('.', "__").to_uppercase()),
            value,
        )
    });
    let odd = prop::sample::select(vec![
        "OUTBOXD__",
        "OUTBOXD____",
        "OUTBOXD_PORT",
        "OUTBOXD__RELAY",
        "outboxd__relay__workers",
    ]);
    let variable =
        prop_oneof![8 => variable, 1 => odd.prop_map(|name| (name.to_owned(), "1".to_owned()))];
    let url = || prop_oneof![2 => Just(None), 1 => prop::sample::select(urls()).prop_map(Some)];
    let good = any::<bool>();
    (
        toml(),
        prop::collection::vec(variable, 0..3),
        prop::collection::vec(entry(), 0..3),
        url(),
        url(),
        good,
    )
        .prop_map(|(toml, env, set, database, broker, good)| {
            let mut env: BTreeMap<String, String> = env.into_iter().collect();
            // Most inputs have two good URLs, or nothing behind them would be looked at.
            let database = database.or(good.then_some("postgres://relay:cAnArY@localhost/shop"));
            let broker = broker.or(good.then_some("amqp://relay:cAnArY@localhost"));
            env.extend(database.map(|url| ("DATABASE_URL".to_owned(), url.to_owned())));
            env.extend(broker.map(|url| ("AMQP_URL".to_owned(), url.to_owned())));
            Input {
                toml,
                env,
                set,
                expect: None,
            }
        })
}

fn load(input: &Input, file: &Path) -> Result<Config, ConfigErrors> {
    Config::load(LoadOptions {
        file: Some(file.to_owned()),
        env: input
            .env
            .iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        overrides: input.set.clone(),
        needs: Needs {
            database: true,
            broker: true,
        },
    })
}

fn judge(input: &Input) -> TestCaseResult {
    let mut file = tempfile::Builder::new()
        .prefix("outboxd")
        .suffix(".toml")
        .tempfile()
        .unwrap();
    file.write_all(input.toml.as_bytes()).unwrap();
    let loaded = load(input, file.path());
    prop_assert_eq!(&loaded, &load(input, file.path()), "the same every time");
    if let Some(expect) = &input.expect {
        let said = loaded
            .as_ref()
            .map_or_else(ToString::to_string, |_| "accepted".to_owned());
        prop_assert!(said.contains(expect.as_str()), "{}", said);
    }
    match loaded {
        Ok(config) => accepted(&config),
        Err(errors) => refused(input, file.path(), &errors),
    }
}

fn accepted(config: &Config) -> TestCaseResult {
    let shown = format!("{config:?}");
    prop_assert!(!shown.contains(CANARY), "{}", shown);
    prop_assert!(!config.sources.is_empty());
    for source in &config.sources {
        // What was read at start can be read again at each connect.
        let broker = source.broker.current();
        let broker = broker.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(broker.tls || broker.is_loopback() || source.broker.allow_plaintext);
        prop_assert!(broker.username.is_some() && broker.password.is_some());
        prop_assert!(source.broker.heartbeat >= Duration::from_secs(5));
        let database = source.database.current();
        database.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let most = publishing_time(source.database.idle_in_transaction_timeout);
        prop_assert!(config.relay.confirm_timeout < most);
    }
    let relay = &config.relay;
    prop_assert!(
        relay.workers > 0
            && relay.batch_size > 0
            && relay.max_attempts > 0
            && relay.batch_bytes > 0
    );
    prop_assert!(!relay.poll_interval.is_zero() && !relay.confirm_timeout.is_zero());
    prop_assert!(relay.backoff_initial <= relay.backoff_max);
    let built = Router::new(RoutingRules::from(&config.routing));
    prop_assert!(built.is_ok(), "{:?}", built);
    Ok(())
}

fn refused(input: &Input, file: &Path, errors: &ConfigErrors) -> TestCaseResult {
    prop_assert!(!errors.0.is_empty());
    for error in &errors.0 {
        let shown = error.to_string();
        prop_assert!(!shown.contains(CANARY), "{}", shown);
        prop_assert!(
            !shown.contains(char::is_control),
            "{:?}: one line an error",
            shown
        );
        prop_assert!(
            !error.key.is_empty() && !error.problem.is_empty(),
            "{:?}",
            error
        );
        let key = error.key.as_str();
        // The last part that is no number of a table.
        let mut parts = key.rsplit('.').filter(|part| part.parse::<u64>().is_err());
        let last = parts.next().unwrap_or(key).to_lowercase();
        let given = input.toml.to_lowercase().contains(&last)
            || input.env.keys().any(|k| k.to_lowercase().contains(&last))
            || input
                .set
                .iter()
                .any(|(k, _)| k.to_lowercase().contains(&last));
        let known = keys::KEYS
            .iter()
            .any(|k| k.name == key || key.ends_with(&format!(".{}", k.name)));
        let place = key == "\"\""
            || key == format!("{} (named by --config)", file.display())
            || key == "environment";
        prop_assert!(
            known || given || place || last == "name" || key.contains('\\'),
            "{} is nobody's key: {}",
            key,
            shown
        );
    }
    Ok(())
}

#[test]
fn configuration() {
    crate::fuzz("config", &inputs(), judge);
}
