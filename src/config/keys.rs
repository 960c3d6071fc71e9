//! Every key: its default, its values, its meaning. `cargo xtask docs` generates `docs/reference/configuration.md` and
//! `config/outboxd.toml` from this table; the reader takes the defaults from it, and checks values by it.

use std::{fmt::Write, time::Duration};

use outbox_core::limits::SHORT;

use super::takes::Takes;

#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted, as in `--set`. The environment variable is `OUTBOXD__` and the name, with `__` for each dot.
    pub name: &'static str,
    /// The default in TOML; `None` if there is none.
    pub default: Option<&'static str>,
    pub takes: Takes,
    /// A rule that `takes` does not express, most often a relation to another key. `sections` checks it; this text is for the
    /// documents.
    rule: Option<&'static str>,
    pub meaning: &'static str,
}

impl Key {
    /// The default as the environment would give it: a text has no quotes.
    pub(super) fn plain_default(&self) -> Option<&'static str> {
        self.default.map(|default| default.trim_matches('"'))
    }

    /// What the documents say about the values.
    pub(super) fn values(&self) -> String {
        match self.rule {
            Some(rule) => format!("{}; {rule}", self.takes),
            None => self.takes.to_string(),
        }
    }
}

const fn key(
    name: &'static str,
    default: Option<&'static str>,
    takes: Takes,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        default,
        takes,
        rule: None,
        meaning,
    }
}

const fn key_with_rule(
    name: &'static str,
    default: Option<&'static str>,
    takes: Takes,
    rule: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        rule: Some(rule),
        ..key(name, default, takes, meaning)
    }
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY + DAY / 4;

/// A duration; the bounds are milliseconds.
const fn time(least: u64, most: u64) -> Takes {
    Takes::Duration(Duration::from_millis(least), Duration::from_millis(most))
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sections, in the order of the documents.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "database",
        "The service's PostgreSQL. Also read from `DATABASE_URL`.",
    ),
    ("broker", "RabbitMQ. Also read from `AMQP_URL`."),
    ("relay", "Claim, publish, settle."),
    ("routing", "Exchange and routing key of each message."),
    ("retention", "Time that sent messages stay."),
    ("admin", "HTTP: /metrics, /livez, /readyz."),
    ("log", "Logs, on standard error."),
];

/// The only key that a reload (SIGHUP) applies.
pub const LOG_LEVEL: &str = "log.level";

pub const KEYS: &[Key] = &[
    key(
        "database.url",
        None,
        Takes::Database,
        "The database with the outbox. sslmode: `disable`, `prefer`, `require`, `verify-ca`, `verify-full`; from `require` on the relay always verifies the chain and the host name. Without sslmode: plaintext to this host, verified TLS to any other. Several hosts and `target_session_attrs=read-write` work. The relay honours the parameters of libpq, platforms and ORMs, ignores those without a meaning here (of pools, `schema`, `application_name`, keepalives: the relay has its own), and refuses the others: the error names the parameter and says what to write instead.",
    ),
    key(
        "database.url_file",
        None,
        Takes::Described("path"),
        "File that holds the URL. The relay reads it at every connect.",
    ),
    key(
        "database.password_file",
        None,
        Takes::Described("path"),
        "File that holds the password. The relay reads it at every connect, so a rotated password needs no restart.",
    ),
    key(
        "database.ca_file",
        None,
        Takes::Described("path to PEM"),
        "Certificate authorities to trust instead of the system's.",
    ),
    key(
        "database.cert_file",
        None,
        Takes::Described("path to PEM"),
        "Client certificate; with `key_file`.",
    ),
    key(
        "database.key_file",
        None,
        Takes::Described("path to PEM"),
        "Private key of the client certificate.",
    ),
    key(
        "database.connect_timeout",
        Some("\"5s\""),
        time(100, 5 * MINUTE),
        "Maximum time to reach a host; the whole connect may take twice as long. Each of several hosts has its own time. A `connect_timeout` in the URL wins.",
    ),
    key(
        "database.statement_timeout",
        Some("\"30s\""),
        time(100, HOUR),
        "The server ends a statement after this time; the relay gives up the connection 5 s later.",
    ),
    key(
        "database.lock_timeout",
        Some("\"5s\""),
        time(10, HOUR),
        "Maximum time that a statement waits for a lock, for example during a schema migration.",
    ),
    key_with_rule(
        "database.idle_in_transaction_timeout",
        Some("\"60s\""),
        time(SECOND, HOUR),
        "above five fourths of relay.confirm_timeout",
        "The server ends a claim that is silent for this time, so a stalled relay cannot hold its lanes.",
    ),
    key(
        "database.prepared_statements",
        Some("true"),
        Takes::Flag,
        "Turn it off behind PgBouncer in transaction mode.",
    ),
    key(
        "database.listen",
        Some("true"),
        Takes::Flag,
        "Turn it off behind PgBouncer in transaction mode: the relay then only polls.",
    ),
    key(
        "database.allow_plaintext",
        Some("false"),
        Takes::Flag,
        "Allows sslmode `disable` or `prefer` to another host.",
    ),
    key(
        "broker.url",
        None,
        Takes::Broker,
        "The broker. The URL has user and password (or use `password_file`, or `auth = \"external\"`); without a path the virtual host is `/`.",
    ),
    key(
        "broker.url_file",
        None,
        Takes::Described("path"),
        "File that holds the URL. The relay reads it at every connect.",
    ),
    key(
        "broker.password_file",
        None,
        Takes::Described("path"),
        "File that holds the password. The relay reads it at every connect, so a rotated password needs no restart.",
    ),
    key(
        "broker.ca_file",
        None,
        Takes::Described("path to PEM"),
        "Certificate authorities to trust instead of the system's.",
    ),
    key(
        "broker.cert_file",
        None,
        Takes::Described("path to PEM"),
        "Client certificate; with `key_file`.",
    ),
    key(
        "broker.key_file",
        None,
        Takes::Described("path to PEM"),
        "Its private key.",
    ),
    key(
        "broker.auth",
        Some("\"plain\""),
        Takes::Word(&["plain", "external"]),
        "`external`: the client certificate is the identity (SASL EXTERNAL).",
    ),
    key(
        "broker.connect_timeout",
        Some("\"5s\""),
        time(100, 5 * MINUTE),
        "Maximum time for TCP and TLS, and again for the AMQP handshake.",
    ),
    key_with_rule(
        "broker.heartbeat",
        Some("\"10s\""),
        time(5 * SECOND, 10 * MINUTE),
        "whole seconds",
        "The relay gives up a broker that is silent for two of these.",
    ),
    key(
        "broker.declare",
        Some("false"),
        Takes::Flag,
        "The relay declares the configured exchanges (durable, topic) at every connect. For development; in production the topology has an owner.",
    ),
    key(
        "broker.allow_plaintext",
        Some("false"),
        Takes::Flag,
        "Allows amqp:// to another host.",
    ),
    key(
        "relay.workers",
        Some("4"),
        Takes::Integer(1, 64),
        "Each worker has one connection to PostgreSQL and one to RabbitMQ. Two workers are enough to overlap publishing and settling.",
    ),
    key(
        "relay.batch_size",
        Some("500"),
        Takes::Integer(1, 10_000),
        "Maximum number of messages in one claim. A crash repeats at most `workers × batch_size` messages.",
    ),
    key_with_rule(
        "relay.batch_bytes",
        Some("\"16MiB\""),
        Takes::Size(KIB, 1024 * MIB),
        "at least max_payload_bytes",
        "Maximum bytes of bodies in one claim.",
    ),
    key(
        "relay.max_payload_bytes",
        Some("\"8MiB\""),
        Takes::Size(1, 512 * MIB),
        "A message with a larger body is dead with reason `payload_too_large`. RabbitMQ 4 has a limit of its own: 16 MiB.",
    ),
    key(
        "relay.poll_interval",
        Some("\"1s\""),
        time(10, HOUR),
        "Maximum time between polls when idle, even without a notification.",
    ),
    key_with_rule(
        "relay.confirm_timeout",
        Some("\"30s\""),
        time(100, 30 * MINUTE),
        "below four fifths of database.idle_in_transaction_timeout",
        "Maximum time to wait for the broker's answer. After it the relay discards the connection, and the batch stays pending.",
    ),
    key(
        "relay.max_attempts",
        Some("20"),
        Takes::Integer(1, 1_000_000),
        "Attempts before a message is dead. With the default back-off, the last attempt is about half an hour after the first, and an hour at most.",
    ),
    key(
        "relay.backoff_initial",
        Some("\"1s\""),
        time(1, HOUR),
        "Ceiling of the first delay; the ceiling doubles with every attempt. The relay draws the delay between zero and the ceiling.",
    ),
    key_with_rule(
        "relay.backoff_max",
        Some("\"5m\""),
        time(1, 7 * DAY),
        "at least backoff_initial",
        "Maximum of any delay.",
    ),
    key(
        "relay.ordering",
        Some("\"strict\""),
        Takes::Word(&["strict", "pipelined"]),
        "`strict`: the relay publishes the next message of a key when the one before it is confirmed. `pipelined`: faster for a hot key; a message that is not delivered does not hold back the messages behind it.",
    ),
    key_with_rule(
        "relay.shutdown_grace",
        Some("\"40s\""),
        time(100, HOUR),
        "above confirm_timeout",
        "After SIGTERM, maximum time to settle the messages that are already published.",
    ),
    key(
        "relay.app_id",
        Some("\"outboxd\""),
        Takes::Text(1, SHORT),
        "AMQP app_id of every message: the name of the service that writes them.",
    ),
    key(
        "routing.exchange",
        Some("\"events\""),
        Takes::Text(0, SHORT),
        "Exchange of messages whose row names no exchange.",
    ),
    key_with_rule(
        "routing.routing_key",
        Some("\"{aggregate_type}.{event_type}\""),
        Takes::Text(0, SHORT),
        "a pattern",
        "Routing key of messages whose row names no routing key. Placeholders: `{aggregate_type}`, `{aggregate_id}`, `{event_type}`.",
    ),
    key(
        "routing.allowed_exchanges",
        None,
        Takes::List,
        "Exchanges that a row may name besides the configured ones; a row that names another is dead with reason `exchange_not_allowed`. Not set: a row may name any exchange but the default exchange `\"\"`, by which it reaches every queue. Empty: a row may name no other exchange. Only the file can allow the default exchange, with an array that has the item `\"\"`; an empty item of the environment or of `--set` is an error.",
    ),
    key(
        "routing.mandatory",
        Some("true"),
        Takes::Flag,
        "RabbitMQ returns a message that no queue takes, and the relay tries it again. Off: such a message is lost, which is RabbitMQ's default. An answer by direct reply-to is never mandatory.",
    ),
    key(
        "routing.format",
        Some("\"plain\""),
        Takes::Word(&["plain", "cloudevents"]),
        "`cloudevents` adds the attributes of CloudEvents' binary mode as headers.",
    ),
    key(
        "routing.cloudevents_source",
        None,
        Takes::Described("URI reference"),
        "The CloudEvents `source`, for example `/shop/orders`; needed for `cloudevents`.",
    ),
    key(
        "routing.routes",
        Some("[]"),
        Takes::Routes,
        "Exceptions to the keys above; the first match wins. Each has `aggregate_type` and `event_type` (exact, or a beginning followed by `*`), and `exchange`, `routing_key`, `mandatory`, and `allowed_exchanges` (the exchanges that its rows may name besides `exchange`, in place of the list above).",
    ),
    key(
        "retention.sent",
        Some("\"7d\""),
        time(0, 10 * YEAR),
        "Time that sent messages stay, for replay and audit. `0s`: the settle deletes them.",
    ),
    key(
        "retention.step_rows",
        Some("1000"),
        Takes::Integer(1, 100_000),
        "Rows that one step of pruning reads.",
    ),
    key(
        "retention.interval",
        Some("\"30s\""),
        time(SECOND, DAY),
        "Pause between two rounds of pruning.",
    ),
    key(
        "admin.listen",
        Some("\"127.0.0.1:9464\""),
        Takes::Address,
        "Address of the HTTP server. `/metrics` and `/readyz` need no password, hence loopback by default.",
    ),
    key(
        "admin.allow_non_loopback",
        Some("false"),
        Takes::Flag,
        "Allows another address than loopback, for example in a container.",
    ),
    key(
        "log.format",
        Some("\"auto\""),
        Takes::Word(&["auto", "human", "json"]),
        "`auto`: human on a terminal, JSON elsewhere.",
    ),
    key_with_rule(
        LOG_LEVEL,
        Some("\"info\""),
        Takes::Text(1, 1000),
        "error, warn, info, debug, trace, or a tracing filter",
        "For example `info,outboxd::relay=debug`. Lines of libraries are never logged, because they may hold payloads. SIGHUP applies a change without a restart.",
    ),
];

/// Keys of one `[[source]]`, besides its own `database` and `broker` sections.
pub const SOURCE_NAME: &str = "name";
/// Keys of one `[[routing.routes]]`.
pub(super) const ROUTE_KEYS: [(&str, Takes); 6] = [
    ("aggregate_type", Takes::Described("pattern")),
    ("event_type", Takes::Described("pattern")),
    ("exchange", Takes::Described("name")),
    ("routing_key", Takes::Described("pattern")),
    ("mandatory", Takes::Flag),
    ("allowed_exchanges", Takes::List),
];

/// What a key of a route takes, by its full name: `routing.routes.0.exchange`.
pub(super) fn of_route(name: &str) -> Option<Takes> {
    let (number, key) = name.strip_prefix("routing.routes.")?.split_once('.')?;
    number.parse::<usize>().ok()?;
    let known = ROUTE_KEYS.iter().find(|(known, _)| *known == key)?;
    Some(known.1)
}

pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
        .filter(move |key| key.name.split('.').next() == Some(section))
}

/// `docs/reference/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(REFERENCE_HEAD);
    for (section, meaning) in SECTIONS {
        let _ = write!(
            text,
            "\n## {section}\n\n{meaning}\n\n| key | default | takes | |\n|---|---|---|---|\n"
        );
        for key in of(section) {
            let default = key.default.map_or("—".to_owned(), |d| format!("`{d}`"));
            let _ = writeln!(
                text,
                "| `{}` | {default} | {} | {} |",
                key.name,
                key.values(),
                key.meaning
            );
        }
    }
    text.push_str(REFERENCE_TAIL);
    text
}

/// `config/outboxd.toml`: every key at its default; keys without a default are commented out.
pub fn example() -> String {
    let mut text = String::from(EXAMPLE_HEAD);
    for (section, meaning) in SECTIONS {
        let _ = write!(text, "\n# {meaning}\n[{section}]\n");
        for key in of(section) {
            let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
            let _ = writeln!(text, "# {} ({})", key.meaning, key.values());
            match key.default {
                Some(default) => {
                    let _ = writeln!(text, "{name} = {default}");
                }
                None => {
                    let _ = writeln!(text, "# {name} =");
                }
            }
        }
    }
    text
}

const EXAMPLE_HEAD: &str = "\
# outboxd: every key, at its default. Generated; docs/reference/configuration.md has the same as tables.
# Read by --config FILE or OUTBOXD_CONFIG, or as config/outboxd.toml or /etc/outboxd/outboxd.toml. The environment
# (OUTBOXD__RELAY__WORKERS=8) and --set relay.workers=8 win over this file.
";

const REFERENCE_HEAD: &str = "\
# Configuration

`cargo xtask docs` generates this page from the code; a test compares the two.

The relay reads these in order, and a later one wins: defaults, the file, `DATABASE_URL` and `AMQP_URL`, the environment,
`--set KEY=VALUE`. The environment variable of a key is `OUTBOXD__` and the key in capitals with `__` for its dots:
`relay.batch_size` is `OUTBOXD__RELAY__BATCH_SIZE`. The relay ignores names with a single `_` after `OUTBOXD` (Kubernetes
sets some) but `OUTBOXD_CONFIG` and `OUTBOXD_SOURCE`, which stand for `--config` and `--source`.

The file is the first of these, and only one is read:

1. `--config FILE`
2. the file that `OUTBOXD_CONFIG` names
3. `config/outboxd.toml` in the working directory, if it exists
4. `/etc/outboxd/outboxd.toml`, if it exists

A named file that cannot be read is an error, and so is one of the other two that exists. `outboxd check` and the relay's
line `relay started` say which file was read, and who named it.

- An unknown key, a value out of range or a contradiction ends the start with exit code 78 and names every key at fault.
- Durations have units: `250ms`, `5s`, `7d`, `1h 30m`. Sizes are bytes, or have `KiB`, `MiB`, `GiB`.
- A list in the environment or in `--set` has a comma between two items. An empty value is an empty list, and an empty
  item is an error. A variable that is not UTF-8 text is an error, if the relay would read it.
- Give a secret as a value or as a file, not both. The file must not be empty, open to everybody or writable by its
  group. The relay ignores one newline at its end, and refuses pipes, devices and files of an unlikely size.
- SIGHUP reads the configuration again: the relay applies `log.level`, and its log names the keys that wait for a
  restart.
- `outboxd check` validates the configuration without a connection; `outboxd check --connect` also asks both servers.
- `outboxd config show` prints each key with the value that the relay would use, and where the value comes from: a default,
  a file, a variable or `--set`. It shows no password. `--json` is for scripts.
- `outboxd config schema` prints the JSON Schema of the file, which is also [here](outboxd.schema.json). It knows the names,
  the types and the bounds of the keys; `outboxd check` knows the rest. Editors with Taplo (Even Better TOML) read it by a
  first line `#:schema ./outboxd.schema.json`.
";

const REFERENCE_TAIL: &str = "
## Several databases

With `[[source]]` tables one process relays several databases, each with its own workers and connections. A failure in
one does not affect the others. A source has a `name` and its own `database` and `broker` keys. It takes the keys that
it leaves out from the sections above, except URLs and secrets of the same server. Metrics then carry a label `source`,
and commands that act on one database take `--source NAME`.

```toml
[[source]]
name = \"orders\"
database.url_file = \"/run/secrets/orders_database_url\"
broker.url_file = \"/run/secrets/broker_url\"

[[source]]
name = \"billing\"
database.url_file = \"/run/secrets/billing_database_url\"
broker.url_file = \"/run/secrets/broker_url\"
```

## Routes

```toml
[[routing.routes]]
aggregate_type = \"audit*\"
exchange = \"audit\"
routing_key = \"{aggregate_type}\"
mandatory = false
```
";
