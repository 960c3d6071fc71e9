//! The operator's commands.

use serde_json::Value;

use crate::world::{SOON, World, words, world};

async fn json(world: &World, args: &[&str]) -> Value {
    let run = world.outboxd(args, &[]).await;
    run.ends(0, &[]);
    serde_json::from_str(&run.stdout).unwrap()
}

pub async fn ok(world: &World, args: &[&str]) -> String {
    let run = world.outboxd(args, &[]).await;
    run.ends(0, &[]);
    run.stdout
}

#[tokio::test]
async fn migrate_applies_once_says_what_it_would_do_and_refuses_what_it_does_not_know() {
    let world = world().await;
    let (empty, url) = world.another("empty").await;
    let migrate = async |args: &[&str]| world.outboxd(args, &[("DATABASE_URL", &url)]).await;

    let before = migrate(&["status"]).await;
    before.ends(78, &["no outbox schema", "outboxd migrate"]);
    assert_eq!(
        migrate(&["migrate", "--dry-run"]).await.stdout,
        "would apply 0001_outbox.sql\n"
    );
    // Of two runs at once, one applies the migration, and the other waits and finds it applied.
    let client = world.postgres().connect(&empty).await.unwrap();
    let lock = "BEGIN; SELECT pg_advisory_xact_lock(31351991786104690)";
    client.batch_execute(lock).await.unwrap();
    let both_wait = async {
        let waiting = format!(
            "pg_locks l JOIN pg_database d ON d.oid = l.database \
             WHERE d.datname = '{empty}' AND l.locktype = 'advisory' AND NOT l.granted"
        );
        world
            .until("both to wait for their turn", &waiting, 2)
            .await;
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (one, two, ()) = tokio::join!(migrate(&["migrate"]), migrate(&["migrate"]), both_wait);
    one.ends(0, &[]);
    two.ends(0, &[]);
    let both = format!("{}{}", one.stdout, two.stdout);
    assert_eq!(both.matches("applied 0001_outbox.sql").count(), 1, "{both}");
    assert_eq!(
        migrate(&["migrate"]).await.stdout,
        "outbox schema version 1: nothing to do\n"
    );
    assert_eq!(migrate(&["status"]).await.code, 0);

    client
        .batch_execute("UPDATE outbox.migration SET checksum = 'edited'")
        .await
        .unwrap();
    let edited = migrate(&["migrate"]).await;
    edited.ends(1, &["was applied here with other contents"]);
    client
        .batch_execute("INSERT INTO outbox.migration (version, name) VALUES (999, 'future')")
        .await
        .unwrap();
    for args in [&["migrate"][..], &["run"], &["status"]] {
        let newer = migrate(args).await;
        newer.ends(78, &["schema version 999", "run a newer outboxd"]);
    }
}

#[tokio::test]
async fn sql_prints_what_psql_can_run() {
    let world = world().await;
    let (database, _) = world.another("sql").await;
    for schema in ["outbox", "inbox"] {
        for what in [
            &["sql", "--schema", schema][..],
            &["sql", "--schema", schema, "--roles"],
        ] {
            // The roles have rights in the template database too.
            let sql = format!("SET outboxd.shared_roles = on; {}", ok(&world, what).await);
            world
                .postgres()
                .psql("owner", "owner", &database, &sql)
                .unwrap();
        }
    }
}

/// The same for a database that only consumes.
#[tokio::test]
async fn the_inbox_is_migrated_the_same_way_and_apart_from_the_outbox() {
    let world = world().await;
    let (empty, url) = world.another("inbox").await;
    let migrate = async |more: &[&str]| {
        let args = [&["migrate", "--schema", "inbox"], more].concat();
        world.outboxd(&args, &[("DATABASE_URL", &url)]).await
    };
    assert_eq!(
        migrate(&["--dry-run"]).await.stdout,
        "would apply 0001_inbox.sql\n"
    );
    assert_eq!(
        migrate(&[]).await.stdout,
        "applied 0001_inbox.sql\ninbox schema version 1\n"
    );
    let again: serde_json::Value =
        serde_json::from_str(&migrate(&["--json"]).await.stdout).unwrap();
    assert_eq!(
        again,
        serde_json::json!({ "schema": "inbox", "from": 1, "to": 1, "applied": [], "dry_run": false })
    );
    let client = world.postgres().connect(&empty).await.unwrap();
    let outbox = "SELECT to_regnamespace('outbox') IS NULL";
    assert!(
        client
            .query_one(outbox, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
    client
        .batch_execute("INSERT INTO inbox.migration (version, name) VALUES (999, 'future')")
        .await
        .unwrap();
    let newer = migrate(&[]).await;
    newer.ends(78, &["inbox schema version 999"]);
}

#[tokio::test]
async fn check_validates_offline_and_connects_when_asked() {
    let world = world().await;
    world.declare_exchange("events").await;
    let away = [
        ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/x"),
        ("AMQP_URL", "amqp://u:p@127.0.0.1:1"),
    ];
    let offline = world.outboxd(&["check"], &away).await;
    offline.ends(0, &[]);
    let said = &offline.stdout;
    assert!(said.starts_with("configuration: ok; file: "), "{said}");
    assert_eq!(world.outboxd(&["check", "--connect"], &away).await.code, 69);

    let connected = ok(&world, &["check", "--connect"]).await;
    assert!(
        connected.contains("schema version 1") && connected.contains("exchanges there: events"),
        "{connected}"
    );
    let other = [("OUTBOXD__ROUTING__EXCHANGE", "nope")];
    let missing = world.outboxd(&["check", "--connect"], &other).await;
    missing.ends(78, &["no exchange 'nope'"]);

    // The error for a role without grants lists the missing grants.
    let producer = world.url_of("producer");
    for args in [&["check", "--connect"][..], &["run"]] {
        let poor = world.outboxd(args, &[("DATABASE_URL", &producer)]).await;
        poor.ends(78, &["GRANT", "producer"]);
    }
}

#[tokio::test]
async fn bad_configuration_names_every_key_before_anything_is_asked_of_a_server() {
    let world = world().await;
    // No server listens on this port.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let run = world
        .outboxd(
            &["run"],
            &[
                ("DATABASE_URL", &format!("postgres://u:p@{at}/x")),
                ("AMQP_URL", &format!("amqp://u:p@{at}")),
                ("OUTBOXD__RELAY__BATCH_SIZE", "0"),
                ("OUTBOXD__RELAY__NOPE", "1"),
            ],
        )
        .await;
    run.ends(78, &["relay.batch_size", "relay.nope"]);
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "somebody was asked");
    assert_eq!(world.outboxd(&["dead", "nonsense"], &[]).await.code, 2);
}

#[tokio::test]
async fn status_shows_what_is_there_and_who_relays() {
    let world = world().await;
    world.commit_many(7, 3).await;
    let status = json(&world, &["status", "--json"]).await;
    assert_eq!(
        (
            &status["pending"],
            &status["due"],
            &status["dead"],
            &status["waiting"]
        ),
        (&7.into(), &7.into(), &0.into(), &0.into())
    );
    assert!(status["oldest_due_age_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(status["relays"].as_array().unwrap().len(), 0);
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    consumer.until(7).await;
    test_support::eventually("the relay to report", SOON, async || {
        let status = json(&world, &["status", "--json"]).await;
        (status["relays"][0]["state"] == "publishing" && status["pending"] == 0).then_some(())
    })
    .await;
    assert!(ok(&world, &["status"]).await.contains("publishing"));
}

#[tokio::test]
async fn check_lag_answers_as_a_monitoring_plugin() {
    let world = world().await;
    let lag = async |more: &[(&str, &str)]| {
        world
            .outboxd(&["check-lag", "--warning", "60s", "--critical", "5m"], more)
            .await
    };
    assert_eq!(lag(&[]).await.code, 0);
    let id = world.insert(None, "created", "1", "").await;
    let age = async |age: &str| {
        let sql = format!(
            "UPDATE outbox.message SET created_at = clock_timestamp() - interval '{age}' WHERE message_id = '{id}'"
        );
        world.sql(&sql).await;
    };
    age("2 min").await;
    let warning = lag(&[]).await;
    warning.ends(1, &[]);
    let (text, data) = warning.stdout.split_once(" | ").unwrap();
    // The age depends on the machine's speed, and is above two minutes.
    let seconds = |text: &str, before: &str| -> u32 {
        let (_, number) = text.split_once(before).unwrap();
        let mut digits = number.split(|c: char| !c.is_ascii_digit());
        digits.next().unwrap().parse().unwrap()
    };
    for lag in [
        seconds(text, "OUTBOX WARNING - lag "),
        seconds(data, "lag="),
    ] {
        assert!((120..300).contains(&lag), "{}", warning.stdout);
    }
    age("10 min").await;
    assert_eq!(lag(&[]).await.code, 2);
    assert_eq!(
        lag(&[("DATABASE_URL", "postgres://u:p@127.0.0.1:1/x")])
            .await
            .code,
        3
    );
    assert_eq!(lag(&[("OUTBOXD__RELAY__NOPE", "1")]).await.code, 3);
    // The monitoring role is sufficient.
    let monitor = world.url_of("monitor");
    assert_eq!(lag(&[("DATABASE_URL", &monitor)]).await.code, 2);
}

/// Five dead messages: three unroutable of two keys, two with bad headers.
async fn with_dead(world: &World) -> test_support::Daemon {
    world.bind("all", "order.good", &[]).await;
    let relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1")]);
    for (key, event_type, columns) in [
        ("a", "lost", ""),
        ("a", "lost", ""),
        ("b", "lost2", ""),
        ("c", "good", "headers = '[]'"),
        ("c", "good", "headers = '1'"),
    ] {
        world
            .insert(Some(key), event_type, r#"{"n":1}"#, columns)
            .await;
    }
    world.until("their deaths", "outbox.dead", 5).await;
    relay
}

#[tokio::test]
async fn dead_messages_are_listed_shown_and_filtered() {
    let world = world().await;
    let _relay = with_dead(&world).await;
    let list = json(&world, &["dead", "list", "--json"]).await;
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 5);
    for field in ["message_id", "reason", "attempts", "last_error"] {
        assert!(list.iter().all(|d| !d[field].is_null()), "{field}");
    }
    let counted = async |filter: &[&str]| {
        let args: Vec<&str> = ["dead", "list", "--json"]
            .iter()
            .chain(filter)
            .copied()
            .collect();
        json(&world, &args).await.as_array().unwrap().len()
    };
    assert_eq!(counted(&["--reason", "unroutable"]).await, 3);
    assert_eq!(
        counted(&["--reason", "unroutable", "--key", "order/a"]).await,
        2
    );
    assert_eq!(counted(&["--type", "lost2"]).await, 1);
    assert_eq!(counted(&["--aggregate-type", "order"]).await, 5);
    assert_eq!(counted(&["--older-than", "1h"]).await, 0);
    assert_eq!(counted(&["--limit", "2"]).await, 2);
    let id = list[0]["message_id"].as_str().unwrap();
    assert_eq!(counted(&[id]).await, 1);
    assert!(ok(&world, &["dead", "show", id]).await.contains(id));
    assert_eq!(
        json(&world, &["dead", "show", id, "--json"]).await["message_id"],
        id
    );
    let nobody = words("dead show 00000000-0000-0000-0000-000000000000");
    let nobody = world.outboxd(&nobody, &[]).await;
    nobody.ends(1, &[]);
    let all = ok(&world, &["dead", "list"]).await;
    assert!(
        all.contains("unroutable") && !all.contains("--limit"),
        "{all}"
    );
    // A list that was cut says so. A list that ends exactly at its limit was not cut.
    assert_eq!(ok(&world, &["dead", "list", "--limit", "5"]).await, all);
    let cut = ok(&world, &["dead", "list", "--limit", "2"]).await;
    assert_eq!(cut.lines().count(), 1 + 2 + 1, "{cut}");
    assert_eq!(
        cut.lines().last(),
        Some("the first 2; there are more: --limit shows them")
    );
}

#[tokio::test]
async fn a_redriven_message_is_published_with_its_own_id_and_the_change_is_recorded() {
    let world = world().await;
    let _relay = with_dead(&world).await;
    let dry = world.ok("dead redrive --reason unroutable --dry-run").await;
    assert!(dry.contains('3'), "{dry}");
    assert_eq!(
        world.count("outbox.dead").await,
        5,
        "a dry run changes nothing"
    );
    assert_eq!(
        world
            .outboxd(&["dead", "redrive", "--why", "x"], &[])
            .await
            .code,
        2,
        "everything only with --all"
    );
    assert_eq!(
        world.outboxd(&["dead", "redrive", "--all"], &[]).await.code,
        2,
        "a reason is asked for"
    );

    let consumer = world.consumer().await;
    world
        .ok("dead redrive --reason unroutable --why 'queue bound' --by ada")
        .await;
    let seen = consumer.until(3).await;
    let ids: Vec<String> = world.ledger.ids()[..3]
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(seen.iter().all(|m| ids.contains(&m.message_id)));
    world.drained().await;
    let row = world.row("SELECT action, by_whom, why, affected, selection, cardinality(message_ids), by_role FROM outbox.operation").await;
    assert_eq!(
        (
            row.get::<_, &str>(0),
            row.get::<_, &str>(1),
            row.get::<_, &str>(2)
        ),
        ("redrive", "ada", "queue bound")
    );
    assert_eq!(
        (
            row.get::<_, i64>(3),
            row.get::<_, i32>(5),
            row.get::<_, &str>(6)
        ),
        (3, 3, "relay")
    );
    assert_eq!(row.get::<_, &str>(4), "reason=unroutable");
}

#[tokio::test]
async fn a_discarded_message_is_gone_and_recorded() {
    let world = world().await;
    let _relay = with_dead(&world).await;
    world
        .ok("dead discard --reason headers_invalid --why 'test data'")
        .await;
    assert_eq!(world.count("outbox.dead").await, 3);
    assert_eq!(world.count("outbox.message").await, 3);
    world
        .has(
            "outbox.operation WHERE action = 'discard' AND affected = 2",
            1,
        )
        .await;
    ok(&world, &["dead", "discard", "--all", "--why", "all of it"]).await;
    assert_eq!(world.count("outbox.message").await, 0);
}

#[tokio::test]
async fn prune_deletes_now() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    world.commit_many(200, 20).await;
    consumer.until(200).await;
    world.marked(200).await;
    // The marks move while the relay is idle, after at least three polls.
    let above = "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.id > l.low_water";
    world.until("the low-water marks", above, 0).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    ok(&world, &["prune", "--older-than", "0s", "--by", "ada"]).await;
    assert_eq!(world.count("outbox.message").await, 0);
    let recorded = "(SELECT sum(affected) AS n FROM outbox.operation WHERE action = 'prune' AND by_whom = 'ada') AS o \
                    WHERE o.n = 200";
    assert_eq!(world.count(recorded).await, 1);
}
