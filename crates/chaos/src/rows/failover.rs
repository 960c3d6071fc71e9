//! Another PostgreSQL takes over, or the same one as it was. Rows 34 to 36, 49.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use checker::{Committed, Ledger};
use test_support::{
    Daemon, Mode, Postgres, Proxy, amqp,
    commits::{ids, query_ids},
    drained, eventually,
};
use tokio::time::sleep;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    arena::{Arena, DATABASE, OWNER, SOON, Setup, WINDOW, since},
    consumer::{self, TABLES},
    flow::Flow,
    row::{Outcome, Result, Row, expect, in_time, rows},
    traffic::{Rate, Traffic},
};

pub const ROWS: &[Row] = rows! { setup;
    34, "failover to a synchronous standby" => synchronous(setup);
    35, "failover to an asynchronous standby" => asynchronous(setup);
    36, "connected to a server that turned read-only (25006)" => read_only(setup);
    49, "database restored to a point in time" => restored(setup);
};

/// A primary, which is the arena's server, and its standby.
struct Pair<'a> {
    arena: Arena<'a>,
    standby: Postgres,
    /// What the standby receives comes this way.
    replication: Proxy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Commits {
    /// Are answered once the standby has them.
    Wait,
    DoNotWait,
}

impl<'a> Pair<'a> {
    /// Relays are told of both, and to use the one that takes writes.
    async fn start(setup: &'a Setup, commits: Commits) -> Result<Self> {
        let mut arena = Arena::start(setup).await?;
        let primary = &arena.postgres;
        let replication = Proxy::start(([127, 0, 0, 1], primary.port()).into()).await?;
        let standby = primary.standby("standby", replication.port()).await?;
        if commits == Commits::Wait {
            alter(primary, "synchronous_standby_names = 'standby'").await?;
        }
        let state = match commits {
            Commits::Wait => "sync_state = 'sync'",
            Commits::DoNotWait => "sync_state = 'async'",
        };
        let streaming = format!("pg_stat_replication WHERE state = 'streaming' AND {state}");
        arena
            .until_count("the standby to stream", &streaming, |n| n == 1)
            .await;
        let ports = [primary.port(), standby.port()];
        arena.set("DATABASE_URL", &both("relay", "relay", ports));
        Ok(Self {
            arena,
            standby,
            replication,
        })
    }

    /// Producers that follow the failover.
    async fn flowing(&self) -> Result<(Flow, Daemon)> {
        let relay = self.arena.relay()?;
        let ports = [self.arena.postgres.port(), self.standby.port()];
        let database = both(OWNER, OWNER, ports);
        let broker = self.arena.broker_url();
        let flow = self.arena.flow_over(&database, &broker, Rate::default());
        flow.steady(200).await?;
        Ok((flow, relay))
    }

    /// Waits until the standby has everything that the primary has now.
    async fn caught_up(&self) -> Result<()> {
        let primary = self.arena.client().await?;
        let row = primary
            .query_one("SELECT pg_current_wal_lsn()::text", &[])
            .await?;
        let there: String = row.get(0);
        let standby = self.standby.connect(DATABASE).await?;
        let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        eventually("the standby to have it all", SOON, async || {
            let row = standby.query_one(sql, &[&there]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
        Ok(())
    }

    /// The standby is the primary from now on, and the arena's server.
    async fn promote(&mut self) -> Result<Instant> {
        self.standby.promote().await?;
        std::mem::swap(&mut *self.arena.postgres, &mut self.standby);
        Ok(Instant::now())
    }
}

fn both(user: &str, password: &str, [one, other]: [u16; 2]) -> String {
    format!(
        "postgres://{user}:{password}@127.0.0.1:{one},127.0.0.1:{other}/{DATABASE}?target_session_attrs=read-write"
    )
}

async fn alter(server: &Postgres, setting: &str) -> Result<()> {
    let sql = format!("ALTER SYSTEM SET {setting}");
    server.execute("postgres", &sql).await?;
    server.execute("postgres", "SELECT pg_reload_conf()").await
}

async fn synchronous(setup: &Setup) -> Result<Outcome> {
    let mut pair = Pair::start(setup, Commits::Wait).await?;
    let (mut flow, _relay) = pair.flowing().await?;
    pair.arena.postgres.kill().await;
    let over = pair.promote().await?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.steady(200).await?;
    flow.finish(WINDOW).await
}

async fn asynchronous(setup: &Setup) -> Result<Outcome> {
    let manual = setup.repository.join("docs/operating/failover.md");
    let manual = std::fs::read_to_string(manual)?;
    expect(
        manual.contains("**Asynchronous standby.** Commits that the standby never had are gone"),
        || "docs/operating/failover.md does not say what an asynchronous standby loses".into(),
    )?;
    let mut pair = Pair::start(setup, Commits::DoNotWait).await?;
    let (mut flow, _relay) = pair.flowing().await?;
    let known: HashSet<Uuid> = ids(&flow.traffic.ledger.committed());
    pair.caught_up().await?;
    pair.replication.set(Mode::Cut);
    flow.steady(300).await?;
    pair.arena.postgres.kill().await;
    // All that the old primary can have committed. What is committed from now on is the new one's.
    let mut old = ids(&flow.traffic.ledger.committed());
    old.extend(ids(&flow.traffic.ledger.unanswered()));
    let standby = pair.standby.connect(DATABASE).await?;
    let unsent = "SELECT count(*) FROM outbox.message WHERE sent_at IS NULL";
    let unsent: i64 = standby.query_one(unsent, &[]).await?.get(0);
    let over = pair.promote().await?;

    let client = pair.arena.client().await?;
    let survivors = "SELECT message_id FROM outbox.message";
    let missing = flow
        .deliveries
        .missing(query_ids(&client, survivors).await?)
        .await;
    let took = since(over);
    expect(missing == 0, || {
        format!("{missing} messages that the standby had have not arrived after {took:.1} s")
    })?;
    in_time(over, Duration::from_secs(15), || {
        "what the standby had arrived late".to_owned()
    })?;
    flow.steady(200).await?;
    flow.traffic.finish(&client).await?;
    drained(&client).await;

    let has = query_ids(&client, survivors).await?;
    flow.deliveries.missing(has.iter().copied()).await;
    let (stands, gone): (Vec<_>, Vec<_>) = flow
        .traffic
        .ledger
        .committed()
        .into_iter()
        .partition(|event| has.contains(&event.message_id));
    let gone = ids(&gone);
    expect(known.is_subset(&has), || {
        "commits are gone that the standby had".into()
    })?;
    expect(gone.is_subset(&old), || {
        "commits are gone that the new primary made".into()
    })?;
    let (delivered, ghosts): (Vec<_>, Vec<_>) = flow
        .deliveries
        .seen()
        .into_iter()
        .partition(|delivery| has.contains(&delivery.message_id));
    let ghosts: HashSet<Uuid> = ghosts.iter().map(|ghost| ghost.message_id).collect();
    expect(ghosts.is_subset(&old), || {
        "events arrived that nobody committed".into()
    })?;
    expect(!gone.is_empty() && !ghosts.is_empty(), || {
        "the standby missed nothing, and the row proves nothing".into()
    })?;
    let report = Ledger {
        committed: stands,
        delivered,
        dead: query_ids(&client, "SELECT message_id FROM outbox.dead").await?,
        marked_sent: query_ids(
            &client,
            "SELECT message_id FROM outbox.message WHERE sent_at IS NOT NULL",
        )
        .await?,
    }
    .check();
    expect(report.is_clean(), || report.to_string())?;
    // Marks that the standby never had are lost with the rest.
    let allowed = usize::try_from(unsent)? + WINDOW;
    expect(report.duplicates <= allowed, || {
        format!("{} duplicates; {allowed} are allowed", report.duplicates)
    })?;
    Ok(Outcome {
        report,
        recovery_seconds: Some(took),
        notes: vec![format!(
            "{} commits are gone that were acknowledged, {} events of such are ghosts: as documented",
            gone.len(),
            ghosts.len()
        )],
        skipped: None,
    })
}

async fn read_only(setup: &Setup) -> Result<Outcome> {
    let mut pair = Pair::start(setup, Commits::Wait).await?;
    let (mut flow, relay) = pair.flowing().await?;
    // Demoted where it stands: every connection stays, and no transaction that begins now may write.
    alter(&pair.arena.postgres, "default_transaction_read_only = on").await?;
    relay.line("SQLSTATE 25006", SOON).await;
    let client = pair.arena.client().await?;
    quiet(&client).await?;
    pair.caught_up().await?;
    let over = pair.promote().await?;
    flow.recovers(over, Duration::from_secs(15)).await?;
    flow.steady(200).await?;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'relay'";
    eventually("the relay to leave the old server", SOON, async || {
        let row = client.query_one(sessions, &[]).await.ok()?;
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    flow.finish(0).await
}

/// Waits until nobody writes any more: what began before the server turned read-only has ended.
async fn quiet(client: &Client) -> Result<()> {
    let writing = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
    let mut calm = 0;
    let deadline = Instant::now() + SOON;
    while calm < 5 {
        let row = client.query_one(writing, &[]).await?;
        calm = if row.get::<_, i64>(0) == 0 {
            calm + 1
        } else {
            0
        };
        expect(Instant::now() < deadline, || {
            "the old server is still written to".into()
        })?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

const WORK: &str = "work";
/// Above every position of the time before: in the ledger, what was committed after the restore comes later.
const NEW_AGE: i64 = 1 << 40;

async fn restored(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    // The consumer has a database of its own, with its inbox; nobody restores that one.
    let consumers = Postgres::start().await?;
    setup.plan().prepare(&consumers, DATABASE).await?;
    consumers.execute(DATABASE, TABLES).await?;
    let channel = amqp::channel(&arena.broker_url()).await?;
    for queue in [WORK, "work.dead"] {
        amqp::queue(&channel, queue).await?;
    }
    amqp::bind(&channel, "events", WORK).await?;
    let own = consumers.url_for("consumer", "consumer", DATABASE);
    let consumer = tokio::spawn(consumer::run(own, arena.broker_url(), WORK));

    let (mut flow, mut relay) = arena.flowing().await?;
    let backup = arena.postgres.folder().join("backup");
    arena.postgres.base_backup(&backup).await?;
    flow.steady(300).await?;
    flow.traffic.pause(true);
    let client = arena.client().await?;
    drained(&client).await;
    // As the manual says: relays are stopped before a restore.
    relay.terminate()?;
    relay.ended(SOON).await?;
    let sql = "SELECT id, message_id FROM outbox.message";
    let before: HashMap<i64, Uuid> = client
        .query(sql, &[])
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let last = before.keys().max().copied().unwrap_or_default();

    arena.postgres.stop().await?;
    arena.postgres.restore(&backup).await?;
    let again = arena.count("outbox.message WHERE sent_at IS NULL").await?;
    let forgotten = before.len() - usize::try_from(arena.count("outbox.message").await?)?;
    let over = Instant::now();
    let _relay = arena.relay()?;
    let mut producers = Traffic::start(&arena.owner_url(), Rate::default());
    // Until every position of before has been drawn again.
    let passed = format!("outbox.message WHERE id > {last}");
    arena
        .until_count("positions to be drawn again", &passed, |n| n > 0)
        .await;
    let client = arena.owner().await?;
    producers.finish(&client).await?;
    let events = producers.ledger.committed();
    let reused = events
        .iter()
        .filter(|event| before.contains_key(&event.position))
        .count();
    expect(reused > 0, || {
        "no position was drawn twice, and the row proves nothing".into()
    })?;
    let old: HashSet<Uuid> = before.values().copied().collect();
    let new = ids(&events);
    expect(new.is_disjoint(&old), || {
        "a new event has the message id of an old one".into()
    })?;
    flow.traffic
        .ledger
        .add(events.into_iter().map(|event| Committed {
            position: event.position + NEW_AGE,
            ..event
        }));
    flow.recovers(over, Duration::from_secs(30)).await?;

    let inbox = consumers.connect(DATABASE).await?;
    let sql = "SELECT message_id::uuid FROM public.applied";
    eventually("the inbox to apply every new event", SOON, async || {
        let applied = query_ids(&inbox, sql).await.ok()?;
        new.is_subset(&applied).then_some(())
    })
    .await;
    let sql = "SELECT count(*) - count(DISTINCT message_id) FROM public.applied";
    let twice: i64 = inbox.query_one(sql, &[]).await?.get(0);
    expect(twice == 0, || format!("{twice} effects happened twice"))?;
    consumer.abort();
    flow.note(format!(
        "{forgotten} events forgotten, {reused} positions drawn again under new message ids, {again} sent again"
    ));
    flow.finish(usize::try_from(again)?).await
}
