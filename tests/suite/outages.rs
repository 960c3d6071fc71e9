//! Several servers, one of which does not serve. Rows 10 to 43 of the fault matrix stop, kill, freeze and cut off the servers.

use test_support::{Daemon, Mode, Proxy, eventually, probe};

use crate::world::{SOON, World, own_world, world};

/// Time-outs shorter than in production, but long enough for a busy machine. The fault matrix (crates/chaos) limits and measures
/// the time of a recovery.
const QUICK: [(&str, &str); 4] = [
    ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "10s"),
    ("OUTBOXD__BROKER__HEARTBEAT", "10s"),
    ("OUTBOXD__BROKER__CONNECT_TIMEOUT", "5s"),
    ("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "5s"),
];

/// URL of the test's database on the one of two local servers that accepts writes.
fn either(world: &World, ports: [u16; 2]) -> String {
    let url = world.database_url();
    let direct = format!("127.0.0.1:{}", world.postgres().port());
    let [one, other] = ports;
    let hosts = format!("127.0.0.1:{one},127.0.0.1:{other}");
    url.replace(&direct, &hosts) + "?target_session_attrs=read-write"
}

#[tokio::test]
async fn a_silent_server_does_not_keep_the_relay_from_the_next_one() {
    let world = world().await;
    // The kernel accepts connections for this listener, and no program ever answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ports = [silent.local_addr().unwrap().port(), world.postgres().port()];
    let url = either(&world, ports);
    let mut settings = QUICK.to_vec();
    settings.push(("DATABASE_URL", &url));
    let consumer = world.consumer().await;
    let _relay = world.relay(&settings);
    world.commit_many(100, 20).await;
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn a_server_that_turned_read_only_is_left_for_the_one_that_takes_writes() {
    let mut world = own_world().await;
    let port = world.postgres().port();
    let standby = world.postgres().standby("standby", port).await.unwrap();
    let url = either(&world, [port, standby.port()]);
    let mut settings = QUICK.to_vec();
    settings.push(("DATABASE_URL", &url));
    let consumer = world.consumer().await;
    let _relay = world.relay(&settings);
    world.commit_many(200, 20).await;
    consumer.until(200).await;
    world.drained().await;
    // The relay is idle and keeps every connection, because it writes nothing that the server could refuse.
    for sql in [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ] {
        let old = world.postgres();
        old.execute("postgres", sql).await.unwrap();
    }
    let row = world
        .client
        .query_one("SELECT pg_current_wal_lsn()::text", &[]);
    let there: String = row.await.unwrap().get(0);
    let new = standby.connect(&world.database).await.unwrap();
    eventually("the standby to have it all", SOON, async || {
        let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        let row = new.query_one(sql, &[&there]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    standby.promote().await.unwrap();
    world.client = standby.connect(&world.database).await.unwrap();
    world.commit_many(200, 20).await;
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn a_peer_that_accepts_and_stays_silent_costs_no_threads_no_files_and_no_memory() {
    let world = world().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "amqp://u:p@127.0.0.1:{}",
        silent.local_addr().unwrap().port()
    );
    let relay = world.relay(&[
        ("AMQP_URL", &url),
        ("OUTBOXD__BROKER__CONNECT_TIMEOUT", "100ms"),
        ("OUTBOXD__RELAY__WORKERS", "4"),
    ]);
    let attempts = || {
        relay
            .lines()
            .iter()
            .filter(|line| line.contains("RabbitMQ failed"))
            .count()
    };
    let uses = || {
        let (pid, threads) = (relay.pid(), probe::threads(relay.pid()).unwrap());
        let files = probe::descriptors(pid).unwrap() as u64;
        [threads, files, probe::resident_kib(pid).unwrap()]
    };
    let reach = async |n: usize| {
        test_support::eventually("more attempts", SOON, async || {
            (attempts() >= n).then_some(())
        })
        .await;
    };
    // By then it has all that it needs for an attempt.
    reach(40).await;
    let early = uses();
    reach(100).await;
    let late = uses();
    // Each of four workers may be in the middle of an attempt, with its thread and its two handles on the socket, and the
    // runtime may have started another thread. Of sixty attempts nothing must be left.
    let more = [20, 20, 8 * 1024];
    for ((early, late), more) in early.into_iter().zip(late).zip(more) {
        assert!(late < early + more, "{early} became {late}");
    }
}

/// Lines of the default level that contain the text.
fn told(relay: &Daemon, text: &str) -> Vec<serde_json::Value> {
    let lines = relay.lines();
    let lines = lines.iter().filter(|line| line.contains(text));
    let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["level"] != "DEBUG").collect()
}

/// Each attempt is a line at level DEBUG. At the default level an outage is a few lines, however many tasks fail however often.
#[tokio::test]
async fn an_outage_is_a_line_when_it_begins_and_one_when_it_is_over() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (database, database_url) = Proxy::before(&world.database_url()).await.unwrap();
    let (broker, amqp_url) = Proxy::before(&world.broker_url()).await.unwrap();
    let relay = world.relay(&[
        ("DATABASE_URL", &database_url),
        ("AMQP_URL", &amqp_url),
        ("OUTBOXD__RELAY__WORKERS", "4"),
    ]);
    world.commit_many(100, 20).await;
    consumer.until(100).await;
    for (proxy, server) in [(&broker, "RabbitMQ"), (&database, "PostgreSQL")] {
        let attempts = || {
            let text = format!("{server} failed; backing off");
            relay.lines().iter().filter(|l| l.contains(&text)).count()
        };
        proxy.set(Mode::Cut);
        eventually("attempts of every task", SOON, async || {
            (attempts() >= 30).then_some(())
        })
        .await;
        let failed = told(&relay, &format!("{server} failed"));
        // The first error, and up to three other ones a minute: a connection that ends has other texts than one that is refused.
        let minutes = 1 + told(&relay, &format!("{server} still fails")).len();
        assert!((1..=4 * minutes).contains(&failed.len()), "{failed:?}");
        proxy.set(Mode::Forward);
        let again = format!("{server} works again");
        let line = relay.line(&again, SOON).await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(line["attempts"].as_u64().unwrap() >= 30, "{line}");
        assert!(line["after_s"].as_f64().unwrap() > 0.0, "{line}");
        assert_eq!(told(&relay, &again).len(), 1);
    }
    let (host, name) = (format!("127.0.0.1:{}", database.port()), &world.database);
    let refused = told(&relay, "PostgreSQL failed");
    let connect = format!("PostgreSQL (connect to {host}/{name})");
    let named = |line: &serde_json::Value| line["error"].as_str().unwrap().contains(&connect);
    assert!(refused.iter().any(named), "{refused:?}");
    world.commit_many(100, 20).await;
    world.clean(&consumer, 4 * 500).await;
}

/// It takes a minute.
#[tokio::test]
async fn a_line_sums_up_what_a_minute_brought() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    world.commit_many(50, 10).await;
    let nowhere = "exchange = 'nowhere'";
    world.insert(Some("x"), "lost", "1", nowhere).await;
    consumer.until(50).await;
    let line = relay.line("the last minute", SOON).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["sent"], &line["level"]),
        (&50.into(), &"INFO".into())
    );
    assert!(line["retried"].as_u64().unwrap() >= 1, "{line}");
}
