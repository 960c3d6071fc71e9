//! `outboxd doctor` names everything that is wrong in one run, each with its code and its cure.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use test_support::eventually;
use tokio_postgres::Client;

use crate::world::{SOON, World, own_world, run, world};

/// What nobody can know here: the connections have no TLS, and AMQP does not tell which queues are bound.
const NEVER_KNOWN: [&str; 3] = ["D203", "D803", "D807"];
/// The servers of the tests save time, and a crash would lose data.
const SETTINGS: &str = "D501";

/// The lines of one run.
struct Doctor {
    code: i32,
    lines: Vec<Value>,
    said: String,
}

impl Doctor {
    async fn asked(world: &World, env: &[(&str, &str)]) -> Self {
        Self::with(&["doctor", "--json"], &world.env(env)).await
    }

    async fn with(args: &[&str], env: &[(String, String)]) -> Self {
        let run = run(args, env).await;
        let lines = serde_json::from_str(&run.stdout);
        Self {
            code: run.code,
            lines: lines.unwrap_or_else(|error| panic!("{error}: {}", run.said())),
            said: run.said(),
        }
    }

    /// All lines of a check.
    fn of(&self, code: &str) -> Vec<&Value> {
        let of = self.lines.iter().filter(|line| line["code"] == code);
        of.collect()
    }

    /// One line of this check has this state, and its finding or its cure has these texts.
    #[track_caller]
    fn says(&self, code: &str, state: &str, texts: &[&str]) {
        let fits = |line: &&&Value| {
            let text = format!("{} {}", line["finding"], line["cure"]);
            line["state"] == state && texts.iter().all(|wanted| text.contains(wanted))
        };
        let found = self.of(code);
        assert!(
            found.iter().any(|line| fits(&line)),
            "{code} is not {state} with {texts:?}: {found:#?}"
        );
    }

    /// The lines that are not ok, without those that never are.
    fn not_ok(&self) -> Vec<&Value> {
        let known = |line: &&Value| {
            line["state"] != "ok"
                && !NEVER_KNOWN.iter().any(|code| line["code"] == *code)
                && line["code"] != SETTINGS
        };
        self.lines.iter().filter(known).collect()
    }
}

async fn person(world: &World, name: &str, sql: &str) -> Client {
    let client = world.postgres().connect(&world.database).await.unwrap();
    let sql = format!("SET application_name = '{name}'; BEGIN; {sql}");
    client.batch_execute(&sql).await.unwrap();
    client
}

#[tokio::test]
async fn a_healthy_outbox_has_no_warning_and_no_fault() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let (_relay, _) = world.watched(&[]);
    world.commit_many(20, 5).await;
    consumer.until(20).await;
    let doctor = eventually("nothing to find", SOON, async || {
        let doctor = Doctor::asked(&world, &[]).await;
        doctor.not_ok().is_empty().then_some(doctor)
    })
    .await;
    assert_eq!(doctor.code, 0, "{}", doctor.said);
    doctor.says(SETTINGS, "warning", &["fsync = off"]);
    doctor.says("D201", "ok", &["127.0.0.1", "database db, user relay"]);
    doctor.says("D204", "ok", &["PostgreSQL "]);
    doctor.says("D402", "ok", &["outbox_producer may insert events"]);
    doctor.says("D705", "ok", &["2 workers"]);
    doctor.says("D804", "ok", &["RabbitMQ "]);
    doctor.says("D805", "ok", &["exchanges there: events"]);
    doctor.says("D807", "not_checked", &["AMQP does not tell"]);
    for line in &doctor.lines {
        for key in [
            "code", "source", "group", "check", "state", "finding", "cure",
        ] {
            assert!(line.get(key).is_some(), "{key}: {line}");
        }
    }
    // A person reads the same.
    let text = world.ok("doctor").await;
    assert!(
        text.contains("  ok           D201  127.0.0.1") && text.contains(" faults: 0, "),
        "{text}"
    );
}

#[tokio::test]
async fn several_faults_are_each_named_in_one_run_with_code_and_cure() {
    let world = own_world().await;
    let work = "INSERT INTO account (id, cents) VALUES ('a', 1)";
    let job = person(&world, "a-long-job", work).await;
    let row = job.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.unwrap().get(0);
    let old = "created_at = clock_timestamp() - interval '1 hour'";
    world.insert(Some("1"), "created", "{}", old).await;
    world
        .sql(
            "REVOKE DELETE ON outbox.dead FROM outbox_relay; \
             DROP TRIGGER corrected ON outbox.message; \
             REVOKE USAGE ON SCHEMA outbox FROM outbox_producer; \
             CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER theirs BEFORE INSERT ON outbox.message FOR EACH ROW EXECUTE FUNCTION public.nothing(); \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
             VALUES (1, 1000000, gen_random_uuid(), 'unroutable', 1, 'x')",
        )
        .await;
    let lock = "LOCK TABLE outbox.dead IN EXCLUSIVE MODE";
    let _migration = person(&world, "a-migration", lock).await;
    let nope = [("OUTBOXD__ROUTING__EXCHANGE", "nope")];
    let doctor = Doctor::asked(&world, &nope).await;
    assert_eq!(doctor.code, 78, "{}", doctor.said);
    let pid = format!("pid {pid} (user postgres, application \\\"a-long-job\\\"");
    for (code, state, texts) in [
        (
            "D401",
            "fault",
            &[
                "GRANT DELETE ON outbox.dead TO relay",
                "outboxd sql --roles",
            ][..],
        ),
        (
            "D402",
            "fault",
            &["GRANT USAGE ON SCHEMA outbox TO outbox_producer"],
        ),
        (
            "D304",
            "fault",
            &[
                "trigger corrected on outbox.message",
                "as `outboxd sql` defines it",
            ],
        ),
        ("D306", "warning", &["theirs", "Drop the trigger"]),
        (
            "D601",
            "fault",
            &[
                "a-migration",
                "table outbox.dead (ExclusiveLock)",
                "pg_terminate_backend",
            ],
        ),
        (
            "D602",
            "warning",
            &[pid.as_str(), "for at least 3", "pg_terminate_backend"],
        ),
        ("D701", "warning", &["the oldest due message is 3"]),
        (
            "D702",
            "warning",
            &["1 messages are dead", "outboxd failures"],
        ),
        ("D705", "warning", &["no relay", "outboxd run"]),
        (
            "D805",
            "fault",
            &["no exchange 'nope'", "Declare the exchange"],
        ),
        ("D806", "not_checked", &["no exchange nope"]),
        (
            "D807",
            "warning",
            &["0 wait, and 1 are dead", "list_bindings"],
        ),
        ("D808", "ok", &[]),
    ] {
        doctor.says(code, state, texts);
    }
    let last = "the doctor found faults: D304, D401, D402, D601, D805\n";
    assert!(doctor.said.ends_with(last), "{}", doctor.said);
    // The check before a deployment finds the same faults, as far as it asks.
    let check = world.outboxd(&["check", "--connect"], &nope).await;
    assert_eq!(check.code, 78, "{}", check.said());
    for code in ["D401", "D304", "D601", "D805"] {
        let finding = doctor.of(code)[0]["finding"].as_str().unwrap();
        // The number of seconds differs.
        let start: String = finding.chars().take(40).collect();
        assert!(check.stderr.contains(&start), "{start}: {}", check.stderr);
    }
}

/// A lock that stops even reads: what it stops is not checked, and the lock is the reason.
#[tokio::test]
async fn what_a_lock_stops_is_not_checked_and_the_lock_is_named() {
    let world = world().await;
    world.declare_exchange("events").await;
    let _person = person(
        &world,
        "a-rewrite",
        "LOCK TABLE outbox.message, outbox.lane",
    )
    .await;
    let doctor = Doctor::asked(&world, &[]).await;
    assert_eq!(doctor.code, 69, "{}", doctor.said);
    doctor.says("D601", "fault", &["a-rewrite", "AccessExclusiveLock"]);
    for code in ["D404", "D701", "D704", "D707"] {
        doctor.says(code, "not_checked", &["because of D601"]);
    }
    doctor.says("D401", "ok", &[]);
    doctor.says("D806", "ok", &["events"]);
}

#[tokio::test]
async fn a_server_that_is_away_leaves_the_checks_of_the_other_one() {
    let world = world().await;
    world.declare_exchange("events").await;
    let broker_away = Doctor::asked(&world, &[("AMQP_URL", "amqp://u:p@127.0.0.1:1")]).await;
    assert_eq!(broker_away.code, 69, "{}", broker_away.said);
    broker_away.says("D801", "fault", &["cannot reach 127.0.0.1:1", "broker.url"]);
    for code in ["D802", "D804", "D805", "D806", "D807", "D808"] {
        broker_away.says(code, "not_checked", &["because of D801"]);
    }
    for code in [
        "D201", "D205", "D206", "D303", "D401", "D404", "D601", "D701", "D704",
    ] {
        broker_away.says(code, "ok", &[]);
    }
    let away = "postgres://u:p@127.0.0.1:1/x";
    let database_away = Doctor::asked(&world, &[("DATABASE_URL", away)]).await;
    assert_eq!(database_away.code, 69, "{}", database_away.said);
    database_away.says(
        "D201",
        "fault",
        &["PostgreSQL (connect to ", "database.url"],
    );
    for code in [
        "D204", "D206", "D301", "D401", "D501", "D601", "D702", "D707",
    ] {
        database_away.says(code, "not_checked", &["because of D201"]);
    }
    for code in ["D801", "D804", "D805", "D806", "D808"] {
        database_away.says(code, "ok", &[]);
    }
}

#[tokio::test]
async fn a_schema_that_is_missing_or_half_applied_is_told_apart() {
    let world = world().await;
    let (empty, url) = world.another("empty").await;
    let doctor = Doctor::asked(&world, &[("DATABASE_URL", &url)]).await;
    assert_eq!(doctor.code, 78, "{}", doctor.said);
    doctor.says("D301", "fault", &["no outbox schema", "outboxd migrate"]);
    doctor.says("D303", "not_checked", &["because of "]);
    let half = "CREATE SCHEMA outbox AUTHORIZATION owner; CREATE TABLE outbox.relay (instance text PRIMARY KEY); \
                ALTER TABLE outbox.relay OWNER TO owner";
    world.postgres().execute(&empty, half).await.unwrap();
    let doctor = Doctor::asked(&world, &[("DATABASE_URL", &url)]).await;
    assert_eq!(doctor.code, 78, "{}", doctor.said);
    doctor.says(
        "D302",
        "fault",
        &["table outbox.message", "outboxd migrate"],
    );
    doctor.says("D301", "not_checked", &["because of D302"]);
}

#[tokio::test]
async fn a_bad_configuration_is_a_fault_for_each_key_and_nothing_else_is_asked() {
    let world = world().await;
    let bad = [
        ("OUTBOXD__RELAY__WORKERS", "none"),
        ("OUTBOXD__RETENTION__SENT", "soon"),
    ];
    let doctor = Doctor::asked(&world, &bad).await;
    assert_eq!(doctor.code, 78, "{}", doctor.said);
    doctor.says("D101", "fault", &["relay.workers", "config show"]);
    doctor.says("D101", "fault", &["retention.sent"]);
    for code in ["D201", "D401", "D801", "D807"] {
        doctor.says(code, "not_checked", &["because of D101"]);
    }
}

#[tokio::test]
async fn every_source_is_asked_and_each_line_says_of_which() {
    let world = world().await;
    world.declare_exchange("events").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let source = |name: &str, database: &str| {
        let broker = world.broker_url();
        format!(
            "[[source]]\nname = \"{name}\"\n[source.database]\nurl = \"{database}\"\n[source.broker]\nurl = \"{broker}\"\n"
        )
    };
    let text = source("works", &world.database_url()) + &source("poor", &world.url_of("producer"));
    std::fs::write(&file, text).unwrap();
    let mut env = world.env(&[]);
    env.retain(|(name, _)| name != "DATABASE_URL" && name != "AMQP_URL");
    let args = ["--config", file.to_str().unwrap(), "doctor", "--json"];
    let doctor = Doctor::with(&args, &env).await;
    assert_eq!(doctor.code, 78, "{}", doctor.said);
    let of = |source: &str| {
        let lines = doctor.of("D401");
        let line = lines.into_iter().find(|line| line["source"] == source);
        line.unwrap()["state"].clone()
    };
    assert_eq!((of("works"), of("poor")), ("ok".into(), "fault".into()));
}

/// The file is for a ticket, so strangers read it.
#[tokio::test]
async fn a_bundle_has_everything_for_a_ticket_and_no_secret() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (_relay, port) = world.watched(&[]);
    let headers = r#"headers = '{"secret":"header-canary"}'"#;
    let body = r#"{"card":"payload-canary"}"#;
    world.insert(Some("1"), "created", body, headers).await;
    world
        .insert(
            Some("2"),
            "bad",
            body,
            r#"headers = '{"secret":[[[["header-canary"]]]]}'"#,
        )
        .await;
    consumer.until(1).await;
    world.until("the dead one", "outbox.dead", 1).await;
    let listen = format!("127.0.0.1:{port}");
    let broker = world.broker_url();
    let wrong = broker.replace("guest:guest@", "guest:broker-canary-password@");
    assert_ne!(wrong, broker);
    let folder = tempfile::tempdir().unwrap();
    for (name, url) in [("good", &broker), ("wrong", &wrong)] {
        let file = folder.path().join(name);
        let path = file.to_str().unwrap();
        let env = [
            ("AMQP_URL", url.as_str()),
            ("OUTBOXD__ADMIN__LISTEN", &listen),
        ];
        let args = ["doctor", "--bundle", path];
        let ran = world.outboxd(&args, &env).await;
        assert_eq!(
            ran.code,
            if name == "good" { 0 } else { 78 },
            "{}",
            ran.said()
        );
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&file).unwrap();
        for secret in ["canary", "guest:guest"] {
            assert!(!text.contains(secret), "{secret}: {text}");
            assert!(!ran.said().contains(secret), "{secret}: {}", ran.said());
        }
        let bundle: Value = serde_json::from_str(&text).unwrap();
        let source = &bundle["sources"][0];
        assert!(bundle["checks"].as_array().unwrap().len() > 30, "{text}");
        assert_eq!(source["status"]["dead"], 1, "{text}");
        assert!(source["postgresql"].is_string(), "{text}");
        assert!(
            bundle["metrics"]
                .as_str()
                .unwrap()
                .contains("outbox_published_total")
        );
        let keys = &bundle["configuration"]["keys"];
        assert!(
            keys["database.url"]["value"]
                .as_str()
                .unwrap()
                .contains(":***@"),
            "{text}"
        );
        // A file that exists may be anybody's.
        let again = world.outboxd(&args, &env).await;
        again.ends(1, &["Name a file that does not exist yet"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}
