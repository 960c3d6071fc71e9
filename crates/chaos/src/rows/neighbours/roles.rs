//! A role of the database. H2.

use std::time::Duration;

use test_support::shadows;
use tokio_postgres::NoTls;

use super::bounds::bounded;
use crate::{
    arena::{Arena, DATABASE, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    2, "any role with CONNECT: NOTIFY flood, listeners that never read, objects planted in public" => stranger(setup);
};

const AGAIN: Duration = Duration::from_secs(15);

async fn stranger(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let roles =
        "CREATE ROLE stranger LOGIN PASSWORD 'stranger'; GRANT CREATE ON SCHEMA public TO stranger";
    arena.postgres.execute(DATABASE, roles).await?;
    // Before anybody connects: what PostgreSQL 14 lets everybody do.
    let planted = shadows(&setup.repository, "public")?;
    arena.postgres.execute(DATABASE, &planted).await?;
    arena
        .postgres
        .execute(
            "postgres",
            &format!("ALTER DATABASE {DATABASE} SET search_path = public, pg_catalog"),
        )
        .await?;
    let flow_url = format!("{}?options=-csearch_path%3Dpg_catalog", arena.owner_url());
    let mut scene = Scene::by(arena, &flow_url).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..2 {
        let url = scene
            .arena
            .postgres
            .url_for("stranger", "stranger", DATABASE);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tasks.spawn(async move { drop(connection.await) });
        tasks.spawn(async move {
            // One listens, and never ends its transaction; the other floods.
            let listens = "SET search_path = pg_catalog; LISTEN outbox_wake; BEGIN; SELECT 1";
            let floods = "SET search_path = pg_catalog; \
                          SELECT pg_notify('outbox_wake', i || repeat('x', 100)) FROM generate_series(1, 5000) i";
            let sql = if n == 0 { listens } else { floods };
            while client.batch_execute(sql).await.is_ok() {
                if n == 0 {
                    std::future::pending::<()>().await;
                }
            }
        });
    }
    scene.logs("the channel outbox_wake is flooded").await?;
    scene.flow.steady(400).await?;
    for command in [&["check", "--connect"][..], &["status"], &["dead", "list"]] {
        let ran = scene.command(command).await?;
        expect(ran.code == 0, || ran.said())?;
    }
    tasks.shutdown().await;
    scene.endured(AGAIN, 0).await?;
    let sprung = "SELECT is_called FROM trap.sprung";
    let sprung: bool = scene.admin.query_one(sprung, &[]).await?.get(0);
    expect(!sprung, || "a stand-in of PostgreSQL's own ran".to_owned())?;
    scene.flow.note(bounded(&scene.relay)?);
    scene.end().await
}
