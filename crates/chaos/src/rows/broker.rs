//! RabbitMQ restarts, dies, stands still, refuses. Rows 10 to 12, 18, 20, 21, 23, 26 to 29.

use std::{
    collections::HashSet,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use test_support::{Daemon, amqp, drained, eventually, probe};
use tokio::time::sleep;

use crate::{
    arena::{Arena, QUEUE, SOON, Setup, WINDOW},
    flow::Flow,
    pace,
    row::{Outcome, Result, Row, expect, in_time, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    10, "broker restarts" => restarted(setup);
    11, "broker SIGKILL and restart" => killed(setup);
    12, "broker SIGSTOP" => frozen(setup);
    18, "memory alarm, then disk alarm" => alarms(setup);
    20, "binding missing (unroutable)" => unroutable(setup);
    21, "10 % unroutable, pipelined with good ones, 100 batches" => mixed(setup);
    23, "queue deleted mid-window" => queue_deleted(setup);
    26, "write permission revoked, then granted" => permission_revoked(setup);
    27, "credentials rotated in the secret file" => rotated(setup);
    28, "broker connection limit reached" => connection_limit(setup);
    29, "connection force-closed from the broker" => force_closed(setup);
};

async fn restarted(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let (flow, _relay) = arena.flowing().await?;
    arena.rabbitmq.stop().await?;
    sleep(Duration::from_secs(3)).await;
    arena.rabbitmq.restart().await?;
    flow.heals(Duration::from_secs(30), WINDOW).await
}

async fn killed(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.rabbitmq.remember().await?;
    let (flow, _relay) = arena.flowing().await?;
    arena.rabbitmq.kill().await;
    sleep(Duration::from_secs(3)).await;
    arena.rabbitmq.restart().await?;
    flow.heals(Duration::from_secs(30), WINDOW).await
}

async fn frozen(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    // Only the heartbeats tell.
    arena.patient();
    let (mut flow, relay) = arena.flowing().await?;
    let noticed = nothing_is_marked(&arena, &flow, &relay, || arena.rabbitmq.pause()).await;
    arena.rabbitmq.resume()?;
    let over = Instant::now();
    flow.note(format!("noticed after {:.1} s", noticed?.as_secs_f64()));
    flow.recovers(over, Duration::from_secs(30)).await?;
    // Each worker may have had one more batch on its way whenever it tried.
    flow.finish(2 * WINDOW).await
}

/// Two heartbeats of five seconds, and a little for a busy machine.
const TWO_HEARTBEATS: Duration = Duration::from_secs(13);

/// From `silence` on the broker's answers do not arrive: the relay notices, and marks nothing meanwhile. Begins at rest,
/// for what was confirmed before is rightly marked after.
pub(super) async fn nothing_is_marked(
    arena: &Arena<'_>,
    flow: &Flow,
    relay: &Daemon,
    silence: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    flow.traffic.pause(true);
    let pending = "outbox.message WHERE sent_at IS NULL";
    arena
        .until_count("the relay to be at rest", pending, |n| n == 0)
        .await;
    let sent = "outbox.message WHERE sent_at IS NOT NULL";
    let before = arena.count(sent).await?;
    silence()?;
    let began = Instant::now();
    flow.traffic.pause(false);
    relay.line("RabbitMQ failed", SOON).await;
    let noticed = began.elapsed();
    in_time(began, TWO_HEARTBEATS, || {
        "noticed late; two heartbeats are ten seconds".to_owned()
    })?;
    // Whoever gave up settles what it has by now.
    sleep(Duration::from_secs(2)).await;
    let after = arena.count(sent).await?;
    expect(before == after, || {
        format!(
            "{} messages were marked sent without a confirm",
            after - before
        )
    })?;
    Ok(noticed)
}

async fn alarms(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let port = test_support::free_port()?;
    arena.set("OUTBOXD__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    arena.patient();
    let (mut flow, relay) = arena.flowing().await?;
    let memory = probe::resident_kib(relay.pid())?;
    let alarms = [
        ("set_vm_memory_high_watermark", "0.000001", "0.4"),
        ("set_disk_free_limit", "100000000000000", "50000000"),
    ];
    for (limit, raise, clear) in alarms {
        arena.ctl(&format!("{limit} {raise}")).await?;
        eventually("readiness to say blocked", SOON, async || {
            let (status, body) = probe::get(port, "/readyz").await?;
            (status == 503 && body.contains("blocked")).then_some(())
        })
        .await;
        let open = "pg_stat_activity WHERE usename = 'relay' AND state = 'idle in transaction'";
        arena
            .until_count("no claim to be held", open, |n| n == 0)
            .await;
        // A worker hears of the alarm only when it publishes into it, and gives its claim up then.
        let began = Instant::now();
        sleep(Duration::from_secs(6)).await;
        let seconds = 3.0 * pace::slowness(began);
        let old = format!("xact_start < clock_timestamp() - make_interval(secs => {seconds})");
        let held = arena.count(&format!("{open} AND {old}")).await?;
        arena.ctl(&format!("{limit} {clear}")).await?;
        let over = Instant::now();
        expect(held == 0, || {
            format!("{held} claims were held open through the alarm")
        })?;
        flow.recovers(over, Duration::from_secs(10)).await?;
    }
    let grown = probe::resident_kib(relay.pid())?.saturating_sub(memory);
    flow.note(format!("the relay's memory grew by {grown} KiB"));
    expect(grown < 20 * 1024, || {
        format!("the relay's memory grew by {grown} KiB")
    })?;
    flow.finish(2 * WINDOW).await
}

/// Commits twenty events to this exchange, each of a key of its own.
async fn twenty(arena: &Arena<'_>, flow: &Flow, exchange: &str) -> Result<()> {
    let insert = format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange) \
         SELECT 'row', '{exchange}' || i, 'extra', '{{}}', '{exchange}' FROM generate_series(1, 20) i"
    );
    flow.commits(&arena.owner().await?, &insert).await?;
    Ok(())
}

async fn unroutable(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "3");
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "unbound").await?;
    let (mut flow, _relay) = arena.flowing().await?;
    twenty(&arena, &flow, "unbound").await?;
    let dead =
        "outbox.dead WHERE reason = 'unroutable' AND attempts = 3 AND last_error LIKE '%NO_ROUTE%'";
    arena
        .until_count("the twenty to be dead", dead, |n| n == 20)
        .await;
    let marked = "outbox.message WHERE exchange = 'unbound' AND sent_at IS NOT NULL";
    let marked = arena.count(marked).await?;
    expect(marked == 0, || {
        format!("{marked} unroutable messages were marked sent")
    })?;
    flow.steady(100).await?;
    flow.lets_die(20);
    flow.finish(0).await
}

async fn mixed(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1");
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "unbound").await?;
    let mut flow = arena.flow().await?;
    flow.traffic.pause(true);
    let client = arena.owner().await?;
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange) \
                  SELECT 'row', (i % 500)::text, 'mixed', '{}', CASE WHEN i % 10 = 3 THEN 'unbound' END \
                  FROM generate_series(1, 5000) i";
    flow.commits(&client, insert).await?;
    let _relay = arena.relay()?;
    drained(&client).await;
    let wrong = "outbox.message m FULL JOIN outbox.dead d ON d.lane = m.lane AND d.id = m.id \
                 WHERE m.event_type = 'mixed' AND ((m.exchange = 'unbound') IS TRUE) <> (d.id IS NOT NULL) \
                    OR d.id IS NOT NULL AND d.reason <> 'unroutable'";
    let wrong = arena.count(wrong).await?;
    expect(wrong == 0, || {
        format!("{wrong} of 5,000 were taken for what they are not")
    })?;
    flow.lets_die(500);
    flow.finish(0).await
}

async fn queue_deleted(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::shared(setup).await?;
    // A confirm that the queue owed may never come.
    arena.short_confirms();
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::queue(&channel, "gone").await?;
    amqp::bind(&channel, "events", "gone").await?;
    let (mut flow, _relay) = arena.flowing().await?;
    // Every worker has a full batch on its way, and goes on to the next.
    let many = flow.writes(&arena.owner().await?, "many-", 5000).await?;
    flow.steady(300).await?;
    amqp::delete(&channel, "gone").await?;
    let over = Instant::now();
    let arrived = flow.deliveries.seen();
    let arrived: HashSet<_> = arrived.iter().map(|seen| seen.message_id).collect();
    let left = many.iter().filter(|id| !arrived.contains(id)).count();
    expect(left > WINDOW, || {
        format!("{left} were left when the queue was gone: no confirm need have been open")
    })?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.finish(2 * WINDOW).await
}

async fn permission_revoked(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let channel = amqp::channel(&arena.broker_url()).await?;
    amqp::exchange(&channel, "other").await?;
    amqp::bind(&channel, "other", QUEUE).await?;
    arena.ctl("add_user relay relay").await?;
    arena.ctl("set_permissions relay ^$ .* ^$").await?;
    let url = arena.rabbitmq.url_for("relay", "relay", "/");
    arena.set("AMQP_URL", &url);
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000");
    let (mut flow, relay) = arena.flowing().await?;
    arena.ctl("set_permissions relay ^$ events ^$").await?;
    twenty(&arena, &flow, "other").await?;
    let refused = "outbox.waiting WHERE reason = 'access_refused'";
    arena
        .until_count("the twenty to wait", refused, |n| n == 20)
        .await;
    flow.steady(300).await?;
    arena.ctl("set_permissions relay ^$ .* ^$").await?;
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(15)).await?;
    expect(std::fs::exists(format!("/proc/{}", relay.pid()))?, || {
        "the relay ended".into()
    })?;
    flow.finish(20 * WINDOW).await
}

async fn rotated(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let folder = tempfile::tempdir()?;
    let [of_broker, of_database] = ["broker", "database"].map(|name| folder.path().join(name));
    for (file, section) in [(&of_broker, "BROKER"), (&of_database, "DATABASE")] {
        secret(file, "first")?;
        let setting = format!("OUTBOXD__{section}__PASSWORD_FILE");
        arena.set(&setting, &file.display().to_string());
    }
    arena.ctl("add_user relay first").await?;
    arena.ctl("set_permissions relay ^$ .* ^$").await?;
    let client = arena.client().await?;
    let first = "ALTER ROLE relay PASSWORD 'first'";
    client.batch_execute(first).await?;
    let url = format!("amqp://relay@127.0.0.1:{}/%2f", arena.rabbitmq.port());
    arena.set("AMQP_URL", &url);
    let url = arena.database_url().replace("relay:relay@", "relay@");
    arena.set("DATABASE_URL", &url);
    let (mut flow, relay) = arena.flowing().await?;

    arena.ctl("change_password relay second").await?;
    arena.ctl("close_all_connections rotation").await?;
    relay.line("ACCESS_REFUSED", SOON).await;
    secret(&of_broker, "second")?;
    let over = Instant::now();
    flow.endured(over, Duration::from_secs(15), WINDOW).await?;

    let second = "ALTER ROLE relay PASSWORD 'second'; \
                  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'";
    client.batch_execute(second).await?;
    relay.line("SQLSTATE 28P01", SOON).await;
    secret(&of_database, "second")?;
    let over = Instant::now();
    flow.endured(over, Duration::from_secs(15), WINDOW).await?;
    flow.end().await
}

fn secret(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

async fn connection_limit(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let (flow, relay) = arena.flowing().await?;
    let none = r#"set_vhost_limits -p / {"max-connections":0}"#;
    arena.ctl(none).await?;
    arena.ctl("close_all_connections limit").await?;
    relay.line("connection limit (0) is reached", SOON).await;
    arena.ctl("clear_vhost_limits -p /").await?;
    flow.heals(Duration::from_secs(15), WINDOW).await
}

async fn force_closed(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let (flow, _relay) = arena.flowing().await?;
    arena.ctl("close_all_connections maintenance").await?;
    flow.heals(Duration::from_secs(5), WINDOW).await
}
