//! Servers that restart, die, stand still, or are cut off.

use checker::Report;
use test_support::{Daemon, Mode, Proxy, eventually};

use crate::world::{Consumer, FAR, FARTHER, Gate, SOON, World, own_world, world};

/// Time-outs shorter than in production, but long enough for a busy machine. The fault matrix (crates/chaos) limits and measures
/// the time of a recovery.
const QUICK: [(&str, &str); 4] = [
    ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "10s"),
    ("OUTBOXD__BROKER__HEARTBEAT", "10s"),
    ("OUTBOXD__BROKER__CONNECT_TIMEOUT", "5s"),
    ("OUTBOXD__DATABASE__CONNECT_TIMEOUT", "5s"),
];

/// With these no time-out ends a claim or gives up a confirm: the relay must detect the fault in another way.
const NO_TIMEOUTS: [(&str, &str); 3] = [
    ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", FAR),
    ("OUTBOXD__RELAY__SHUTDOWN_GRACE", FARTHER),
    ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
];

async fn flowing(world: &World) -> (Consumer, Daemon) {
    flowing_with(world, &QUICK).await
}

async fn flowing_with(world: &World, settings: &[(&str, &str)]) -> (Consumer, Daemon) {
    let consumer = world.consumer().await;
    let relay = world.relay(settings);
    world.commit_many(500, 20).await;
    consumer.until(100).await;
    (consumer, relay)
}

/// Every message arrives, in order, with no more duplicates than two workers had in flight.
async fn clean(world: &World, consumer: &Consumer, duplicates: usize) -> Report {
    world.drained().await;
    let all = world.ledger.len();
    consumer.until(all).await;
    let report = world.judge(consumer).await;
    assert!(
        report.is_clean() && report.duplicates <= duplicates,
        "{report}"
    );
    report
}

#[tokio::test]
async fn a_broker_restart_is_survived() {
    let mut world = own_world().await;
    let (consumer, _relay) = flowing(&world).await;
    world.own().rabbitmq.stop().await.unwrap();
    world.commit_many(500, 20).await;
    world.own().rabbitmq.restart().await.unwrap();
    clean(&world, &consumer, 1000).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_keeps_what_it_confirmed() {
    let mut world = own_world().await;
    let (consumer, _relay) = flowing(&world).await;
    world.rabbitmq().remember().await.unwrap();
    world.own().rabbitmq.kill().await;
    world.commit_many(500, 20).await;
    world.own().rabbitmq.restart().await.unwrap();
    clean(&world, &consumer, 1000).await;
}

#[tokio::test]
async fn a_broker_that_stands_still_is_noticed_and_nothing_is_marked_meanwhile() {
    let world = own_world().await;
    let heartbeat = ("OUTBOXD__BROKER__HEARTBEAT", "5s");
    let by_heartbeats = [&NO_TIMEOUTS[..], &[heartbeat]].concat();
    let (consumer, relay) = flowing_with(&world, &by_heartbeats).await;
    world.drained().await;
    world.rabbitmq().pause().unwrap();
    world.commit_many(200, 20).await;
    relay.line("RabbitMQ failed", SOON).await;
    assert_eq!(
        world.count("outbox.message WHERE sent_at IS NULL").await,
        200
    );
    world.rabbitmq().resume().unwrap();
    clean(&world, &consumer, 1000).await;
}

#[tokio::test]
async fn a_postgresql_restart_is_survived() {
    let mut world = own_world().await;
    let (consumer, relay) = flowing(&world).await;
    world.drained().await;
    world.own().postgres.stop().await.unwrap();
    relay.line("PostgreSQL failed", SOON).await;
    world.own().postgres.restart().await.unwrap();
    world.client = world.postgres().connect(&world.database).await.unwrap();
    world.commit_many(100, 20).await;
    clean(&world, &consumer, 0).await;
}

#[tokio::test]
async fn postgresql_killed_between_publish_and_settle_repeats_at_most_what_was_in_flight() {
    let mut world = own_world().await;
    let consumer = world.consumer().await;
    let gate = Gate::new();
    let failpoint = gate.at("confirm.before_settle");
    let mut settings = QUICK.to_vec();
    settings.push(("OUTBOXD_FAILPOINT", &failpoint));
    settings.push(("OUTBOXD__RELAY__BATCH_SIZE", "50"));
    let relay = world.relay(&settings);
    world.commit_many(200, 20).await;
    relay.line("failpoint reached", SOON).await;
    world.own().postgres.kill().await;
    gate.open();
    world.own().postgres.restart().await.unwrap();
    world.client = world.postgres().connect(&world.database).await.unwrap();
    let report = clean(&world, &consumer, 100).await;
    assert!(report.duplicates > 0, "it had published: {report}");
}

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
    clean(&world, &consumer, 0).await;
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
    clean(&world, &consumer, 0).await;
}

/// A relay that reaches the broker, or PostgreSQL, through a proxy.
async fn through(
    world: &World,
    postgres: bool,
    more: &[(&'static str, &'static str)],
) -> (Proxy, Daemon) {
    let port = if postgres {
        world.postgres().port()
    } else {
        world.rabbitmq().port()
    };
    let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
    let url = if postgres {
        world.database_url()
    } else {
        world.broker_url()
    };
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let mut settings: Vec<(&str, &str)> = QUICK.to_vec();
    settings.push((if postgres { "DATABASE_URL" } else { "AMQP_URL" }, &url));
    settings.extend(more);
    let relay = world.relay(&settings);
    relay.line("connected to both servers", SOON).await;
    (proxy, relay)
}

#[tokio::test]
async fn when_only_confirms_are_lost_the_connection_is_replaced_and_duplicates_are_bounded() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (proxy, relay) = through(&world, false, &[("OUTBOXD__RELAY__BATCH_SIZE", "50")]).await;
    proxy.set(Mode::StallAnswers);
    world.commit_many(200, 20).await;
    relay.line("no answer within 10s", SOON).await;
    assert_eq!(
        world
            .count("outbox.message WHERE sent_at IS NOT NULL")
            .await,
        0
    );
    proxy.set(Mode::Forward);
    world.drained().await;
    consumer.until(200).await;
    let report = world.judge(&consumer).await;
    // Each time-out repeats a batch of each worker. The stall lasts for one time-out, and the connects after it do not publish.
    assert!(report.is_clean() && report.duplicates <= 200, "{report}");
}

#[tokio::test]
async fn a_cut_network_to_the_broker_is_reconnected() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (proxy, relay) = through(&world, false, &[]).await;
    world.commit_many(100, 20).await;
    consumer.until(100).await;
    proxy.set(Mode::Cut);
    relay.line("RabbitMQ failed", SOON).await;
    world.commit_many(100, 20).await;
    proxy.set(Mode::Forward);
    clean(&world, &consumer, 100).await;
}

#[tokio::test]
async fn a_silent_postgresql_is_given_up_and_its_locks_are_freed() {
    let world = world().await;
    let consumer = world.consumer().await;
    let quick = [
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "5s"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "15s"),
    ];
    let (proxy, relay) = through(&world, true, &quick).await;
    world.commit_many(100, 20).await;
    consumer.until(100).await;
    proxy.set(Mode::Stall);
    world.commit_many(100, 20).await;
    relay.line("PostgreSQL failed", SOON).await;
    proxy.set(Mode::Forward);
    clean(&world, &consumer, 1000).await;
}

#[tokio::test]
async fn a_peer_that_accepts_and_stays_silent_costs_no_threads() {
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
    let threads = || {
        std::fs::read_dir(format!("/proc/{}/task", relay.pid()))
            .unwrap()
            .count()
    };
    let reach = async |n: usize| {
        test_support::eventually("more attempts", SOON, async || {
            (attempts() >= n).then_some(())
        })
        .await;
    };
    reach(8).await;
    let early = threads();
    // The runtime may have started another thread meanwhile, but an attempt must not.
    reach(24).await;
    assert!(
        threads() < early + 8,
        "{early} threads became {}",
        threads()
    );
}

#[tokio::test]
async fn a_memory_alarm_holds_no_claim_open_and_readiness_says_blocked() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let port = test_support::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let settings = [
        &NO_TIMEOUTS[..],
        &[("OUTBOXD__ADMIN__LISTEN", listen.as_str())],
    ]
    .concat();
    let _relay = world.relay(&settings);
    world.commit_many(100, 20).await;
    consumer.until(100).await;
    world.drained().await;
    world
        .rabbitmq()
        .ctl(&["set_vm_memory_high_watermark", "0"])
        .await
        .unwrap();
    // The alarm comes a moment later, and only then does the broker tell its connections.
    eventually("the alarm", SOON, async || {
        let alarms = world
            .rabbitmq()
            .ctl(&["eval", "rabbit_alarm:get_alarms()."]);
        alarms.await.ok()?.contains("memory").then_some(())
    })
    .await;
    world.commit_many(100, 20).await;
    test_support::eventually("readiness to say blocked", SOON, async || {
        let (code, body) = crate::seeing::get(port, "/readyz").await?;
        (code == 503 && body.contains("blocked")).then_some(())
    })
    .await;
    let open =
        "pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    world.until("no claim to be open", open, 0).await;
    assert_eq!(
        world.count("outbox.message WHERE sent_at IS NULL").await,
        100
    );
    world
        .rabbitmq()
        .ctl(&["set_vm_memory_high_watermark", "0.4"])
        .await
        .unwrap();
    clean(&world, &consumer, 200).await;
}

#[tokio::test]
async fn credentials_rotated_in_the_secret_files_are_used_at_the_next_connect() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = own_world().await;
    let consumer = world.consumer().await;
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let (mq, pg) = (secret("mq", "guest"), secret("pg", "relay-canary-password"));
    let broker = format!("amqp://guest@127.0.0.1:{}/%2f", world.rabbitmq().port());
    let database = format!(
        "postgres://relay@127.0.0.1:{}/{}",
        world.postgres().port(),
        world.database
    );
    let relay = world.relay(&[
        ("AMQP_URL", &broker),
        ("DATABASE_URL", &database),
        ("OUTBOXD__BROKER__PASSWORD_FILE", &mq),
        ("OUTBOXD__DATABASE__PASSWORD_FILE", &pg),
        QUICK[0],
    ]);
    world.commit_many(10, 2).await;
    consumer.until(10).await;
    world
        .rabbitmq()
        .ctl(&["change_password", "guest", "rotated"])
        .await
        .unwrap();
    world
        .postgres()
        .execute("postgres", "ALTER ROLE relay PASSWORD 'rotated'")
        .await
        .unwrap();
    world
        .rabbitmq()
        .ctl(&["close_all_connections", "rotation"])
        .await
        .unwrap();
    world
        .client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'",
            &[],
        )
        .await
        .unwrap();
    relay.line("ACCESS_REFUSED", SOON).await;
    secret("mq", "rotated");
    secret("pg", "rotated");
    world.commit_many(10, 2).await;
    world
        .until(
            "all to be sent",
            "outbox.message WHERE sent_at IS NOT NULL",
            20,
        )
        .await;
    drop(consumer);
    world.own().rabbitmq.stop().await.unwrap();
}

#[tokio::test]
async fn a_queue_deleted_in_flight_frees_the_worker() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.bind("gone", "#", &[]).await;
    let _relay = world.relay(&QUICK);
    for _ in 0..5 {
        world.commit_many(1000, 50).await;
    }
    consumer.until(300).await;
    let channel = world.channel().await;
    channel
        .queue_delete(crate::world::short("gone"), Default::default())
        .await
        .unwrap();
    clean(&world, &consumer, 5000).await;
}

#[tokio::test]
async fn a_connection_closed_by_an_operator_is_replaced() {
    let world = own_world().await;
    let (consumer, relay) = flowing(&world).await;
    world.drained().await;
    world
        .rabbitmq()
        .ctl(&["close_all_connections", "maintenance"])
        .await
        .unwrap();
    relay.line("RabbitMQ failed", SOON).await;
    world.commit_many(100, 20).await;
    clean(&world, &consumer, 1000).await;
}

#[tokio::test]
async fn a_schema_lock_times_out_and_the_relay_resumes() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[("OUTBOXD__DATABASE__LOCK_TIMEOUT", "1s")]);
    relay.line("connected to both servers", SOON).await;
    let migrating = world.postgres().connect(&world.database).await.unwrap();
    migrating
        .batch_execute("BEGIN; LOCK TABLE outbox.lane IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    relay.line("lock timeout", SOON).await;
    migrating.batch_execute("COMMIT").await.unwrap();
    world.commit_many(100, 10).await;
    clean(&world, &consumer, 0).await;
}
