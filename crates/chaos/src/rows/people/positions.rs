//! Positions: the sequence, and rows that bring their own. Rows 59, 60.

use test_support::commits::RECORDED;
use tokio_postgres::Client;

use crate::{
    arena::{DATABASE, OWNER, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::{AUDITED, Scene},
};

pub const ROWS: &[Row] = rows! { setup;
    59, "the sequence restarted, set forward and back, cached, while at work" => sequence(setup);
    60, "rows inserted at or below a mark: explicit ids, COPY, a backup table, nextval() drawn long before" => below(setup);
};

const TAKEN_BACK: &str = "stands below positions that were settled";
const ALARM: &str = "tables or sequence of the outbox were changed; auditing all of it now";
const STRANDED: &str = "outbox_stranded_messages_total";

async fn sequence(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    for (round, (set, is_back)) in [
        ("SELECT setval('outbox.message_id_seq', 1000000)", false),
        ("SELECT setval('outbox.message_id_seq', 5000)", true),
        (
            "SELECT setval('outbox.message_id_seq', 900000000000)",
            false,
        ),
        (
            "ALTER SEQUENCE outbox.message_id_seq RESTART WITH 2000",
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut generation = scene.flow.traffic.standstill().await;
        // So that no position is drawn twice.
        scene.drained().await;
        scene.sql("DELETE FROM outbox.message").await?;
        if is_back {
            // The relay has seen how far it had come.
            scene.audited().await?;
        }
        let before = [TAKEN_BACK, ALARM].map(|text| scene.said(text));
        scene.sql(&format!("BEGIN; {set}")).await?;
        scene
            .flow
            .writes(&scene.owner, &format!("set-{round}-"), 100)
            .await?;
        scene.sql("COMMIT").await?;
        scene.drained().await;
        *generation += 1;
        drop(generation);
        scene.flow.steady(50).await?;
        if is_back {
            for (text, before) in [TAKEN_BACK, ALARM].into_iter().zip(before) {
                scene.logs_again(text, before).await?;
            }
        }
    }
    scene.endured(AUDITED, 0).await?;

    // Back, and where it was, before anybody looks: no sign of it is left, but what lies below the marks.
    let mut generation = scene.flow.traffic.standstill().await;
    scene.passed().await;
    // Then nobody claims a lane, and sees it on the way.
    let unsteady = "outbox.lane WHERE candidate IS NOT NULL";
    scene.until("the marks to stand still", unsteady, 0).await;
    let (said, filed) = (scene.said(TAKEN_BACK), scene.metric(STRANDED).await);
    scene
        .sql(
            "BEGIN; CREATE TEMPORARY TABLE stood ON COMMIT DROP AS SELECT last_value FROM outbox.message_id_seq; \
             SELECT setval('outbox.message_id_seq', 1000); \
             INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'row', 'back-and-forward-' || i, 'written', '{}' FROM generate_series(1, 100) i; \
             SELECT setval('outbox.message_id_seq', last_value) FROM stood; COMMIT",
        )
        .await?;
    let written = format!(
        "SELECT {RECORDED} FROM outbox.message WHERE aggregate_id LIKE 'back-and-forward-%'"
    );
    scene.flow.records(&scene.owner, &written).await?;
    scene.drained().await;
    scene.shows(STRANDED, |n| n > filed).await?;
    expect(scene.said(TAKEN_BACK) == said, || {
        "the sequence was seen where it stood: this was to be found by the audit".to_owned()
    })?;
    *generation += 1;
    drop(generation);
    scene.endured(AUDITED, 0).await?;

    // Each session draws fifty positions ahead: what an idle one writes later comes below the marks.
    let mut generation = scene.flow.traffic.standstill().await;
    let idle = scene.arena.owner().await?;
    let (alarms, filed) = (scene.said(ALARM), scene.metric(STRANDED).await);
    scene
        .sql("ALTER SEQUENCE outbox.message_id_seq CACHE 50")
        .await?;
    scene.logs_again(ALARM, alarms).await?;
    scene
        .logs("the schema is not as it was at the start")
        .await?;
    for n in 0..3 {
        scene.flow.writes(&idle, &format!("idle-{n}-"), 5).await?;
        scene
            .flow
            .writes(&scene.owner, &format!("busy-{n}-"), 300)
            .await?;
        scene.passed().await;
    }
    scene.says(503, "CACHE 1").await?;
    scene.shows("outbox_schema_ok", |ok| ok == 0.0).await?;
    scene.shows(STRANDED, |n| n > filed).await?;
    scene
        .shows("outbox_stranded_messages", |n| n == 0.0)
        .await?;
    scene
        .sql("ALTER SEQUENCE outbox.message_id_seq CACHE 1")
        .await?;
    *generation += 1;
    drop(generation);
    scene.endured(AUDITED, 0).await?;
    scene.ready().await?;
    scene.shows("outbox_schema_ok", |ok| ok == 1.0).await?;
    scene.end().await
}

/// What a copy of a message has, beside what is computed.
const COLUMNS: &str =
    "tx, id, message_id, aggregate_type, aggregate_id, event_type, payload, created_at";

/// Into a table of somebody's, and out of the outbox before anybody saw it.
async fn backup(scene: &Scene<'_>, table: &str) -> Result<()> {
    scene.sql("BEGIN").await?;
    scene
        .flow
        .writes(&scene.owner, &format!("{table}-"), 20)
        .await?;
    let of = format!("outbox.message WHERE aggregate_id LIKE '{table}-%'");
    let sql = format!(
        "CREATE TABLE public.{table} AS SELECT {COLUMNS} FROM {of}; DELETE FROM {of}; COMMIT"
    );
    scene.sql(&sql).await
}

/// The server's answer to it.
async fn refused(owner: &Client, sql: &str) -> Result<()> {
    let refused = owner.batch_execute(sql).await.err();
    let code = refused.as_ref().and_then(|error| error.code());
    expect(code.is_some_and(|code| code.code() == "428C9"), || {
        format!("{sql}: {refused:?}")
    })
}

async fn below(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    let insert = "INSERT INTO outbox.message (id, aggregate_type, event_type, payload) VALUES (7, 'a', 'b', '1')";
    refused(&scene.owner, insert).await?;
    refused(&scene.owner, "UPDATE outbox.message SET id = 7").await?;
    for table in ["copied", "restored"] {
        backup(&scene, table).await?;
    }
    let drawn = "CREATE TABLE public.drawn AS SELECT nextval('outbox.message_id_seq') AS id FROM generate_series(1, 20)";
    scene.sql(drawn).await?;
    scene.flow.traffic.pause(true);
    scene.flow.writes(&scene.owner, "passes-", 200).await?;
    scene.passed().await;
    scene.flow.traffic.pause(false);
    let psql = |sql: &str| scene.arena.postgres.psql(OWNER, OWNER, DATABASE, sql);
    let copied = psql("COPY public.copied TO STDOUT")?;
    psql(&format!(
        "COPY outbox.message ({COLUMNS}) FROM STDIN;\n{copied}\\.\n"
    ))?;
    let restore = format!(
        "INSERT INTO outbox.message ({COLUMNS}) OVERRIDING SYSTEM VALUE SELECT {COLUMNS} FROM public.restored"
    );
    scene.sql(&restore).await?;
    let late = "INSERT INTO outbox.message (id, aggregate_type, aggregate_id, event_type, payload) OVERRIDING SYSTEM VALUE \
                SELECT id, 'row', 'drawn-' || id, 'written', '{}' FROM public.drawn";
    scene.flow.commits(&scene.owner, late).await?;
    scene.endured(AUDITED, 0).await?;
    scene
        .flow
        .note("60 below the marks, each sent once; 2 statements refused");
    scene.end().await
}
