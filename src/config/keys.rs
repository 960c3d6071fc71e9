//! Every key: its default, what it takes, what it is for. `docs/configuration.md` and `config/outboxd.toml` are
//! generated from this table (`cargo xtask docs`), and the reader takes the defaults from it.

use std::fmt::Write;

#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted, as in `--set`; `OUTBOXD__` and `__` for the dots make it an environment variable.
    pub name: &'static str,
    /// As it would be written in TOML; `None` when there is no default.
    pub default: Option<&'static str>,
    pub takes: &'static str,
    pub meaning: &'static str,
}

const fn key(
    name: &'static str,
    default: Option<&'static str>,
    takes: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        default,
        takes,
        meaning,
    }
}

/// Sections, in the order of the documents.
const SECTIONS: &[(&str, &str)] = &[
    (
        "database",
        "The service's PostgreSQL. Also read from `DATABASE_URL`.",
    ),
    ("broker", "RabbitMQ. Also read from `AMQP_URL`."),
    ("relay", "Claim, publish, settle."),
    ("routing", "Where messages go."),
    ("retention", "How long sent messages are kept."),
    ("admin", "HTTP: /metrics, /livez, /readyz."),
    ("log", "Logs, on standard error."),
];

pub const KEYS: &[Key] = &[
    key(
        "database.url",
        None,
        "postgres:// URL or key=value text; secret",
        "Where the outbox is. sslmode: `disable`, `prefer`, `require`, `verify-ca`, `verify-full`; from `require` on the chain and the host name are always verified. Without sslmode: plaintext to this host, verified TLS to any other. Several hosts and `target_session_attrs=read-write` are honoured.",
    ),
    key(
        "database.url_file",
        None,
        "path",
        "A file that holds the URL, read again at every connect.",
    ),
    key(
        "database.password_file",
        None,
        "path",
        "A file that holds the password, read again at every connect, so that a rotated one needs no restart.",
    ),
    key(
        "database.ca_file",
        None,
        "path to PEM",
        "Certificate authorities to trust instead of the system's.",
    ),
    key(
        "database.cert_file",
        None,
        "path to PEM",
        "Client certificate; with `key_file`.",
    ),
    key("database.key_file", None, "path to PEM", "Its private key."),
    key(
        "database.connect_timeout",
        Some("\"5s\""),
        "100ms to 5m",
        "Bound on reaching a host; twice this for the whole connect. Each of several hosts has its own time.",
    ),
    key(
        "database.statement_timeout",
        Some("\"30s\""),
        "100ms to 1h",
        "The server ends a statement after this; the relay gives up on the connection 5 s later.",
    ),
    key(
        "database.lock_timeout",
        Some("\"5s\""),
        "10ms to 1h",
        "How long a statement waits for a lock, for example during a schema migration.",
    ),
    key(
        "database.idle_in_transaction_timeout",
        Some("\"60s\""),
        "1s to 1h; above relay.confirm_timeout",
        "The server ends a claim that was silent for so long: a relay that stalled cannot hold its lanes.",
    ),
    key(
        "database.prepared_statements",
        Some("true"),
        "true or false",
        "Off behind PgBouncer in transaction mode.",
    ),
    key(
        "database.listen",
        Some("true"),
        "true or false",
        "Off behind PgBouncer in transaction mode: then the relay only polls.",
    ),
    key(
        "database.allow_plaintext",
        Some("false"),
        "true or false",
        "Allows sslmode `disable` or `prefer` to another host.",
    ),
    key(
        "broker.url",
        None,
        "amqp:// or amqps:// URL; secret",
        "Where messages go. User and password are part of it (or `password_file`, or `auth = \"external\"`); without a path the virtual host is `/`.",
    ),
    key(
        "broker.url_file",
        None,
        "path",
        "A file that holds the URL, read again at every connect.",
    ),
    key(
        "broker.password_file",
        None,
        "path",
        "A file that holds the password, read again at every connect, so that a rotated one needs no restart.",
    ),
    key(
        "broker.ca_file",
        None,
        "path to PEM",
        "Certificate authorities to trust instead of the system's.",
    ),
    key(
        "broker.cert_file",
        None,
        "path to PEM",
        "Client certificate; with `key_file`.",
    ),
    key("broker.key_file", None, "path to PEM", "Its private key."),
    key(
        "broker.auth",
        Some("\"plain\""),
        "plain or external",
        "`external`: the client certificate says who we are (SASL EXTERNAL).",
    ),
    key(
        "broker.connect_timeout",
        Some("\"5s\""),
        "100ms to 5m",
        "Bound on TCP and TLS, and again on the AMQP handshake.",
    ),
    key(
        "broker.heartbeat",
        Some("\"10s\""),
        "5s to 10m",
        "A broker that is silent for two of these is given up.",
    ),
    key(
        "broker.declare",
        Some("false"),
        "true or false",
        "Declares the configured exchanges (durable, topic) at every connect. For development; elsewhere topology has an owner.",
    ),
    key(
        "broker.allow_plaintext",
        Some("false"),
        "true or false",
        "Allows amqp:// to another host.",
    ),
    key(
        "relay.workers",
        Some("4"),
        "1 to 64",
        "Each has one connection to either server. Two are enough to overlap publishing and settling.",
    ),
    key(
        "relay.batch_size",
        Some("500"),
        "1 to 10000",
        "Messages in one claim. A crash repeats `workers × batch_size` messages at most.",
    ),
    key(
        "relay.batch_bytes",
        Some("\"16MiB\""),
        "1KiB to 1GiB; at least max_payload_bytes",
        "Bytes of bodies in one claim.",
    ),
    key(
        "relay.max_payload_bytes",
        Some("\"8MiB\""),
        "1 to 512MiB",
        "A larger body is dead with reason `payload_too_large`. RabbitMQ 4 has a limit of its own: 16 MiB.",
    ),
    key(
        "relay.poll_interval",
        Some("\"1s\""),
        "10ms to 1h",
        "How often a sleeping relay looks for itself, whatever it was told.",
    ),
    key(
        "relay.confirm_timeout",
        Some("\"30s\""),
        "100ms to 30m; below database.idle_in_transaction_timeout",
        "Without the broker's answer for so long, the connection is discarded and the batch stays pending.",
    ),
    key(
        "relay.max_attempts",
        Some("20"),
        "1 to 1000000",
        "Attempts before a message is dead. With the default back-off, the last is about half an hour after the first, an hour at most.",
    ),
    key(
        "relay.backoff_initial",
        Some("\"1s\""),
        "1ms to 1h",
        "Ceiling of the first delay; it doubles with every attempt. The delay is drawn between zero and the ceiling.",
    ),
    key(
        "relay.backoff_max",
        Some("\"5m\""),
        "1ms to 7d; at least backoff_initial",
        "Ceiling of every delay.",
    ),
    key(
        "relay.ordering",
        Some("\"strict\""),
        "strict or pipelined",
        "`strict`: the next message of a key is published when the one before it is confirmed. `pipelined`: faster for a hot key; a nack can break its order.",
    ),
    key(
        "relay.shutdown_grace",
        Some("\"40s\""),
        "100ms to 1h; above confirm_timeout",
        "After SIGTERM, how long what is published may take to be settled.",
    ),
    key(
        "relay.app_id",
        Some("\"outboxd\""),
        "1 to 255 bytes",
        "The AMQP app_id of every message: name the service that wrote it.",
    ),
    key(
        "routing.exchange",
        Some("\"events\""),
        "at most 255 bytes",
        "Exchange of messages that name none.",
    ),
    key(
        "routing.routing_key",
        Some("\"{aggregate_type}.{event_type}\""),
        "pattern",
        "Routing key of messages that name none. Placeholders: `{aggregate_type}`, `{aggregate_id}`, `{event_type}`.",
    ),
    key(
        "routing.allowed_exchanges",
        None,
        "list",
        "When set: a row that names an exchange outside this list and the configured ones is dead with reason `exchange_not_allowed`.",
    ),
    key(
        "routing.mandatory",
        Some("true"),
        "true or false",
        "A message that no queue takes comes back, and is tried again. Off: it is gone, as RabbitMQ does it by default.",
    ),
    key(
        "routing.format",
        Some("\"plain\""),
        "plain or cloudevents",
        "`cloudevents` adds the attributes of CloudEvents' binary mode as headers.",
    ),
    key(
        "routing.cloudevents_source",
        None,
        "URI reference",
        "The CloudEvents `source`, for example `/shop/orders`; needed for `cloudevents`.",
    ),
    key(
        "routing.routes",
        Some("[]"),
        "[[routing.routes]] tables",
        "Exceptions to the above; the first that fits wins. Each has `aggregate_type` and `event_type` (exact, or a beginning followed by `*`), and `exchange`, `routing_key`, `mandatory`.",
    ),
    key(
        "retention.sent",
        Some("\"7d\""),
        "0s to 10y",
        "How long sent messages are kept for replay and audit. `0s`: the settle deletes them.",
    ),
    key(
        "retention.step_rows",
        Some("1000"),
        "1 to 100000",
        "Rows that one step of the pruning looks at.",
    ),
    key(
        "retention.interval",
        Some("\"30s\""),
        "1s to 1d",
        "Pause between two rounds of pruning.",
    ),
    key(
        "admin.listen",
        Some("\"127.0.0.1:9464\""),
        "address:port, or off",
        "Where HTTP is served. `/metrics` and `/readyz` need no password, hence loopback by default.",
    ),
    key(
        "admin.allow_non_loopback",
        Some("false"),
        "true or false",
        "Allows another address than loopback, for example in a container.",
    ),
    key(
        "log.format",
        Some("\"auto\""),
        "auto, human or json",
        "`auto`: human on a terminal, else JSON.",
    ),
    key(
        "log.level",
        Some("\"info\""),
        "error, warn, info, debug, trace, or a tracing filter",
        "For example `info,outboxd::relay=debug`.",
    ),
];

/// Keys of one `[[source]]`, besides its own `database` and `broker` sections.
pub const SOURCE_NAME: &str = "name";
/// Keys of one `[[routing.routes]]`.
pub const ROUTE_KEYS: &[&str] = &[
    "aggregate_type",
    "event_type",
    "exchange",
    "routing_key",
    "mandatory",
];

pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
        .filter(move |key| key.name.split('.').next() == Some(section))
}

/// `docs/configuration.md`.
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
                key.name, key.takes, key.meaning
            );
        }
    }
    text.push_str(REFERENCE_TAIL);
    text
}

/// `config/outboxd.toml`: every key at its default; those without one commented out.
pub fn example() -> String {
    let mut text = String::from(EXAMPLE_HEAD);
    for (section, meaning) in SECTIONS {
        let _ = write!(text, "\n# {meaning}\n[{section}]\n");
        for key in of(section) {
            let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
            let _ = writeln!(text, "# {} ({})", key.meaning, key.takes);
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
# outboxd: every key, at its default. Generated; docs/configuration.md has the same as tables.
# Read from config/outboxd.toml or --config FILE. The environment (OUTBOXD__RELAY__WORKERS=8) and
# --set relay.workers=8 win over this file.
";

const REFERENCE_HEAD: &str = "\
# Configuration

Generated from the code by `cargo xtask docs`; checked by the tests.

Later wins: defaults, then `config/outboxd.toml` (or `--config FILE`), then `DATABASE_URL` and `AMQP_URL`, then the
environment, then `--set KEY=VALUE`. The environment variable of a key is `OUTBOXD__` and the key in capitals with `__`
for its dots: `relay.batch_size` is `OUTBOXD__RELAY__BATCH_SIZE`. Names with a single `_` after `OUTBOXD` are left alone:
Kubernetes puts some there.

- An unknown key, a value out of range or a contradiction ends the start with exit code 78 and names every key at fault.
- Durations have units: `250ms`, `5s`, `7d`, `1h 30m`. Sizes are bytes, or have `KiB`, `MiB`, `GiB`.
- Lists in the environment are separated by commas.
- A secret is given as a value or as a file, not both. The file must not be empty or readable by everybody; one newline at
  its end is ignored.
- `outboxd check` validates all of it without opening a connection; `outboxd check --connect` also asks both servers.
";

const REFERENCE_TAIL: &str = "
## Several databases

With `[[source]]` tables one process relays several databases, each with its own workers and connections; what fails in
one does not touch the others. A source has a `name`, its own `database` and `broker` keys, and takes those it leaves out
from the sections above, URLs and secrets of the same server aside. Metrics then carry a label `source`, and commands that
act on one database take `--source NAME`.

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
