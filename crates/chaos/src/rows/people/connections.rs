//! Connections: too few of them, and all of them dead without a word. Rows 71, 72.

use std::time::{Duration, Instant};

use test_support::eventually;

use crate::{
    arena::{Arena, BATCH, SOON, Setup, since},
    row::{Outcome, Result, Row, in_time, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    71, "fewer connections than the relay wants, at either server" => few(setup);
    72, "every session silent at once (half-open)" => silent(setup);
};

const WORKERS: usize = 4;
const AGAIN: Duration = Duration::from_secs(15);

async fn few(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.ctl("add_user relay relay").await?;
    arena.ctl("set_permissions relay .* .* .*").await?;
    let url = arena.rabbitmq.url_for("relay", "relay", "/");
    arena.set("AMQP_URL", &url);
    arena.set("OUTBOXD__RELAY__WORKERS", &WORKERS.to_string());
    let mut scene = Scene::of(arena).await?;
    for limit in [6, 5, 4, 3, 2] {
        // It wants seven. As all of them end, it gets no more than this.
        scene
            .superuser(&format!(
                "ALTER ROLE relay CONNECTION LIMIT {limit}; \
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'"
            ))
            .await?;
        scene.flow.steady(200).await?;
        scene.ready().await?;
        if limit > 2 {
            let gauge = "outbox_pending_messages";
            scene.shows(gauge, |pending| !pending.is_nan()).await?;
        }
        scene.endured(AGAIN, WORKERS * BATCH).await?;
    }
    // And few to RabbitMQ for four workers: who has the one must be who has the other.
    for (limit, brokers) in [(2, 1), (-1, 1), (-1, 2)] {
        scene.stop().await?;
        let sql = format!("ALTER ROLE relay CONNECTION LIMIT {limit}");
        scene.superuser(&sql).await?;
        let few = format!(r#"set_user_limits relay {{"max-connections":{brokers}}}"#);
        scene.arena.ctl(&few).await?;
        scene.relay = scene.arena.relay()?;
        scene.flow.steady(200).await?;
        scene.ready().await?;
        scene.endured(AGAIN, 0).await?;
    }
    // With one to PostgreSQL there is nobody to publish, and that is said.
    scene.stop().await?;
    scene
        .superuser("ALTER ROLE relay CONNECTION LIMIT 1")
        .await?;
    scene.relay = scene.arena.relay()?;
    scene.logs("SQLSTATE 53300").await?;
    scene.says(503, "CONNECTION LIMIT").await?;
    scene
        .superuser("ALTER ROLE relay CONNECTION LIMIT -1")
        .await?;
    scene.endured(AGAIN, 0).await?;
    scene.end().await
}

/// A statement's, the five seconds more that a session gets, and the two within which the others must answer then.
const AT_WORK: Duration = Duration::from_secs(9);
/// An idle session is asked every fifteen seconds.
const ASLEEP: Duration = Duration::from_secs(17);
/// Beside it: to connect again, and to send what had to wait, on a busy machine.
const BESIDE: Duration = Duration::from_secs(6);

async fn silent(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let (database, broker) = (arena.database_proxy().await?, arena.broker_proxy().await?);
    arena.short_confirms();
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "2s");
    // Within which the server frees what a silent session had locked.
    arena.set("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "4s");
    arena.set("OUTBOXD__RELAY__WORKERS", "8");
    let mut scene = Scene::of(arena).await?;
    // Eight workers, the scout, the listener, the maintenance.
    let wanted = 8 + 3;
    let sessions = "pg_stat_activity WHERE usename = 'relay'";
    scene.until("all sessions", sessions, wanted).await;
    let mut slowest = 0.0_f64;
    for (at_work, bound) in [(true, AT_WORK), (false, ASLEEP)] {
        scene.flow.traffic.pause(!at_work);
        if !at_work {
            scene.drained().await;
        }
        let began = Instant::now();
        database.forget();
        if at_work {
            broker.forget();
        }
        scene.flow.traffic.pause(false);
        eventually("every session to be replaced", SOON, async || {
            // Those of before are there until the server finds out by itself.
            let new = format!(
                "{sessions} AND backend_start > clock_timestamp() - make_interval(secs => {})",
                since(began)
            );
            (scene.arena.count(&new).await.ok()? >= wanted).then_some(())
        })
        .await;
        slowest = slowest.max(since(began));
        in_time(began, bound + BESIDE, || {
            "the last session was replaced late; they are found one after the other".to_owned()
        })?;
        scene.endured(AGAIN, 8 * BATCH).await?;
    }
    scene
        .flow
        .note(format!("all sessions replaced within {slowest:.1} s"));
    scene.end().await
}
