//! Policies, and sessions that a pooler shares. Rows 61 and 64 of the fault matrix have every policy and every setting.

use test_support::{PgBouncer, eventually, over, pgbouncer_is_installed};

use crate::world::{Consumer, SOON, World, world};

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
async fn a_policy_that_is_forced_on_the_owner_never_makes_the_status_say_nothing_is_pending() {
    let world = world().await;
    world.commit_many(50, 5).await;
    let force = "ALTER TABLE outbox.message ENABLE ROW LEVEL SECURITY; ALTER TABLE outbox.message FORCE ROW LEVEL SECURITY";
    world.sql(force).await;
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
    let url = world.url_of("monitor");
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
    world.sql(off).await;
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
        let url = over(&world.database_url(), pooler.port());
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
        world.sql(&sql).await;
    }
    let policy = "ALTER TABLE outbox.relay ENABLE ROW LEVEL SECURITY";
    world.sql(policy).await;
    let relay = world.relay(MODES[1]);
    relay.line("DISABLE ROW LEVEL SECURITY", SOON).await;
    let consumer = world.consumer().await;
    world.commit_many(100, 10).await;
    consumer.until(100).await;
}
