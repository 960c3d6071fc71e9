//! Settings of the role, the database or the server do not change the relay's session.

use test_support::{PgBouncer, eventually, hostile_settings, pgbouncer_is_installed};

use crate::{
    seeing::get,
    world::{Consumer, SOON, World, own_world, world},
};

/// The relay sets its settings in two ways: for a session, and for each transaction.
const MODES: [&[(&str, &str)]; 2] = [
    &[],
    &[
        ("OUTBOXD__DATABASE__PREPARED_STATEMENTS", "false"),
        ("OUTBOXD__DATABASE__LISTEN", "false"),
    ],
];

async fn delivers(world: &World, consumer: &Consumer, what: &str) {
    world.commit_many(100, 10).await;
    let all = world.ledger.len();
    eventually(&format!("delivery with {what}"), SOON, async || {
        (consumer.len() >= all).then_some(())
    })
    .await;
    world.drained().await;
    let report = world.judge(consumer).await;
    assert!(
        report.is_clean() && report.duplicates == 0,
        "{what}: {report}"
    );
}

#[tokio::test]
async fn no_setting_that_a_role_can_have_changes_what_the_relay_does() {
    let world = world().await;
    let consumer = world.consumer().await;
    for round in 0..4 {
        let settings = hostile_settings(&world.client, round).await.unwrap();
        assert!(settings.len() > 80, "{settings:?}");
        let role = format!("ALTER ROLE relay IN DATABASE {}", world.database);
        let sql = format!("{role} RESET ALL");
        world.client.batch_execute(&sql).await.unwrap();
        for (name, value) in &settings {
            let sql = format!("{role} SET {name} = '{value}'");
            world.client.batch_execute(&sql).await.expect(&sql);
        }
        for mode in MODES {
            if !mode.is_empty() {
                // Without a session of its own the relay cannot set it; the page about poolers says so.
                // BEGIN, which sets the relay's own time-outs, is under the role's: on a busy machine it takes a millisecond.
                let sql =
                    format!("{role} RESET idle_session_timeout; {role} RESET statement_timeout");
                world.client.batch_execute(&sql).await.unwrap();
            }
            let relay = world.relay(mode);
            relay.line("connected to both servers", SOON).await;
            delivers(&world, &consumer, &format!("{mode:?} and {settings:?}")).await;
            let status = world.outboxd(&["status", "--json"], mode).await;
            assert_eq!(status.code, 0, "{} with {settings:?}", status.stderr);
            let failed: Vec<String> = relay
                .lines()
                .into_iter()
                .filter(|line| line.contains("failed"))
                .collect();
            assert!(failed.is_empty(), "{failed:?} with {settings:?}");
        }
    }
    // If the relay may not read pg_settings, it sets the settings that it knows.
    let sql = "REVOKE SELECT ON pg_settings FROM PUBLIC";
    world.client.batch_execute(sql).await.unwrap();
    for mode in MODES {
        let _relay = world.relay(mode);
        delivers(&world, &consumer, "settings that it cannot see").await;
    }
}

#[tokio::test]
async fn a_time_out_that_the_server_gets_while_the_relay_runs_does_not_matter() {
    let mut world = own_world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    delivers(&world, &consumer, "the server's own settings").await;
    for timeout in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ] {
        let exempt = format!("ALTER ROLE postgres SET {timeout} = 0");
        let sql = format!("ALTER SYSTEM SET {timeout} = 1");
        for sql in [exempt.as_str(), sql.as_str()] {
            world.postgres().execute("postgres", sql).await.unwrap();
        }
    }
    world.client = world.postgres().connect(&world.database).await.unwrap();
    for sql in [
        "ALTER SYSTEM SET default_transaction_isolation = serializable",
        "ALTER SYSTEM SET search_path = nowhere",
        "SELECT pg_reload_conf()",
    ] {
        world.client.batch_execute(sql).await.unwrap();
    }
    // Other sessions have the hostile settings.
    eventually("the server to have read them", SOON, async || {
        let url = world.database_url();
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .ok()?;
        let driver = tokio::spawn(connection);
        let ended = client.batch_execute("SELECT pg_sleep(10)").await.is_err();
        driver.abort();
        ended.then_some(())
    })
    .await;
    for _ in 0..5 {
        delivers(&world, &consumer, "the server's time-outs").await;
    }
    let lines = relay.lines();
    assert!(
        !lines.iter().any(|line| line.contains("failed")),
        "{lines:#?}"
    );
    // A relay that connects now works too.
    drop(relay);
    let _relay = world.relay(&[]);
    delivers(&world, &consumer, "a relay that started under them").await;
}

/// Starts a relay with an admin port, and returns the port's address.
async fn ready(world: &World) -> (test_support::Daemon, u16) {
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let relay = world.relay(&[("OUTBOXD__ADMIN__LISTEN", &listen)]);
    says(port, 200, "\"ready\":true").await;
    (relay, port)
}

async fn says(port: u16, status: u16, text: &str) {
    eventually(
        &format!("/readyz to say {status} {text}"),
        SOON,
        async || {
            let (code, body) = get(port, "/readyz").await?;
            (code == status && body.contains(text)).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn row_level_security_is_named_and_passes_nothing_over() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (_relay, port) = ready(&world).await;
    delivers(&world, &consumer, "no policy").await;
    for (table, policy) in [
        ("message", ""),
        ("message", "USING (false)"),
        ("message", "USING (aggregate_id = '3')"),
        ("message", "FOR SELECT USING (true)"),
        ("message", "FOR UPDATE USING (false)"),
        ("lane", "USING (false)"),
        ("waiting", "USING (false)"),
        ("dead", "USING (false)"),
    ] {
        let made = match policy {
            "" => String::new(),
            policy => format!("CREATE POLICY tenant ON outbox.{table} {policy};"),
        };
        let sql = format!("{made} ALTER TABLE outbox.{table} ENABLE ROW LEVEL SECURITY");
        world.client.batch_execute(&sql).await.unwrap();
        world.commit_many(100, 10).await;
        let named = format!("table \\\"{table}\\\"");
        says(port, 503, &named).await;
        says(port, 503, "DISABLE ROW LEVEL SECURITY").await;
        let (_, metrics) = get(port, "/metrics").await.unwrap();
        assert!(
            metrics.contains("outbox_dependency_up{dependency=\"postgresql\"} 0"),
            "{metrics}"
        );
        let check = world.outboxd(&["check", "--connect"], &[]).await;
        assert!(
            check.code != 0 && check.stderr.contains("DISABLE ROW LEVEL SECURITY"),
            "{}",
            check.stderr
        );
        let sql = format!(
            "ALTER TABLE outbox.{table} DISABLE ROW LEVEL SECURITY; DROP POLICY IF EXISTS tenant ON outbox.{table}"
        );
        world.client.batch_execute(&sql).await.unwrap();
        says(port, 200, "\"ready\":true").await;
        delivers(
            &world,
            &consumer,
            &format!("{policy} on {table}, and off again"),
        )
        .await;
    }
}

#[tokio::test]
async fn a_policy_that_is_forced_on_the_owner_never_makes_the_status_say_nothing_is_pending() {
    let world = world().await;
    world.commit_many(50, 5).await;
    let force = "ALTER TABLE outbox.message ENABLE ROW LEVEL SECURITY; ALTER TABLE outbox.message FORCE ROW LEVEL SECURITY";
    world.client.batch_execute(force).await.unwrap();
    for mode in MODES {
        let status = world.outboxd(&["status", "--json"], mode).await;
        assert!(
            status.code != 0 && status.stderr.contains("DISABLE ROW LEVEL SECURITY"),
            "{} {}",
            status.stdout,
            status.stderr
        );
    }
    // A monitor with an ordinary session gets the same error.
    let url = world
        .postgres()
        .url_for("monitor", "monitor", &world.database);
    let (monitor, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let refused = monitor
        .query("SELECT pending FROM outbox.status", &[])
        .await
        .unwrap_err();
    assert!(
        refused
            .as_db_error()
            .unwrap()
            .message()
            .contains("row-level security"),
        "{refused}"
    );
    let off = "ALTER TABLE outbox.message NO FORCE ROW LEVEL SECURITY";
    world.client.batch_execute(off).await.unwrap();
    // The owner of the function can read the whole table.
    let status = world.outboxd(&["status", "--json"], &[]).await;
    assert!(
        status.code == 0 && status.stdout.contains("\"pending\": 50"),
        "{} {}",
        status.stdout,
        status.stderr
    );
}

#[tokio::test]
async fn a_default_of_read_only_is_said_and_the_relay_goes_on_when_it_is_gone() {
    let world = world().await;
    let role = format!("ALTER ROLE relay IN DATABASE {}", world.database);
    let sql = format!("{role} SET default_transaction_read_only = on");
    world.client.batch_execute(&sql).await.unwrap();
    let consumer = world.consumer().await;
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let _relay = world.relay(&[("OUTBOXD__ADMIN__LISTEN", &listen)]);
    says(port, 503, "default_transaction_read_only").await;
    let sql = format!("{role} RESET default_transaction_read_only");
    world.client.batch_execute(&sql).await.unwrap();
    delivers(&world, &consumer, "a default that was reset").await;
}

#[tokio::test]
async fn behind_a_pooler_in_transaction_mode_the_defaults_are_refused_with_the_cure() {
    if !pgbouncer_is_installed() {
        eprintln!("skipped: no PgBouncer here");
        return;
    }
    let world = world().await;
    let consumer = world.consumer().await;
    for pool in [1, 5] {
        let users = [("relay", "relay-canary-password")];
        let pooler = PgBouncer::start(world.postgres().port(), &users, pool)
            .await
            .unwrap();
        let direct = format!(":{}/", world.postgres().port());
        let url = world
            .database_url()
            .replace(&direct, &format!(":{}/", pooler.port()));
        for (prepared, listen) in [("true", "true"), ("true", "false")] {
            let settings = [
                ("DATABASE_URL", url.as_str()),
                ("OUTBOXD__DATABASE__PREPARED_STATEMENTS", prepared),
                ("OUTBOXD__DATABASE__LISTEN", listen),
            ];
            for command in [&["run"][..], &["check", "--connect"]] {
                let run = world.outboxd(command, &settings).await;
                let cure = run
                    .stderr
                    .contains("database.prepared_statements = false and database.listen = false");
                assert!(run.code == 78 && cure, "{} {}", run.code, run.stderr);
            }
        }
        let mut settings = vec![("DATABASE_URL", url.as_str())];
        settings.extend(MODES[1]);
        let relay = world.relay(&settings);
        if pool > 1 {
            delivers(&world, &consumer, "a pooler").await;
            relay.terminate().unwrap();
        }
    }
}

/// A pooled connection may carry settings of other clients.
#[tokio::test]
async fn without_a_session_of_its_own_the_relay_says_its_settings_with_every_statement() {
    let world = world().await;
    // Both single statements and statements of a transaction would otherwise fail, or treat policies as filters.
    let role = format!("ALTER ROLE relay IN DATABASE {}", world.database);
    for (name, value) in [
        ("statement_timeout", "1"),
        ("row_security", "on"),
        ("enable_seqscan", "on"),
    ] {
        let sql = format!("{role} SET {name} = '{value}'");
        world.client.batch_execute(&sql).await.unwrap();
    }
    let policy = "ALTER TABLE outbox.relay ENABLE ROW LEVEL SECURITY";
    world.client.batch_execute(policy).await.unwrap();
    let relay = world.relay(MODES[1]);
    relay.line("DISABLE ROW LEVEL SECURITY", SOON).await;
    let consumer = world.consumer().await;
    world.commit_many(100, 10).await;
    consumer.until(100).await;
}
