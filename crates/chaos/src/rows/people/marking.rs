//! Whatever keeps the relay from marking what it has sent: locks, privileges, triggers. Rows 65, 66.

use std::time::Duration;

use test_support::eventually;

use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    65, "a table lock that lets reads pass; one row locked" => locked(setup);
    66, "marking impossible: privilege revoked, a trigger that raises, swallows or keeps the old row, a publication with a row filter, read-only" => obstructed(setup);
};

const UNMARKED: &str = "messages cannot be marked";
const MARKED_AGAIN: &str = "messages are marked as sent again";
const AGAIN: Duration = Duration::from_secs(15);

/// Attempts that are not put off for long: a relay that repeats itself has much of a flood within a second.
async fn impatient(setup: &Setup) -> Result<Scene<'_>> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__BACKOFF_INITIAL", "20ms");
    arena.set("OUTBOXD__RELAY__BACKOFF_MAX", "200ms");
    arena.set("OUTBOXD__DATABASE__LOCK_TIMEOUT", "200ms");
    Scene::of(arena).await
}

/// Times that it has failed so far.
fn failures(scene: &Scene<'_>) -> usize {
    let lines = scene.relay.lines();
    lines
        .iter()
        .filter(|line| line.contains("backing off"))
        .count()
}

async fn several_attempts(scene: &Scene<'_>, before: usize) {
    eventually("eight attempts", SOON, async || {
        (failures(scene) >= before + 8).then_some(())
    })
    .await;
}

async fn locked(setup: &Setup) -> Result<Outcome> {
    let mut scene = impatient(setup).await?;
    for table in ["message", "lane", "waiting", "dead"] {
        let before = failures(&scene);
        let told = scene.said(UNMARKED);
        let person = person(&scene, &format!("locks-{table}")).await?;
        // The messages are committed when the lock is taken, so the relay finds them pending under the lock.
        scene.sql("BEGIN").await?;
        scene
            .flow
            .writes(&scene.owner, &format!("{table}-"), 300)
            .await?;
        let lock = format!("BEGIN; LOCK TABLE outbox.{table} IN SHARE MODE");
        let locks = person.batch_execute(&lock);
        let commit = async {
            if table == "message" {
                let asked = "pg_locks WHERE NOT granted AND mode = 'ShareLock' AND relation = 'outbox.message'::regclass";
                scene.until("the lock to be asked for", asked, 1).await;
            }
            scene.sql("COMMIT").await
        };
        let (locks, commit) = tokio::join!(locks, commit);
        locks?;
        commit?;
        scene.logs_again(UNMARKED, told).await?;
        scene.logs(&format!("locks-{table}")).await?;
        several_attempts(&scene, before).await;
        person.batch_execute("COMMIT").await?;
        // Its own locks on the tables are there before it publishes.
        scene.endured(AGAIN, 0).await?;
    }
    one_row(&mut scene).await?;
    // What is said is the cause, not what came of it.
    let lines = scene.relay.lines();
    let other = lines.iter().find(|line| line.contains("25P02"));
    expect(other.is_none(), || format!("the relay said: {other:?}"))?;
    scene.end().await
}

/// Somebody with a name of their own, whom the relay can tell.
async fn person(scene: &Scene<'_>, name: &str) -> Result<tokio_postgres::Client> {
    let client = scene.arena.owner().await?;
    client
        .batch_execute(&format!("SET application_name = '{name}'"))
        .await?;
    Ok(client)
}

async fn one_row(scene: &mut Scene<'_>) -> Result<()> {
    let person = person(scene, "locks-a-row").await?;
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, available_at) \
                  VALUES ('row', 'locked', 'x', '{}', clock_timestamp() + interval '1 s')";
    scene.flow.commits(&scene.owner, insert).await?;
    let lock = "BEGIN; SELECT FROM outbox.message WHERE aggregate_id = 'locked' FOR UPDATE";
    person.batch_execute(lock).await?;
    let unmarkable = "outbox.waiting WHERE reason = 'unmarkable'";
    scene.until("the locked one to wait", unmarkable, 1).await;
    // Its neighbours are on their way, and those that come later as well.
    scene.flow.steady(200).await?;
    scene.logs("locks-a-row").await?;
    person.batch_execute("COMMIT").await?;
    scene.endured(AGAIN, WINDOW).await
}

/// What a person does, how it is undone, and what is said of it.
const OBSTACLES: &[(&str, &str, &str)] = &[
    (
        "REVOKE UPDATE (sent_at) ON outbox.message FROM outbox_relay",
        "GRANT UPDATE (sent_at) ON outbox.message TO outbox_relay",
        "permission denied",
    ),
    (
        "CREATE FUNCTION public.swallows() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER person BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION public.swallows()",
        "DROP TRIGGER person ON outbox.message",
        "trigger",
    ),
    (
        "CREATE FUNCTION public.keeps() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'; \
         CREATE TRIGGER person BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION public.keeps()",
        "DROP TRIGGER person ON outbox.message",
        "let it pass UPDATEs of sent_at",
    ),
    (
        "CREATE TRIGGER person BEFORE UPDATE ON outbox.message FOR EACH ROW EXECUTE FUNCTION public.raises('a row')",
        "DROP TRIGGER person ON outbox.message",
        "immutable: a row",
    ),
    (
        "CREATE TRIGGER person AFTER UPDATE ON outbox.message EXECUTE FUNCTION public.raises('a statement')",
        "DROP TRIGGER person ON outbox.message",
        "immutable: a statement",
    ),
    (
        "CREATE CONSTRAINT TRIGGER person AFTER UPDATE ON outbox.message DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION public.raises('a commit')",
        "DROP TRIGGER person ON outbox.message",
        "immutable: a commit",
    ),
    (
        "CREATE PUBLICATION person FOR TABLE outbox.message WHERE (event_type = 'created')",
        "DROP PUBLICATION person",
        "row filter",
    ),
];

async fn obstructed(setup: &Setup) -> Result<Outcome> {
    let mut scene = impatient(setup).await?;
    let raises = "CREATE FUNCTION public.raises() RETURNS trigger LANGUAGE plpgsql \
                  AS 'BEGIN RAISE ''immutable: %'', TG_ARGV[0]; END'";
    scene.sql(raises).await?;
    // Row filters came with PostgreSQL 15.
    let version = "SELECT current_setting('server_version_num')::int";
    let filters = scene.owner.query_one(version, &[]).await?.get::<_, i32>(0) >= 150_000;
    for (obstacle, cure, said) in OBSTACLES {
        if !filters && obstacle.contains("PUBLICATION") {
            continue;
        }
        let before = failures(&scene);
        let (told, again) = (scene.said(said), scene.said(MARKED_AGAIN));
        scene.sql(obstacle).await?;
        scene.says(503, "cannot_mark").await?;
        scene.shows("outbox_can_mark", |can| can == 0.0).await?;
        scene.logs_again(said, told).await?;
        several_attempts(&scene, before).await;
        scene.flow.duplicates().await?;
        let delivered = scene.flow.deliveries.len();
        several_attempts(&scene, before + 8).await;
        scene.flow.duplicates().await?;
        // One of them marks the end of the queue.
        let more = scene.flow.deliveries.len() - delivered - 1;
        expect(more <= 8, || {
            format!("{obstacle}: {more} more deliveries while nothing can be marked")
        })?;
        scene.sql(cure).await?;
        scene.endured(AGAIN, WINDOW).await?;
        scene.ready().await?;
        scene.logs_again(MARKED_AGAIN, again).await?;
    }
    // Whatever is written is refused.
    scene
        .superuser(
            "ALTER ROLE relay SET default_transaction_read_only = on; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'",
        )
        .await?;
    scene.says(503, "default_transaction_read_only").await?;
    scene
        .superuser("ALTER ROLE relay RESET default_transaction_read_only")
        .await?;
    scene.endured(AGAIN, WINDOW).await?;
    let lines = scene.relay.lines();
    expect(!lines.iter().any(|line| line.contains("panicked")), || {
        "the relay panicked".to_owned()
    })?;
    scene.end().await
}
