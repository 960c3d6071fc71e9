//! What stands between the relay and its servers, or around it: a pooler, a clock, a name. Rows 42, 47, 48.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use test_support::{Daemon, Mode, PgBouncer, Proxy, amqp, eventually, over};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::{
    arena::{self, Arena, SOON, Setup, WINDOW},
    pace,
    row::{Outcome, Result, Row, expect, rows, within},
};

pub const ROWS: &[Row] = rows! { setup;
    42, "through PgBouncer in transaction mode" => pooled(setup);
    47, "wall clock of the relay off by an hour, either way" => clock_off(setup);
    48, "DNS names re-pointed to new addresses" => repointed(setup);
};

async fn pooled(setup: &Setup) -> Result<Outcome> {
    if !test_support::pgbouncer_is_installed() {
        return Ok(Outcome::skipped("pgbouncer is not installed"));
    }
    let mut arena = Arena::start(setup).await?;
    // Fewer connections than the relay has sessions (two workers, the scout, the maintenance): they do share.
    let pool = 3;
    let direct = arena.postgres.port();
    let pooler = PgBouncer::start(direct, &[("relay", "relay")], pool).await?;
    let url = over(&arena.database_url(), pooler.port());
    arena.set("DATABASE_URL", &url);
    arena.set("OUTBOXD__DATABASE__PREPARED_STATEMENTS", "false");
    arena.set("OUTBOXD__DATABASE__LISTEN", "false");
    let relay = arena.relay()?;
    let mut flow = arena.flow().await?;
    flow.steady(400).await?;
    let shared = "pg_stat_activity WHERE usename = 'relay'";
    let shared = arena.count(shared).await?;
    expect((1..=3).contains(&shared), || {
        format!("{shared} server connections: they are not pooled")
    })?;
    // The connections below are replaced, one after the other, between two transactions.
    pooler.console("RECONNECT").await?;
    flow.steady(200).await?;
    // And from now on, whatever a transaction left behind in one is discarded.
    pooler.console("SET server_reset_query_always = 1").await?;
    flow.steady(400).await?;
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(10)).await?;
    let outcome = flow.finish(0).await?;
    let lines = relay.lines();
    let error = lines.iter().find(|line| {
        line.contains("SQLSTATE") || line.contains("PostgreSQL") || line.contains("maintenance")
    });
    expect(error.is_none(), || format!("a statement failed: {error:?}"))?;
    Ok(outcome)
}

/// Debian's, or wherever `OUTBOXD_TEST_FAKETIME` says.
fn faketime() -> Option<PathBuf> {
    let told = std::env::var_os("OUTBOXD_TEST_FAKETIME").map(PathBuf::from);
    let found = std::fs::read_dir("/usr/lib").ok()?.flatten();
    told.into_iter()
        .chain(found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
}

async fn clock_off(setup: &Setup) -> Result<Outcome> {
    let Some(library) = faketime() else {
        return Ok(Outcome::skipped("libfaketime is not installed"));
    };
    let mut arena = Arena::start(setup).await?;
    arena.set("LD_PRELOAD", &library.display().to_string());
    // Only the time of day is wrong: no clock that a timer runs by goes backwards on any machine.
    arena.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000");
    let client = arena.owner().await?;
    let channel = amqp::channel(&arena.broker_url()).await?;
    let mut flow = arena.flow().await?;
    let mut late = 0.0_f64;
    for (offset, seconds) in [("+1h", 3600.0), ("-1h", -3600.0)] {
        arena.set("FAKETIME", offset);
        let began = Instant::now();
        let mut relay = arena.relay()?;
        flow.steady(200).await?;
        let off = clock_of(&relay, &client).await?;
        // The line was written a while ago.
        expect((off - seconds).abs() < 900.0, || {
            format!("the relay's clock is off by {off:.0} s instead of {offset}")
        })?;
        let unbound = format!("unbound{offset}");
        amqp::exchange(&channel, &unbound).await?;
        for n in 0..5 {
            let in_four_seconds = "clock_timestamp() + interval '4 s'";
            let scheduled = (format!("{offset}s{n}"), "NULL".to_owned(), in_four_seconds);
            let retried = (format!("{offset}r{n}"), format!("'{unbound}'"), "NULL");
            for (key, exchange, available_at) in [scheduled, retried] {
                // A destination each: no circuit holds those that fail.
                let insert = format!(
                    "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange, routing_key, available_at) \
                     VALUES ('row', '{key}', 'timed', '{{}}', {exchange}, '{key}', {available_at})"
                );
                flow.commits(&client, &insert).await?;
            }
        }
        retries_are_on_time(&client).await?;
        amqp::bind(&channel, &unbound, arena::QUEUE).await?;
        let all_sent = "outbox.message WHERE event_type = 'timed' AND sent_at IS NULL";
        arena
            .until_count("all of them to be sent", all_sent, |n| n == 0)
            .await;
        let sql = "SELECT extract(epoch FROM min(sent_at - available_at))::float8, \
                          extract(epoch FROM max(sent_at - available_at))::float8 FROM outbox.message";
        let row = client.query_one(sql, &[]).await?;
        let (first, last): (f64, f64) = (row.get(0), row.get(1));
        expect(first >= 0.0, || {
            format!("a scheduled message was sent {:.1} s early", -first)
        })?;
        let (took, bound) = (Duration::from_secs_f64(last), Duration::from_secs(5));
        within(took, bound, pace::slowness(began), || {
            "a scheduled message was sent late".to_owned()
        })?;
        late = late.max(last);
        relay.kill().await?;
    }
    let over = Instant::now();
    let _relay = arena.relay()?;
    flow.note(format!("scheduled messages at most {late:.1} s late"));
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.finish(2 * WINDOW).await
}

/// Seconds by which the relay's log is ahead of the database's clock.
async fn clock_of(relay: &Daemon, client: &Client) -> Result<f64> {
    let line = relay.line("connected to both servers", SOON).await;
    let line: serde_json::Value = serde_json::from_str(&line)?;
    let said = line["timestamp"]
        .as_str()
        .ok_or("a log line without time")?;
    let sql = "SELECT extract(epoch FROM $1::text::timestamptz - clock_timestamp())::float8";
    Ok(client.query_one(sql, &[&said]).await?.get(0))
}

/// Watches five messages that are retried until each was tried four times: none before it was due, and none is put
/// off for longer than the longest back-off.
async fn retries_are_on_time(client: &Client) -> Result<()> {
    let sql = "SELECT id, attempts, extract(epoch FROM due_at)::float8, \
                      extract(epoch FROM clock_timestamp())::float8 FROM outbox.waiting WHERE cause = 'retry'";
    let deadline = Instant::now() + SOON;
    let mut seen: HashMap<i64, (i32, f64)> = HashMap::new();
    while seen.len() < 5 || seen.values().any(|(attempts, _)| *attempts < 4) {
        for row in client.query(sql, &[]).await? {
            let (id, attempts, due, now) = (row.get(0), row.get(1), row.get(2), row.get(3));
            if let Some((before, was_due)) = seen.insert(id, (attempts, due)) {
                expect(before == attempts || was_due <= now, || {
                    format!("tried again {:.1} s before it was due", was_due - now)
                })?;
            }
            // The settings' longest back-off is a second.
            expect(due - now <= 1.1, || {
                format!(
                    "due in {:.1} s; a second is the longest back-off",
                    due - now
                )
            })?;
        }
        expect(Instant::now() < deadline, || {
            format!("retries are stuck: {seen:?}")
        })?;
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Gives a program an /etc/hosts of its own; the file may be rewritten in place while it runs.
const OWN_HOSTS: &str = r#"mount --bind "$HOSTS" /etc/hosts && exec "$@""#;
const OLD: [u8; 4] = [127, 0, 0, 1];
const NEW: [u8; 4] = [127, 0, 0, 2];

async fn repointed(setup: &Setup) -> Result<Outcome> {
    if !may_unshare() {
        return Ok(Outcome::skipped(
            "a mount namespace cannot be made here (unshare --mount)",
        ));
    }
    let mut arena = Arena::start(setup).await?;
    let database = Moving::start(arena.postgres.port()).await?;
    let broker = Moving::start(arena.rabbitmq.port()).await?;
    let hosts = tempfile::NamedTempFile::new()?;
    point(hosts.path(), OLD)?;
    let named =
        |url: &str, way: &Moving, name: &str| over(url, way.old.port()).replace("127.0.0.1", name);
    let database_url =
        named(&arena.database_url(), &database, "database.test") + "?sslmode=disable";
    let broker_url = named(&arena.broker_url(), &broker, "broker.test");
    arena.set("DATABASE_URL", &database_url);
    arena.set("AMQP_URL", &broker_url);
    arena.set("OUTBOXD__DATABASE__ALLOW_PLAINTEXT", "true");
    arena.set("OUTBOXD__BROKER__ALLOW_PLAINTEXT", "true");
    arena.set("HOSTS", &hosts.path().display().to_string());
    let relay = setup.outboxd.display().to_string();
    let args = ["--mount", "sh", "-c", OWN_HOSTS, "sh", &relay, "run"];
    let relay = setup
        .logs
        .start("relay", Path::new("unshare"), &args, arena.env())?;
    let mut flow = arena.flow().await?;
    flow.steady(200).await?;
    expect(
        database.new.connections() + broker.new.connections() == 0,
        || "it knows the new addresses before anybody told it".into(),
    )?;
    database.old.set(Mode::Cut);
    broker.old.set(Mode::Cut);
    relay.line("PostgreSQL failed", SOON).await;
    sleep(Duration::from_secs(2)).await;
    point(hosts.path(), NEW)?;
    let over = Instant::now();
    flow.recovers(over, Duration::from_secs(15)).await?;
    eventually(
        "every session to be at the new addresses",
        SOON,
        async || (database.new.connections() == 5 && broker.new.connections() == 2).then_some(()),
    )
    .await;
    flow.finish(WINDOW).await
}

/// A server that is at the same port of two addresses.
struct Moving {
    old: Proxy,
    new: Proxy,
}

impl Moving {
    async fn start(port: u16) -> Result<Self> {
        let server = (OLD, port).into();
        let old = Proxy::start(server).await?;
        let new = Proxy::start_at((NEW, old.port()).into(), server).await?;
        Ok(Self { old, new })
    }
}

fn point(hosts: &Path, to: [u8; 4]) -> Result<()> {
    let to = std::net::Ipv4Addr::from(to);
    let text = format!("{to} database.test broker.test\n");
    // In place: a new file under that name would not be the one that is mounted.
    Ok(std::fs::write(hosts, text)?)
}

fn may_unshare() -> bool {
    let tried = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
