//! Settings and policies of the database. Rows 61, 64.

use std::time::Duration;

use test_support::{eventually, hostile_settings};

use crate::{
    arena::{DATABASE, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    61, "row level security switched on, with every kind of policy; later off" => policies(setup);
    64, "ALTER SYSTEM, DATABASE, ROLE ... SET of any setting that changes a result or a time-out" => settings(setup);
};

const AGAIN: Duration = Duration::from_secs(15);

/// Table, policy, and whether a short run has it, too.
const POLICIES: [(&str, &str, bool); 8] = [
    ("message", "", true),
    ("message", "USING (aggregate_id LIKE '0-%')", true),
    ("message", "USING (false)", false),
    ("message", "FOR SELECT USING (true)", false),
    ("message", "FOR UPDATE USING (false)", true),
    ("lane", "USING (false)", true),
    ("waiting", "USING (false)", false),
    ("dead", "USING (false)", false),
];

async fn policies(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    for (table, policy, _) in POLICIES.iter().filter(|(.., short)| *short || setup.long) {
        scene.fault();
        let made = match *policy {
            "" => String::new(),
            policy => format!("CREATE POLICY tenant ON outbox.{table} {policy};"),
        };
        scene
            .sql(&format!(
                "{made} ALTER TABLE outbox.{table} ENABLE ROW LEVEL SECURITY"
            ))
            .await?;
        scene.says(503, &format!("table \\\"{table}\\\"")).await?;
        scene.says(503, "DISABLE ROW LEVEL SECURITY").await?;
        let check = scene.command(&["check", "--connect"]).await?;
        expect(
            check.code != 0 && check.stderr.contains("DISABLE ROW LEVEL SECURITY"),
            || check.said(),
        )?;
        scene
            .sql(&format!(
                "ALTER TABLE outbox.{table} DISABLE ROW LEVEL SECURITY; DROP POLICY IF EXISTS tenant ON outbox.{table}"
            ))
            .await?;
        scene.endured(AGAIN, WINDOW).await?;
        scene.ready().await?;
    }
    scene.end().await
}

/// Two ways to have settings: those of a session, and those of each transaction.
const TRANSACTIONS: [&str; 2] = [
    "OUTBOXD__DATABASE__PREPARED_STATEMENTS",
    "OUTBOXD__DATABASE__LISTEN",
];

async fn settings(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    let role = "ROLE relay".to_owned();
    let database = format!("DATABASE {DATABASE}");
    let mut tried = 0;
    for (round, place, transactions) in [
        (0, &role, false),
        (1, &database, true),
        (0, &role, true),
        (1, &database, false),
        (2, &role, false),
        (3, &database, true),
    ]
    .into_iter()
    .take(if setup.long { 6 } else { 2 })
    {
        scene.fault();
        let settings = hostile_settings(&scene.owner, round).await?;
        expect(settings.len() > 80, || {
            format!("{} settings", settings.len())
        })?;
        let all: String = settings
            .iter()
            .map(|(name, value)| format!("ALTER {place} SET {name} = '{value}';"))
            .collect();
        scene.sql(&all).await?;
        scene.stop().await?;
        for name in TRANSACTIONS {
            match transactions {
                true => scene.arena.set(name, "false"),
                false => scene.arena.unset(name),
            }
        }
        scene.relay = scene.arena.relay()?;
        scene.flow.steady(100).await?;
        let status = scene.command(&["status", "--json"]).await?;
        expect(status.code == 0, || status.said())?;
        nothing_failed(&scene)?;
        scene.sql(&format!("ALTER {place} RESET ALL")).await?;
        scene.endured(AGAIN, 0).await?;
        tried += settings.len();
    }
    scene
        .flow
        .note(format!("{tried} settings of a role or a database"));
    server(&mut scene).await?;
    scene.end().await
}

fn nothing_failed(scene: &Scene<'_>) -> Result<()> {
    let lines = scene.relay.lines();
    let failed = lines.iter().find(|line| line.contains("failed"));
    expect(failed.is_none(), || format!("the relay said: {failed:?}"))
}

/// While it works, and when it connects.
async fn server(scene: &mut Scene<'_>) -> Result<()> {
    scene.fault();
    // Between two transactions, a session that is not the relay's own has the server's time-outs.
    for name in TRANSACTIONS {
        scene.arena.unset(name);
    }
    scene.stop().await?;
    scene.relay = scene.arena.relay()?;
    scene.flow.steady(100).await?;
    for timeout in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ] {
        // The producers connect as this role; the time-outs are for the relay.
        scene
            .sql(&format!(
                "ALTER ROLE postgres SET {timeout} = 0; SET {timeout} = 0"
            ))
            .await?;
        scene
            .sql(&format!("ALTER SYSTEM SET {timeout} = 1"))
            .await?;
    }
    let generation = scene.flow.traffic.standstill().await;
    // Those of the producers' sessions that are there have none of their own yet.
    scene
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid() AND backend_type = 'client backend'")
        .await?;
    for setting in [
        "default_transaction_isolation = serializable",
        "search_path = nowhere",
    ] {
        scene.sql(&format!("ALTER SYSTEM SET {setting}")).await?;
    }
    scene.sql("SELECT pg_reload_conf()").await?;
    drop(generation);
    // Everybody else has them.
    let url = scene.arena.database_url();
    eventually("the server to have read them", SOON, async || {
        let client = crate::flow::connect(&url).await.ok()?;
        client
            .batch_execute("SELECT pg_sleep(10)")
            .await
            .err()
            .map(drop)
    })
    .await;
    scene.flow.steady(200).await?;
    nothing_failed(scene)?;
    scene.stop().await?;
    scene.relay = scene.arena.relay()?;
    scene.flow.steady(100).await?;
    nothing_failed(scene)?;
    scene.endured(AGAIN, 0).await
}
