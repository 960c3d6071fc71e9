//! PostgreSQL restarts, dies, stalls, refuses, runs full. Rows 30 to 33, 37 to 41, 43.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use test_support::{Mode, PostgresOptions, RabbitMqOptions, eventually};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    30, "PostgreSQL restarts while idle" => restarted(setup);
    31, "PostgreSQL SIGKILL between publish and settle" => killed(setup);
    32, "the relay's backend is SIGSTOPped" => backend_stopped(setup);
    33, "half-open connection to PostgreSQL" => half_open(setup);
    37, "PostgreSQL's disk is full" => disk_full(setup);
    38, "max_connections reached" => no_connections(setup);
    39, "deadlock and serialization failure in settle" => settle_fails(setup);
    40, "a schema migration holds ACCESS EXCLUSIVE" => locked(setup);
    41, "NOTIFY lost, listener connection dead" => not_notified(setup);
    43, "a long producer transaction commits a low id late" => late_commit(setup);
};

async fn restarted(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let (mut flow, relay) = arena.flowing().await?;
    flow.traffic.pause(true);
    let pending = "outbox.message WHERE sent_at IS NULL";
    arena
        .until_count("the relay to be idle", pending, |n| n == 0)
        .await;
    arena.postgres.stop().await?;
    relay.line("PostgreSQL failed", SOON).await;
    arena.postgres.restart().await?;
    let over = Instant::now();
    flow.traffic.pause(false);
    flow.steady(1).await?;
    flow.recovers(over, Duration::from_secs(10)).await?;
    flow.finish(0).await
}

async fn killed(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let folder = tempfile::tempdir()?;
    let gate = folder.path().join("open");
    let failpoint = format!("confirm.before_settle=until:{}", gate.display());
    arena.set("OUTBOXD_FAILPOINT", &failpoint);
    let relay = arena.relay()?;
    let mut flow = arena.flow().await?;
    relay.line("failpoint reached", SOON).await;
    arena.postgres.kill().await;
    std::fs::write(gate, "")?;
    arena.postgres.restart().await?;
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(15)).await?;
    let outcome = flow.finish(WINDOW).await?;
    expect(outcome.report.duplicates > 0, || {
        "no duplicate: it had not published, and the row proves nothing".into()
    })?;
    Ok(outcome)
}

/// A backend of one of the relay's workers.
async fn worker_backend(client: &Client) -> Pid {
    let sql = "SELECT pid FROM pg_stat_activity WHERE usename = 'relay' AND query LIKE '%outbox%' \
               AND state IN ('active', 'idle in transaction') ORDER BY xact_start LIMIT 1";
    let pid = eventually("a worker in a claim", SOON, async || {
        let row = client.query_opt(sql, &[]).await.ok()??;
        row.try_get::<_, i32>(0).ok()
    })
    .await;
    Pid::from_raw(pid)
}

async fn backend_stopped(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "2s");
    arena.set("OUTBOXD__RELAY__WORKERS", "3");
    let (mut flow, relay) = arena.flowing().await?;
    let client = arena.client().await?;
    let backend = worker_backend(&client).await;
    kill(backend, Signal::SIGSTOP)?;
    // Given up on the client's side, and the other workers go on.
    let noticed = tokio::time::timeout(SOON, relay.line("PostgreSQL failed", SOON)).await;
    let others = flow.steady(100).await;
    kill(backend, Signal::SIGCONT)?;
    let over = Instant::now();
    noticed?;
    others?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.finish(WINDOW).await
}

async fn half_open(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let usual = arena.env().to_vec();
    let proxy = arena.database_proxy().await?;
    arena.short_confirms();
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    arena.set("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "4s");
    let (mut flow, relay) = arena.flowing().await?;
    proxy.set(Mode::Stall);
    relay.line("PostgreSQL failed", SOON).await;
    // A peer on a good network, with the usual time-outs, gets the lanes once the server has freed them.
    arena.set_all(usual);
    let _peer = arena.relay()?;
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(20)).await?;
    proxy.set(Mode::Forward);
    flow.steady(200).await?;
    flow.finish(2 * WINDOW).await
}

async fn disk_full(setup: &Setup) -> Result<Outcome> {
    let Some(small) = SmallDisk::mount()? else {
        return Ok(Outcome::skipped("a tmpfs cannot be mounted here"));
    };
    let options = PostgresOptions {
        settings: ["max_wal_size", "min_wal_size"]
            .map(|name| (name.to_owned(), "32MB".to_owned()))
            .into(),
        under: Some(small.path()),
        ..PostgresOptions::default()
    };
    let mut arena = Arena::start_with(setup, options, RabbitMqOptions::default()).await?;
    let (mut flow, _relay) = arena.flowing().await?;
    let ballast = small.fill()?;
    let client = arena.client().await;
    // Whatever the server does now: refuse to extend a table, or panic for want of a log and come back.
    let refused = eventually("a commit to fail", SOON, async || {
        let Ok(client) = &client else { return Some(()) };
        let sql = "CREATE TABLE IF NOT EXISTS ballast (a text); \
                   INSERT INTO ballast SELECT repeat('x', 1000) FROM generate_series(1, 2000)";
        client.batch_execute(sql).await.err().map(drop)
    });
    refused.await;
    sleep(Duration::from_secs(5)).await;
    std::fs::remove_file(ballast)?;
    if arena.client().await.is_err() {
        arena.postgres.restart().await?;
    }
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(30)).await?;
    flow.note("a growing lag alerts: OutboxLagWarning, OutboxDatabaseLagWarning");
    flow.finish(10 * WINDOW).await
}

/// A file system that is soon full.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where that is not allowed.
    fn mount() -> Result<Option<Self>> {
        let folder = tempfile::Builder::new()
            .prefix("outboxd-small-")
            .tempdir()?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=160m", "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        Ok(mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder)))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().to_owned()
    }

    /// Leaves nothing.
    fn fill(&self) -> Result<std::path::PathBuf> {
        use std::io::Write;
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path)?;
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
        if !unmount.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.path().display());
        }
    }
}

async fn no_connections(setup: &Setup) -> Result<Outcome> {
    let mut options = PostgresOptions::default();
    options
        .settings
        .push(("max_connections".to_owned(), "24".to_owned()));
    let arena = Arena::start_with(setup, options, RabbitMqOptions::default()).await?;
    let (mut flow, relay) = arena.flowing().await?;
    let client = arena.client().await?;
    let url = arena
        .postgres
        .url_for("producer", "producer", crate::arena::DATABASE);
    let mut held = Vec::new();
    // As the relay's backends end, somebody else takes their places.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'";
    client.batch_execute(cut).await?;
    while let Ok(connection) = crate::flow::connect(&url).await {
        held.push(connection);
    }
    client.batch_execute(cut).await?;
    while let Ok(connection) = crate::flow::connect(&url).await {
        held.push(connection);
    }
    relay.line("PostgreSQL failed", SOON).await;
    sleep(Duration::from_secs(4)).await;
    flow.note(format!("{} other connections", held.len()));
    drop(held);
    flow.heals(Duration::from_secs(15), 2 * WINDOW).await
}

async fn settle_fails(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let (flow, _relay) = arena.flowing().await?;
    let client = arena.owner().await?;
    // A number drawn from a sequence is not rolled back: the failures end.
    client
        .batch_execute(
            "CREATE SEQUENCE public.failures; GRANT USAGE ON SEQUENCE public.failures TO PUBLIC; \
             CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ \
             DECLARE n bigint := nextval('public.failures'); BEGIN \
                 IF n <= 5 THEN RAISE EXCEPTION 'a deadlock, says the row' USING ERRCODE = '40P01'; END IF; \
                 IF n <= 10 THEN RAISE EXCEPTION 'a conflict, says the row' USING ERRCODE = '40001'; END IF; \
                 RETURN NULL; \
             END $$; \
             CREATE TRIGGER fail AFTER UPDATE OF sent_at ON outbox.message FOR EACH STATEMENT EXECUTE FUNCTION public.fail()",
        )
        .await?;
    eventually("ten settles to fail", SOON, async || {
        let sql = "SELECT last_value > 10 FROM public.failures";
        let row = client.query_one(sql, &[]).await.ok()?;
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    flow.heals(Duration::from_secs(15), 10 * WINDOW).await
}

async fn locked(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__DATABASE__LOCK_TIMEOUT", "500ms");
    let (flow, relay) = arena.flowing().await?;
    let mut migrating = arena.owner().await?;
    let migration = migrating.transaction().await?;
    migration
        .batch_execute("LOCK TABLE outbox.message, outbox.lane IN ACCESS EXCLUSIVE MODE")
        .await?;
    relay.line("lock timeout", SOON).await;
    sleep(Duration::from_secs(3)).await;
    migration.commit().await?;
    // LOCK waits for the claims that are there, which have ended then; those that wait for it have published nothing.
    flow.heals(Duration::from_secs(15), 0).await
}

async fn not_notified(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__POLL_INTERVAL", "1s");
    let client = arena.client().await?;
    let (mut flow, _relay) = arena.flowing().await?;
    flow.traffic.pause(true);
    let pending = "outbox.message WHERE sent_at IS NULL";
    arena
        .until_count("the relay to be idle", pending, |n| n == 0)
        .await;
    let silent = "ALTER TABLE outbox.message DISABLE TRIGGER wake; \
                  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay' AND query ILIKE 'LISTEN%'";
    client.batch_execute(silent).await?;
    // Whoever listens again hears nothing: the trigger is off.
    sleep(Duration::from_secs(3)).await;
    flow.writes(&client, "quiet-", 1).await?;
    let over = Instant::now();
    // The poll interval, and a moment.
    flow.recovers(over, Duration::from_secs(3)).await?;
    flow.finish(0).await
}

async fn late_commit(setup: &Setup) -> Result<Outcome> {
    let arena = Arena::start(setup).await?;
    let (mut flow, _relay) = arena.flowing().await?;
    let mut client = arena.owner().await?;
    let late = client.transaction().await?;
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                  VALUES ('row', 'late', 'x', '{}')";
    flow.commits(&late, insert).await?;
    let position = "SELECT max(id) FROM outbox.message WHERE aggregate_id = 'late'";
    let position: i64 = late.query_one(position, &[]).await?.get(0);
    // Enough for the low-water mark of each lane to want to pass it.
    flow.traffic.pause(true);
    let other = arena.owner().await?;
    for _ in 0..4 {
        let many = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                    SELECT 'row', 'many-' || i % 500, 'x', '{}' FROM generate_series(1, 5000) i";
        flow.commits(&other, many).await?;
        let pending = "outbox.message WHERE sent_at IS NULL";
        arena
            .until_count("the others to be sent", pending, |n| n == 0)
            .await;
    }
    let marks = format!("outbox.lane WHERE low_water >= {position}");
    let passed = arena.count(&marks).await?;
    late.commit().await?;
    let over = Instant::now();
    expect(passed == 0, || {
        format!("{passed} low-water marks passed a position that can still appear")
    })?;
    flow.recovers(over, Duration::from_secs(10)).await?;
    flow.traffic.pause(false);
    flow.steady(100).await?;
    arena
        .until_count("the marks to pass it", &marks, |n| n > 0)
        .await;
    flow.finish(0).await
}
