//! Reads the sections, and checks what the table of keys cannot express: relations between keys, files, addresses.

use std::{collections::HashSet, net::IpAddr, path::PathBuf};

use outbox_core::{
    deadline::publishing_time,
    plan::Ordering,
    route::{Router, RoutingRules, Rule},
};

use super::{
    Admin, Broker, BrokerAuth, Config, ConfigFile, Database, Log, LogFormat, MessageFormat, Needs,
    Relay, Retention, Routing, Source,
    database::Url,
    keys::{ROUTE_KEYS, SOURCE_NAME},
    reader::Reader,
    scope::Scope,
};
use crate::tls;

/// Returns `None` if a key has no value because of a problem; the reader has the problem.
pub(super) fn config(reader: &mut Reader, needs: Needs) -> Option<Config> {
    let relay = relay(reader);
    let sources = sources(reader, &relay, needs);
    let routing = routing(reader)?;
    let retention = Retention {
        sent: reader.duration(&Scope::top(), "retention.sent"),
        step_rows: reader.integer("retention.step_rows"),
        interval: reader.duration(&Scope::top(), "retention.interval"),
    };
    let admin = admin(reader);
    let log = log(reader)?;
    Some(Config {
        file: ConfigFile::Absent,
        sources,
        relay,
        routing,
        retention,
        admin,
        log,
        given: Default::default(),
    })
}

fn relay(reader: &mut Reader) -> Relay {
    let top = Scope::top();
    let relay = Relay {
        workers: reader.integer("relay.workers"),
        batch_size: reader.integer("relay.batch_size"),
        batch_bytes: reader.size("relay.batch_bytes"),
        max_payload_bytes: reader.size("relay.max_payload_bytes"),
        poll_interval: reader.duration(&top, "relay.poll_interval"),
        confirm_timeout: reader.duration(&top, "relay.confirm_timeout"),
        max_attempts: reader.integer("relay.max_attempts"),
        backoff_initial: reader.duration(&top, "relay.backoff_initial"),
        backoff_max: reader.duration(&top, "relay.backoff_max"),
        ordering: reader
            .choice(
                &top,
                "relay.ordering",
                &[
                    ("strict", Ordering::Strict),
                    ("pipelined", Ordering::Pipelined),
                ],
            )
            .unwrap_or(Ordering::Strict),
        shutdown_grace: reader.duration(&top, "relay.shutdown_grace"),
        app_id: reader.text("relay.app_id"),
    };
    if relay.backoff_initial > relay.backoff_max && !relay.backoff_max.is_zero() {
        reader.problem(
            "relay.backoff_max",
            "must be at least relay.backoff_initial",
        );
    }
    if relay.shutdown_grace <= relay.confirm_timeout && !relay.shutdown_grace.is_zero() {
        reader.problem(
            "relay.shutdown_grace",
            format!(
                "{} must be above relay.confirm_timeout ({}): messages that are published when the stop comes wait for their confirms",
                humantime::format_duration(relay.shutdown_grace),
                humantime::format_duration(relay.confirm_timeout)
            ),
        );
    }
    if relay.batch_bytes < relay.max_payload_bytes && relay.batch_bytes != 0 {
        reader.problem(
            "relay.batch_bytes",
            "must be at least relay.max_payload_bytes",
        );
    }
    relay
}

fn sources(reader: &mut Reader, relay: &Relay, needs: Needs) -> Vec<Source> {
    let count = reader.tables("source");
    reader.no_tables("source");
    if count == 0 {
        return vec![source(
            reader,
            "default".to_owned(),
            &Scope::top(),
            relay,
            needs,
        )];
    }
    let mut names = HashSet::new();
    (0..count)
        .map(|i| {
            let scope = Scope::source(i);
            let key = format!("{}{SOURCE_NAME}", scope.prefix);
            let name = reader.own_text(&key).unwrap_or_default();
            let clean = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 63 || !name.chars().all(clean) {
                reader.problem(
                    &key,
                    "each [[source]] needs a name of 1 to 63 letters, digits, - or _",
                );
            } else if !names.insert(name.clone()) {
                reader.problem(&key, format!("\"{name}\" names two sources"));
            }
            source(reader, name, &scope, relay, needs)
        })
        .collect()
}

fn source(reader: &mut Reader, name: String, scope: &Scope, relay: &Relay, needs: Needs) -> Source {
    let database = database(reader, scope, needs.database);
    let most = publishing_time(database.idle_in_transaction_timeout);
    if relay.confirm_timeout >= most && !most.is_zero() {
        let limit = reader.found_as(scope, "database.idle_in_transaction_timeout");
        reader.problem(
            "relay.confirm_timeout",
            format!(
                "{} must be below four fifths of {limit} ({} of {}), or PostgreSQL ends the claim before the broker answers",
                humantime::format_duration(relay.confirm_timeout),
                humantime::format_duration(most),
                humantime::format_duration(database.idle_in_transaction_timeout)
            ),
        );
    }
    let broker = broker(reader, scope, needs.broker);
    Source {
        name,
        database,
        broker,
    }
}

/// They come from one section.
struct Secrets {
    scope: Scope,
    url: Url,
    password_file: Option<PathBuf>,
}

fn secrets(reader: &mut Reader, scope: &Scope, section: &str, needed: bool) -> Secrets {
    let url_key = format!("{section}.url");
    let file_key = format!("{section}.url_file");
    let scope = reader.secrets(scope, section);
    let full = |key: &str| format!("{}{key}", scope.prefix);
    let url = reader.own_text(&full(&url_key)).map(super::Secret::new);
    let file = reader.own_text(&full(&file_key)).map(PathBuf::from);
    let password_file = reader
        .own_text(&full(&format!("{section}.password_file")))
        .map(PathBuf::from);
    let url = match (url, file) {
        (Some(_), Some(_)) => {
            reader.problem(
                &full(&file_key),
                format!("{} is set as well; give one of them", full(&url_key)),
            );
            Url::None
        }
        (Some(url), None) => Url::Value(url),
        (None, Some(path)) => Url::File(path),
        (None, None) => {
            if needed && !reader.has(&full(&url_key)) && !reader.has(&full(&file_key)) {
                let variable = if section == "database" {
                    "DATABASE_URL"
                } else {
                    "AMQP_URL"
                };
                reader.problem(
                    &full(&url_key),
                    format!("is not set; set it, or {}, or {variable}", full(&file_key)),
                );
            }
            Url::None
        }
    };
    Secrets {
        scope,
        url,
        password_file,
    }
}

fn database(reader: &mut Reader, scope: &Scope, needed: bool) -> Database {
    let secrets = secrets(reader, scope, "database", needed);
    let database = Database {
        section: format!("{}database.", secrets.scope.prefix),
        url: secrets.url,
        password_file: secrets.password_file,
        ca_file: reader.path(scope, "database.ca_file"),
        cert_file: reader.path(scope, "database.cert_file"),
        key_file: reader.path(scope, "database.key_file"),
        connect_timeout: reader.duration(scope, "database.connect_timeout"),
        statement_timeout: reader.duration(scope, "database.statement_timeout"),
        lock_timeout: reader.duration(scope, "database.lock_timeout"),
        idle_in_transaction_timeout: reader.duration(scope, "database.idle_in_transaction_timeout"),
        prepared_statements: reader.flag(scope, "database.prepared_statements"),
        listen: reader.flag(scope, "database.listen"),
        allow_plaintext: reader.flag(scope, "database.allow_plaintext"),
    };
    if !database.prepared_statements && database.listen {
        let listen = reader.found_as(scope, "database.listen");
        reader.problem(
            &listen,
            "must be false when prepared_statements is: a pooled connection cannot listen",
        );
    }
    certificates(
        reader,
        scope,
        "database",
        &database.ca_file,
        &database.cert_file,
        &database.key_file,
    );
    if !matches!(database.url, Url::None)
        && let Err(error) = database.current()
    {
        reader.report(error);
    }
    database
}

fn broker(reader: &mut Reader, scope: &Scope, needed: bool) -> Broker {
    let secrets = secrets(reader, scope, "broker", needed);
    let broker = Broker {
        section: format!("{}broker.", secrets.scope.prefix),
        url: secrets.url,
        password_file: secrets.password_file,
        ca_file: reader.path(scope, "broker.ca_file"),
        cert_file: reader.path(scope, "broker.cert_file"),
        key_file: reader.path(scope, "broker.key_file"),
        auth: reader
            .choice(
                scope,
                "broker.auth",
                &[
                    ("plain", BrokerAuth::Plain),
                    ("external", BrokerAuth::External),
                ],
            )
            .unwrap_or(BrokerAuth::Plain),
        connect_timeout: reader.duration(scope, "broker.connect_timeout"),
        heartbeat: reader.duration(scope, "broker.heartbeat"),
        declare: reader.flag(scope, "broker.declare"),
        allow_plaintext: reader.flag(scope, "broker.allow_plaintext"),
    };
    if broker.heartbeat.subsec_nanos() != 0 {
        let heartbeat = reader.found_as(scope, "broker.heartbeat");
        reader.problem(&heartbeat, "must be whole seconds: AMQP negotiates seconds");
    }
    certificates(
        reader,
        scope,
        "broker",
        &broker.ca_file,
        &broker.cert_file,
        &broker.key_file,
    );
    if !matches!(broker.url, Url::None)
        && let Err(error) = broker.current()
    {
        reader.report(error);
    }
    broker
}

fn certificates(
    reader: &mut Reader,
    scope: &Scope,
    section: &str,
    ca: &Option<PathBuf>,
    cert: &Option<PathBuf>,
    key: &Option<PathBuf>,
) {
    let [ca_file, cert_file, key_file] = ["ca_file", "cert_file", "key_file"]
        .map(|name| reader.found_as(scope, &format!("{section}.{name}")));
    if let Some(path) = ca
        && let Err(error) = tls::check_authorities(path)
    {
        reader.problem(&ca_file, error.to_string());
    }
    match (cert, key) {
        (Some(cert), Some(key)) => {
            if let Err(error) = tls::check_identity(cert, key) {
                reader.problem(&cert_file, error.to_string());
            }
        }
        (Some(_), None) => reader.problem(&key_file, "is not set, and cert_file is"),
        (None, Some(_)) => reader.problem(&cert_file, "is not set, and key_file is"),
        (None, None) => {}
    }
}

fn routing(reader: &mut Reader) -> Option<Routing> {
    let formats = [
        ("plain", MessageFormat::Plain),
        ("cloudevents", MessageFormat::CloudEvents),
    ];
    let count = reader.tables("routing.routes");
    reader.no_tables("routing.routes");
    let routing = Routing {
        exchange: reader.text("routing.exchange"),
        routing_key: reader.text("routing.routing_key"),
        mandatory: reader.flag(&Scope::top(), "routing.mandatory"),
        allowed_exchanges: reader.list("routing.allowed_exchanges"),
        routes: (0..count).map(|i| rule(reader, i)).collect(),
        format: reader.choice(&Scope::top(), "routing.format", &formats)?,
        cloudevents_source: reader.own_text("routing.cloudevents_source"),
    };
    if routing.format == MessageFormat::CloudEvents && routing.cloudevents_source.is_none() {
        reader.problem(
            "routing.cloudevents_source",
            "is not set, and routing.format = \"cloudevents\" needs it",
        );
    }
    if let Err(error) = Router::new(RoutingRules::from(&routing)) {
        let problem = error.to_string();
        reader.problem(
            error.key(),
            problem
                .trim_start_matches(error.key())
                .trim_start_matches(": "),
        );
    }
    Some(routing)
}

fn rule(reader: &mut Reader, index: usize) -> Rule {
    let key = |name: &str| format!("routing.routes.{index}.{name}");
    let [
        aggregate_type,
        event_type,
        exchange,
        routing_key,
        mandatory,
        allowed_exchanges,
    ] = ROUTE_KEYS.map(|(name, _)| name);
    Rule {
        aggregate_type: reader.own_text(&key(aggregate_type)),
        event_type: reader.own_text(&key(event_type)),
        exchange: reader.own_text(&key(exchange)),
        routing_key: reader.own_text(&key(routing_key)),
        mandatory: reader.item_flag(&key(mandatory)),
        allowed_exchanges: reader.list(&key(allowed_exchanges)),
    }
}

fn admin(reader: &mut Reader) -> Admin {
    let listen = reader.address("admin.listen");
    let allowed = reader.flag(&Scope::top(), "admin.allow_non_loopback");
    if let Some(address) = listen {
        let ip: IpAddr = address.ip().to_canonical();
        if !ip.is_loopback() && !allowed {
            reader.problem(
                "admin.listen",
                format!("{address} can be reached from other hosts, without a password; set admin.allow_non_loopback = true if that is meant"),
            );
        }
    }
    Admin { listen }
}

fn log(reader: &mut Reader) -> Option<Log> {
    let formats = [
        ("auto", LogFormat::Auto),
        ("human", LogFormat::Human),
        ("json", LogFormat::Json),
    ];
    let format = reader.choice(&Scope::top(), "log.format", &formats)?;
    let level = reader.text("log.level");
    // tracing-subscriber 0.3.23 panics for some of these characters instead of refusing them.
    if !level.is_ascii() {
        let problem =
            "contains characters that are not ASCII; write for example info,outboxd=debug";
        reader.problem("log.level", problem);
    } else if let Err(error) = super::log::log_filter(&level) {
        reader.problem("log.level", error.to_string());
    }
    Some(Log { format, level })
}
