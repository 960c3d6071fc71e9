//! Metrics, health, logs.

use std::collections::HashMap;

pub use test_support::probe::get;
use test_support::{Proxy, eventually, probe};

use crate::world::{FARTHER, Gate, SOON, world};

/// Series without and with their labels, to their values.
pub async fn scrape(port: u16) -> Option<HashMap<String, f64>> {
    let (200, text) = get(port, "/metrics").await? else {
        return None;
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Some(
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(k, v)| (k.to_owned(), v.parse().unwrap()))
            .collect(),
    )
}

/// Waits until `/readyz` answers with this status, and each of the texts in its body.
pub async fn answers(port: u16, status: u16, texts: &[&str]) {
    let what = format!("{status} with {texts:?}");
    eventually(&what, SOON, async || {
        let (found, body) = get(port, "/readyz").await?;
        (found == status && texts.iter().all(|text| body.contains(text))).then_some(())
    })
    .await;
}

pub async fn until(port: u16, series: &str, test: impl Fn(f64) -> bool) {
    eventually(series, SOON, async || {
        scrape(port)
            .await?
            .get(series)
            .copied()
            .filter(|value| test(*value))
            .map(|_| ())
    })
    .await;
}

/// Seconds since 1970.
fn clock() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[tokio::test]
async fn every_metric_moves() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let (relay, port) = world.watched(&[
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "3"),
        ("OUTBOXD_FAILPOINT", "claim.after@4=panic"),
        ("OUTBOXD__RETENTION__SENT", "1s"),
        ("OUTBOXD__RETENTION__INTERVAL", "1s"),
    ]);
    relay.line("connected to both servers", SOON).await;
    for dependency in ["postgresql", "rabbitmq"] {
        let up = format!("outbox_dependency_up{{dependency=\"{dependency}\"}}");
        until(port, &up, |v| v == 1.0).await;
    }
    let start = scrape(port).await.unwrap();
    for at_zero in [
        "outbox_published_total",
        r#"outbox_dead_lettered_total{reason="unroutable"}"#,
        "outbox_broker_blocked",
        // A test of tests/suite/maintenance.rs moves this metric.
        r#"outbox_maintenance_failures_total{task="retention"}"#,
        // Row 73 of the fault matrix moves this metric: a full disk under the log.
        "outbox_log_lines_dropped_total",
    ] {
        assert_eq!(
            start.get(at_zero),
            Some(&0.0),
            "{at_zero} exists before it counts"
        );
    }
    let before = clock();
    for n in 0..200 {
        world.insert(Some(&n.to_string()), "good", "1", "").await;
    }
    world.insert(Some("x"), "nobody", "1", "").await;
    world.insert(Some("y"), "good", "1", "headers = '[]'").await;
    world
        .insert(
            Some("z"),
            "later",
            "1",
            "available_at = clock_timestamp() + interval '1 h'",
        )
        .await;
    consumer.until(200).await;

    for (series, least) in [
        ("outbox_published_total", 200.0),
        (r#"outbox_publish_failures_total{reason="unroutable"}"#, 3.0),
        (r#"outbox_retries_total{reason="unroutable"}"#, 2.0),
        ("outbox_pruned_total", 1.0),
    ] {
        until(port, series, |v| v >= least).await;
    }
    for (series, exactly) in [
        (r#"outbox_dead_lettered_total{reason="unroutable"}"#, 1.0),
        (
            r#"outbox_dead_lettered_total{reason="headers_invalid"}"#,
            1.0,
        ),
        ("outbox_dead_messages", 2.0),
        ("outbox_pending_messages", 1.0),
        ("outbox_worker_restarts_total", 1.0),
        ("outbox_schema_ok", 1.0),
    ] {
        until(port, series, |v| v == exactly).await;
    }
    assert_eq!(start.get("outbox_lanes_restored_total"), Some(&0.0));
    // This position is below every mark.
    world
        .sql(
            "INSERT INTO outbox.message (id, aggregate_type, event_type, payload) OVERRIDING SYSTEM VALUE \
             VALUES (-1, 'order', 'good', '1')",
        )
        .await;
    until(port, "outbox_stranded_messages_total", |v| v >= 1.0).await;
    until(port, "outbox_stranded_messages", |v| v == 0.0).await;
    world.sql("TRUNCATE outbox.lane").await;
    until(port, "outbox_lanes_restored_total", |v| v == 64.0).await;
    until(port, "outbox_audit_last_completed_timestamp_seconds", |v| {
        v > 1e9
    })
    .await;
    for histogram in [
        "delivery_latency_seconds",
        "claim_seconds",
        "confirm_seconds",
        "settle_seconds",
        "batch_size",
    ] {
        until(port, &format!("outbox_{histogram}_count"), |v| v >= 1.0).await;
        until(
            port,
            &format!("outbox_{histogram}_bucket{{le=\"+Inf\"}}"),
            |v| v >= 1.0,
        )
        .await;
        until(port, &format!("outbox_{histogram}_sum"), |v| v > 0.0).await;
    }
    let now = clock();
    until(port, "outbox_last_publish_timestamp_seconds", |v| {
        (before.floor()..=now + 1.0).contains(&v)
    })
    .await;
    assert!(
        scrape(port)
            .await
            .unwrap()
            .keys()
            .any(|k| k.starts_with("outbox_build_info{version="))
    );
}

/// It ends with the confirm: what the database takes for the mark is another metric's.
#[tokio::test]
async fn the_delivery_latency_ends_before_the_settle() {
    let world = world().await;
    let consumer = world.consumer().await;
    let gate = Gate::new();
    let (relay, port) = world.watched(&[
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
        ("OUTBOXD_FAILPOINT", &gate.at("confirm.before_settle")),
    ]);
    world.insert(None, "good", "1", "").await;
    relay.line("failpoint reached", SOON).await;
    consumer.until(1).await;
    let age = async || -> f64 {
        let sql =
            "SELECT extract(epoch FROM clock_timestamp() - created_at)::float8 FROM outbox.message";
        world.one(sql).await
    };
    // Its moment is taken from the database's clock as of the middle of the claim, so it is not exact.
    let confirmed = age().await;
    eventually("a settle that takes long", SOON, async || {
        (age().await > 3.0 * confirmed + 1.0).then_some(())
    })
    .await;
    gate.open();
    until(port, "outbox_delivery_latency_seconds_count", |v| v == 1.0).await;
    until(port, "outbox_delivery_latency_seconds_sum", |v| {
        v <= 2.0 * confirmed
    })
    .await;
}

/// The lag is in the metric while nothing can be sent, and back at zero after.
#[tokio::test]
async fn the_lag_grows_while_the_broker_is_away_and_readiness_says_so() {
    let world = world().await;
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let (proxy, url) = Proxy::before(&world.broker_url()).await.unwrap();
    let consumer = world.consumer().await;
    let relay = world.relay(&[("OUTBOXD__ADMIN__LISTEN", &listen), ("AMQP_URL", &url)]);
    relay.line("connected to both servers", SOON).await;
    eventually("readiness", SOON, async || {
        (get(port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
    let admin = [("OUTBOXD__ADMIN__LISTEN", listen.as_str())];
    let healthy = world.outboxd(&["healthcheck"], &admin).await;
    healthy.ends(0, &[]);

    proxy.set(test_support::Mode::Cut);
    relay.line("RabbitMQ failed", SOON).await;
    world.commit(&[(Some("1"), "created", "{}")]).await;
    until(port, "outbox_oldest_due_age_seconds", |v| v > 1.0).await;
    until(
        port,
        r#"outbox_dependency_up{dependency="rabbitmq"}"#,
        |v| v == 0.0,
    )
    .await;
    let (code, body) = get(port, "/readyz").await.unwrap();
    assert_eq!(code, 503, "{body}");
    assert_eq!(
        get(port, "/livez").await.unwrap().0,
        200,
        "alive all the same"
    );
    let unhealthy = world.outboxd(&["healthcheck"], &admin).await;
    unhealthy.ends(1, &[]);
    let alive = world.outboxd(&["healthcheck", "--live"], &admin).await;
    alive.ends(0, &[]);

    proxy.set(test_support::Mode::Forward);
    consumer.until(1).await;
    until(port, "outbox_oldest_due_age_seconds", |v| v == 0.0).await;
    let up = r#"outbox_dependency_up{dependency="rabbitmq"}"#;
    until(port, up, |v| v == 1.0).await;
}

/// While the broker is unavailable, lanes with work wait for a worker, and no claim would detect that PostgreSQL is gone too.
#[tokio::test]
async fn a_database_that_falls_silent_while_the_broker_is_away_is_noticed() {
    let world = world().await;
    let (broker, amqp) = Proxy::before(&world.broker_url()).await.unwrap();
    let (database, postgres) = Proxy::before(&world.database_url()).await.unwrap();
    let (relay, port) = world.watched(&[
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s"),
        ("DATABASE_URL", &postgres),
        ("AMQP_URL", &amqp),
    ]);
    relay.line("connected to both servers", SOON).await;
    let up = r#"outbox_dependency_up{dependency="postgresql"}"#;
    until(port, up, |v| v == 1.0).await;

    broker.set(test_support::Mode::Cut);
    relay.line("RabbitMQ failed", SOON).await;
    world.commit_many(2000, 500).await;
    until(port, "outbox_pending_messages", |v| v >= 2000.0).await;
    database.set(test_support::Mode::Stall);
    // The unanswered poll must detect it, and nothing that would detect it later.
    relay
        .line("PostgreSQL (look for work): no answer", SOON)
        .await;
    until(port, up, |v| v == 0.0).await;
}

/// A gauge that kept its old value would keep the lag alert silent.
#[tokio::test]
async fn a_lag_that_cannot_be_read_is_no_number_rather_than_an_old_one() {
    let world = world().await;
    let (relay, port) = world.watched(&[]);
    until(port, "outbox_oldest_due_age_seconds", |v| v == 0.0).await;
    let sql = "REVOKE EXECUTE ON FUNCTION outbox.measure() FROM outbox_relay";
    world.sql(sql).await;
    until(port, "outbox_oldest_due_age_seconds", f64::is_nan).await;
    relay.line("a maintenance job failed", SOON).await;
    let sql = "GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_relay";
    world.sql(sql).await;
    until(port, "outbox_oldest_due_age_seconds", |v| v == 0.0).await;
}

/// Passwords and payloads pass through every path that fails, and none reaches a log.
#[tokio::test]
async fn no_secret_and_no_payload_reaches_the_logs() {
    let world = world().await;
    world.declare_exchange("events").await;
    let port = world.postgres().port();
    let (database, broker) = (world.database_url(), world.broker_url());
    let canary = "canary-password";
    let level = |level: &str| vec![("OUTBOXD__LOG__LEVEL", level.to_owned())];
    let settings: Vec<Vec<(&str, String)>> = vec![
        vec![],
        level("info,lapin::returned_messages=warn"),
        level("info,lapin=trace,tokio_postgres=trace,[{source}]=trace"),
        vec![(
            "DATABASE_URL",
            database.replace("relay-canary-password", "wrong-canary-password"),
        )],
        vec![(
            "DATABASE_URL",
            database.replace(&world.database, "no_such_database"),
        )],
        vec![("DATABASE_URL", database.replace(&port.to_string(), "1"))],
        vec![(
            "AMQP_URL",
            broker.replace("guest:guest", "guest:canary-password"),
        )],
        vec![(
            "AMQP_URL",
            broker
                .replace(&format!("/{}", world.vhost), "/nowhere")
                .replace("guest:guest", "guest:canary-password"),
        )],
        vec![("AMQP_URL", format!("amqp://u:{canary}@127.0.0.1:1"))],
        vec![
            ("AMQP_URL", format!("amqp://u:{canary}@broker.invalid")),
            ("OUTBOXD__BROKER__ALLOW_PLAINTEXT", "true".to_owned()),
        ],
        vec![("AMQP_URL", format!("amqp://u:{canary}%zz@localhost"))],
        vec![(
            "DATABASE_URL",
            format!("postgres://u:{canary}@127.0.0.1:1/x?nonsense=1"),
        )],
    ];
    world
        .insert(Some("1"), "nobody", r#"{"card":"payload-canary"}"#, "")
        .await;
    world
        .insert(
            Some("2"),
            "bad",
            r#"{"card":"payload-canary"}"#,
            r#"headers = '{"secret":[[[["header-canary"]]]]}'"#,
        )
        .await;
    for setting in settings {
        let mut more: Vec<(&str, &str)> = setting.iter().map(|(k, v)| (*k, v.as_str())).collect();
        if more.iter().all(|(name, _)| *name != "OUTBOXD__LOG__LEVEL") {
            more.push(("OUTBOXD__LOG__LEVEL", "trace"));
        }
        more.push(("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "1s"));
        more.push(("OUTBOXD__BROKER__CONNECT_TIMEOUT", "1s"));
        let mut relay = world.relay(&more);
        // The relay refuses to start, or fails and tries again, or does not deliver: by then it has logged its errors.
        eventually("its first words", SOON, async || {
            let said = |text: &str| relay.lines().iter().any(|line| line.contains(text));
            (said("failed")
                || said("bad configuration")
                || said("given up")
                || said("waiting for it")
                || said("not delivered"))
            .then_some(())
        })
        .await;
        relay.kill().await.unwrap();
        for line in relay.lines() {
            // Libraries log payloads: lapin those of returned messages.
            if let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) {
                let target = event["target"].as_str().unwrap_or_default();
                assert!(target.starts_with("outboxd"), "{line}");
            }
            for secret in ["canary-password", "payload-canary", "header-canary"] {
                assert!(!line.contains(secret), "{setting:?}: {line}");
            }
        }
    }
}

#[tokio::test]
async fn logs_are_json_lines_where_nobody_watches() {
    let world = world().await;
    let relay = world.relay(&[("OUTBOXD__LOG__FORMAT", "auto")]);
    let line = relay.line("relay started", SOON).await;
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&event["level"], &event["message"]),
        (&"INFO".into(), &"relay started".into())
    );
    assert_eq!(event["workers"], 2);
}

/// Whether the line, or its span, says of which source it is.
fn names_a_source(line: &str) -> bool {
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    event["source"] == "default" || event["span"]["source"] == "default"
}

/// A level above `info` has no spans of claims.
#[tokio::test]
async fn each_line_of_the_relay_names_its_source_at_every_level() {
    let world = world().await;
    let _consumer = world.consumer().await;
    for level in ["warn", "trace"] {
        let mut relay = world.relay(&[("OUTBOXD__LOG__LEVEL", level)]);
        world.commit_many(100, 100).await;
        world.passed().await;
        relay.terminate().unwrap();
        relay.ended(SOON).await.unwrap();
        world
            .sql("DELETE FROM outbox.message; ALTER SEQUENCE outbox.message_id_seq RESTART")
            .await;
        // So few that the sequence stays below the marks.
        let relay = world.relay(&[("OUTBOXD__LOG__LEVEL", level)]);
        world.commit_many(10, 10).await;
        relay
            .line("stands below positions that were settled", SOON)
            .await;
        let rooms = ["relay", "broker", "outbox", "telemetry::relaying"];
        for line in relay.lines() {
            let of = |room: &&str| line.contains(&format!(r#""target":"outboxd::{room}"#));
            assert!(!rooms.iter().any(of) || names_a_source(&line), "{line}");
        }
    }
}

#[tokio::test]
async fn a_panic_is_a_line_of_the_log_with_its_place_and_its_source() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[("OUTBOXD_FAILPOINT", "claim.after=panic")]);
    world.commit(&[(Some("1"), "created", "{}")]).await;
    let line = relay.line("panicked: this is a bug", SOON).await;
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["text"], "failpoint reached: claim.after", "{line}");
    let location = event["location"].as_str().unwrap();
    assert!(location.contains("src/failpoint.rs:"), "{line}");
    assert!(names_a_source(&line), "{line}");
    let restarted = relay.line("panicked; starting it again", SOON).await;
    assert!(
        restarted.contains("failpoint reached: claim.after"),
        "{restarted}"
    );
    consumer.until(1).await;
    for line in relay.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(&line).is_ok(),
            "{line}"
        );
    }
}

/// Thousands of lines at once would push others out of the log.
#[tokio::test]
async fn messages_given_up_for_one_reason_are_one_line_for_a_claim() {
    let world = world().await;
    world.declare_exchange("events").await;
    // One key: one claim reads all.
    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) \
             SELECT 'order', '1', 'created', '1', '[]' FROM generate_series(1, 50)",
        )
        .await;
    let relay = world.relay(&[]);
    world.until("all to be dead", "outbox.dead", 50).await;
    let line = relay.line("given up", SOON).await;
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["messages"], 50, "{line}");
    let lines = relay.lines();
    let said = lines
        .iter()
        .filter(|line| line.contains("given up"))
        .count();
    assert_eq!(said, 1);
}

/// Memory does not grow with the backlog.
#[tokio::test]
async fn memory_is_flat_over_a_hundredfold_backlog() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    let peak = || probe::peak_kib(relay.pid()).unwrap();
    world.commit_many(1000, 100).await;
    consumer.until(1000).await;
    let small = peak();
    world.commit_many(100_000, 1000).await;
    consumer.until(101_000).await;
    let large = peak();
    assert!(large < small + 24 * 1024, "{small} kB became {large} kB");
    world.drained().await;
}
