//! Settings and policies of the database. Rows 61, 64.

use std::time::Duration;

use test_support::{eventually, hostile_settings};

use crate::{
    arena::{DATABASE, OWNER, SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    61, "row level security switched on, with every kind of policy; later off" => policies(setup);
    64, "ALTER SYSTEM, DATABASE, ROLE ... SET of any setting that changes a result or a time-out" => settings(setup);
};

const AGAIN: Duration = Duration::from_secs(15);

/// Table and policy. Never one table twice in a row: what was said of the one before is no answer.
const POLICIES: [(&str, &str); 9] = [
    ("message", ""),
    ("lane", "USING (false)"),
    ("message", "USING (aggregate_id LIKE '0-%')"),
    ("waiting", "USING (false)"),
    ("message", "USING (false)"),
    ("dead", "USING (false)"),
    ("message", "FOR SELECT USING (true)"),
    ("lane", ""),
    ("message", "FOR UPDATE USING (false)"),
];

async fn policies(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    for (table, policy) in POLICIES {
        let made = match policy {
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
        let up = "outbox_dependency_up{dependency=\"postgresql\"}";
        scene.shows(up, |up| up == 0.0).await?;
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
        // Who is turned away at the read has published nothing.
        scene.endured(AGAIN, 0).await?;
    }
    scene.ready().await?;
    scene.end().await
}

/// Two ways to have settings: those of a session, and those of each transaction.
const TRANSACTIONS: [&str; 2] = [
    "OUTBOXD__DATABASE__PREPARED_STATEMENTS",
    "OUTBOXD__DATABASE__LISTEN",
];

/// Gives the role or the database hostile settings, and starts the relay again; says how many there are.
async fn under(
    scene: &mut Scene<'_>,
    round: usize,
    place: &str,
    transactions: bool,
) -> Result<usize> {
    let settings = hostile_settings(&scene.admin, round).await?;
    expect(settings.len() > 80, || {
        format!("{} settings", settings.len())
    })?;
    for (name, value) in &settings {
        // Without a session of its own a relay cannot set these; the page about poolers says so. BEGIN, which sets the relay's own
        // time-outs, is under those of the place: on a busy machine it takes a millisecond.
        let beyond = ["idle_session_timeout", "statement_timeout"].contains(&name.as_str());
        if !(transactions && beyond) {
            let sql = format!("ALTER {place} SET {name} = '{value}'");
            scene.superuser(&sql).await?;
        }
    }
    restarted(scene, transactions).await?;
    Ok(settings.len())
}

/// Another relay in place of this one, with one of the two ways to have settings.
async fn restarted(scene: &mut Scene<'_>, transactions: bool) -> Result<()> {
    scene.stop().await?;
    for name in TRANSACTIONS {
        match transactions {
            true => scene.arena.set(name, "false"),
            false => scene.arena.unset(name),
        }
    }
    scene.relay = scene.arena.relay()?;
    scene.flow.steady(100).await
}

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
        (2, &role, true),
        (3, &database, false),
    ] {
        tried += under(&mut scene, round, place, transactions).await?;
        let status = scene.command(&["status", "--json"]).await?;
        expect(status.code == 0, || status.said())?;
        nothing_failed(&scene)?;
        scene.superuser(&format!("ALTER {place} RESET ALL")).await?;
        scene.endured(AGAIN, 0).await?;
    }
    scene
        .flow
        .note(format!("{tried} settings of a role or a database"));
    // A relay that may not read them sets those that it knows.
    let blind = "REVOKE SELECT ON pg_settings FROM PUBLIC";
    scene.superuser(blind).await?;
    for transactions in [false, true] {
        under(&mut scene, 3, &role, transactions).await?;
        scene.superuser(&format!("ALTER {role} RESET ALL")).await?;
    }
    scene
        .superuser("GRANT SELECT ON pg_settings TO PUBLIC")
        .await?;
    scene.endured(AGAIN, 0).await?;
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
    // Between two transactions, a session that is not the relay's own has the server's time-outs.
    restarted(scene, false).await?;
    for timeout in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ] {
        // The producers and the judge connect as these roles; the time-outs are for the relay.
        for role in [OWNER, "postgres"] {
            scene
                .superuser(&format!("ALTER ROLE {role} SET {timeout} = 0"))
                .await?;
        }
        let own = format!("SET {timeout} = 0");
        scene.sql(&own).await?;
        scene.superuser(&own).await?;
        scene
            .superuser(&format!("ALTER SYSTEM SET {timeout} = 1"))
            .await?;
    }
    let generation = scene.flow.traffic.standstill().await;
    // Those of the producers' sessions that are there have none of their own yet.
    let own: i32 = scene
        .owner
        .query_one("SELECT pg_backend_pid()", &[])
        .await?
        .get(0);
    scene
        .superuser(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE usename IN ('{OWNER}', 'postgres') AND pid NOT IN ({own}, pg_backend_pid()) AND backend_type = 'client backend'"
        ))
        .await?;
    for setting in [
        "default_transaction_isolation = serializable",
        "search_path = nowhere",
    ] {
        scene
            .superuser(&format!("ALTER SYSTEM SET {setting}"))
            .await?;
    }
    scene.superuser("SELECT pg_reload_conf()").await?;
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
    restarted(scene, false).await?;
    nothing_failed(scene)?;
    scene.endured(AGAIN, 0).await
}
