//! `outboxd migrate` beside another one, and beside a relay at work. Row 74.

use std::time::Duration;

use test_support::eventually;

use crate::{
    arena::{OWNER, SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::{BESIDE, Scene},
};

pub const ROWS: &[Row] = rows! { setup;
    74, "`outboxd migrate` twice at once, beside a relay at work, and a version of tomorrow" => migrated(setup);
};

async fn migrated(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    at_once(&scene).await?;
    at_work(&mut scene).await?;
    scene.end().await
}

/// Two at once take turns: one has all to do, and the other one nothing.
async fn at_once(scene: &Scene<'_>) -> Result<()> {
    let (postgres, database) = (&scene.arena.postgres, "at_once");
    postgres.create_database(database, OWNER).await?;
    let migrate = || {
        let url = postgres.url_for(OWNER, OWNER, database);
        let env = [("DATABASE_URL".to_owned(), url)];
        scene.arena.setup.outboxd(&["migrate"], env)
    };
    let holder = postgres.connect(database).await?;
    // What a migration takes before it looks.
    holder
        .batch_execute("BEGIN; SELECT pg_advisory_xact_lock(31351991786104690)")
        .await?;
    let wait = async {
        eventually("both to wait for their turn", SOON, async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                           WHERE d.datname = 'at_once' AND l.locktype = 'advisory' AND NOT l.granted";
            let waiting: i64 = holder.query_one(waiting, &[]).await.ok()?.get(0);
            (waiting == 2).then_some(())
        })
        .await;
        holder.batch_execute("COMMIT").await
    };
    let (one, two, released) = tokio::join!(migrate(), migrate(), wait);
    released?;
    let mut applied = 0;
    for ran in [one?, two?] {
        expect(ran.code == 0, || ran.said())?;
        applied += usize::from(ran.stdout.contains("0001_outbox.sql"));
    }
    expect(applied == 1, || {
        format!("{applied} of two migrations at once applied it")
    })
}

/// Beside a relay at work: nothing to do, twice at once; and a version of tomorrow: who is there says so, who starts is refused.
async fn at_work(scene: &mut Scene<'_>) -> Result<()> {
    let url = scene.arena.owner_url();
    let setup = scene.arena.setup;
    let env = || [("DATABASE_URL".to_owned(), url.clone())];
    let (one, two) = tokio::join!(
        setup.outboxd(&["migrate"], env()),
        setup.outboxd(&["migrate"], env())
    );
    for ran in [one?, two?] {
        expect(ran.code == 0, || ran.said())?;
    }
    scene
        .sql("INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')")
        .await?;
    scene.says(503, "schema version 99").await?;
    scene.shows("outbox_schema_ok", |ok| ok == 0.0).await?;
    for command in [&["check", "--connect"][..], BESIDE] {
        let refused = scene.command(command).await?;
        let said = refused.code == 78 && refused.stderr.contains("schema version 99");
        expect(said, || {
            format!("{command:?}: {} {}", refused.code, refused.said())
        })?;
    }
    scene.flow.steady(100).await?;
    scene
        .sql("DELETE FROM outbox.migration WHERE version = 99")
        .await?;
    scene.ready().await?;
    scene.endured(Duration::from_secs(15), 0).await
}
