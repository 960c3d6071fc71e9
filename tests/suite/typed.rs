//! Input that people type: commands, times, ids, files and URLs.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::world::{Run, World, words, world};

async fn ran(world: &World, args: &[&str]) -> Run {
    world.outboxd(args, &[]).await
}

/// All messages died at the same moment, so only lane and position distinguish them. `event_type` is SQL.
async fn dead(world: &World, rows: i64, event_type: &str) {
    world
        .client
        .execute(
            &format!(
                "WITH m AS (INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 SELECT 'order', i::text, {event_type}, '1' FROM generate_series(1, $1::bigint) i \
                 RETURNING lane, id, message_id) \
                 INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error, died_at) \
                 SELECT lane, id, message_id, 'unroutable', 1, 'x', now() FROM m"
            ),
            &[&rows],
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn a_time_means_the_same_whatever_the_zone_of_the_database() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    world.commit_many(20, 5).await;
    consumer.until(20).await;
    world.drained().await;
    drop(relay);
    let zone = format!(
        "ALTER DATABASE {} SET timezone = 'Pacific/Kiritimati'",
        world.database
    );
    world.sql(&zone).await;
    let now: String = world
        .one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')")
        .await;

    let past = "2020-01-31T08:00:00";
    for (since, until, found) in [
        ("1h", None, 20),
        ("10m", Some("0s"), 20),
        (&*format!("{past}Z"), None, 20),
        (&*format!("{past}+14:00"), Some(&*format!("{now}+14:00")), 0),
    ] {
        let mut args = vec!["replay", "--dry-run", "--json", "--since", since];
        if let Some(until) = until {
            args.extend(["--until", until]);
        }
        let run = ran(&world, &args).await;
        let report: Value = serde_json::from_str(&run.stdout)
            .unwrap_or_else(|e| panic!("{since}: {e} {}", run.stderr));
        assert_eq!(report["messages"], found, "{since} {until:?}: {report}");
        assert!(
            report["since"].as_str().unwrap().ends_with('Z'),
            "as it was understood: {report}"
        );
    }
    let bare = ran(&world, &["replay", "--dry-run", "--since", past]).await;
    bare.ends(2, &["has no time zone: write 2020-01-31T08:00:00Z for UTC"]);
    let replay = words("replay --since 2020-01-31T09:00:00+01:00 --why x");
    let said = ran(&world, &replay).await;
    said.ends(0, &["20 messages", "since=2020-01-31T08:00:00Z"]);
    world
        .until(
            "the record",
            "outbox.operation WHERE selection = 'since=2020-01-31T08:00:00Z'",
            world.count("outbox.operation").await,
        )
        .await;
}

#[tokio::test]
async fn ids_and_codes_that_mean_nothing_are_told_one_by_one_and_fail() {
    let world = world().await;
    let consumer = world.consumer().await;
    let sent = world.insert(Some("s"), "good", "1", "").await.to_string();
    let relay = world.relay(&[]);
    consumer.until(1).await;
    world.drained().await;
    drop(relay);
    dead(&world, 1, "'lost'").await;
    let id = ran(&world, &["dead", "list", "--json"]).await.stdout;
    let id: Value = serde_json::from_str(&id).unwrap();
    let id = id[0]["message_id"].as_str().unwrap().to_owned();
    let nobody = "00000000-0000-4000-8000-000000000000";

    for (command, known) in [
        (&["dead", "list"][..], &*id),
        (&["dead", "redrive", "--dry-run"], &id),
        (&["dead", "discard", "--dry-run"], &id),
        (&["replay", "--dry-run"], &sent),
    ] {
        let good = ran(&world, &[command, &[known, known]].concat()).await;
        good.ends(0, &[]);
        for json in [&[][..], &["--json"]] {
            let bad = ran(&world, &[command, &[known, nobody], json].concat()).await;
            bad.ends(1, &[]);
            assert!(
                bad.stderr.contains(&format!("outboxd: {nobody}: no "))
                    && !bad.stderr.contains(known),
                "{command:?}: {}",
                bad.stderr
            );
            if json.is_empty() {
                let found = bad.stdout.starts_with("1 messages") || bad.stdout.contains(known);
                assert!(found, "what is there is done: {}", bad.stdout);
            } else {
                let report: Value = serde_json::from_str(&bad.stdout).unwrap();
                assert!(report.is_array() || report["messages"] == 1, "{report}");
            }
        }
    }
    let redriven = ran(&world, &["dead", "redrive", &id, nobody, "--why", "x"]).await;
    redriven.ends(1, &[]);
    assert_eq!(world.count("outbox.dead").await, 0, "the one that is dead");

    let unknown = ran(&world, &["dead", "list", "--reason", "unroutabel"]).await;
    unknown.ends(
        2,
        &["similar value exists: 'unroutable'", "payload_too_large"],
    );
}

#[tokio::test]
async fn dead_messages_as_json_are_all_of_them_or_the_cut_is_said() {
    let world = world().await;
    dead(&world, 450, "'lost'").await;
    let all = ran(&world, &["dead", "list", "--json"]).await;
    let list: Vec<Value> = serde_json::from_str(&all.stdout).unwrap();
    let mut ids: Vec<&str> = list
        .iter()
        .map(|d| d["message_id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(
        (list.len(), ids.len()),
        (450, 450),
        "each once, over three pages"
    );
    assert_eq!(all.stderr, "");
    for (limit, cut) in [("200", true), ("449", true), ("450", false)] {
        let some = ran(&world, &["dead", "list", "--json", "--limit", limit]).await;
        let list: Vec<Value> = serde_json::from_str(&some.stdout).unwrap();
        assert_eq!(list.len().to_string(), limit);
        assert_eq!(
            some.stderr
                .contains("there are more: without --limit all are listed"),
            cut,
            "{limit}: {}",
            some.stderr
        );
    }
    let none = ran(&world, &["dead", "list", "--json", "--type", "nobody"]).await;
    assert_eq!(none.stdout, "[]\n");
}

/// A role with only INSERT may write these texts: 640 MB of text, a few MB as PostgreSQL stores them.
#[tokio::test]
async fn huge_texts_of_dead_messages_are_listed_as_their_beginnings() {
    let world = world().await;
    dead(&world, 32, "repeat('é', 10000000)").await;
    let list = ran(&world, &["dead", "list", "--json"]).await;
    list.ends(0, &[]);
    assert!(
        list.stdout.len() < 1_000_000,
        "{} bytes of output",
        list.stdout.len()
    );
    let list: Vec<Value> = serde_json::from_str(&list.stdout).unwrap();
    let shown = list[31]["event_type"].as_str().unwrap();
    assert_eq!(shown.chars().count(), 1003);
    assert!(shown.starts_with('é') && shown.ends_with("..."));
    let id = list[0]["message_id"].as_str().unwrap();
    assert_eq!(ran(&world, &["dead", "show", id]).await.code, 0);
    assert_eq!(ran(&world, &["dead", "list"]).await.code, 0);
}

#[tokio::test]
async fn what_cannot_be_meant_is_a_wrong_usage() {
    let world = world().await;
    for (command, says) in [
        (
            "dead redrive --all --reason unroutable --why x",
            "and not both",
        ),
        ("dead discard --why x", "or --all"),
        ("dead discard --all --why ' '", "is empty"),
        ("dead discard --key '' --why x", "must be an aggregate type"),
        ("dead discard --key 1 --why x", "must be an aggregate type"),
        (
            "dead list --key order/1 --aggregate-type order",
            "cannot be used with",
        ),
        ("dead list --type ''", "is empty"),
        ("dead list --limit 0", "0 is not in 1.."),
        ("dead list --limit -1", "argument '-1'"),
        (
            "dead list --limit 5 --limit 6",
            "cannot be used multiple times",
        ),
        ("dead list --older-than 1000000y", "up to 100 years"),
        ("dead list not-an-id", "not-an-id"),
        (
            "replay --key order/1 --why x --rate inf",
            "0.001 to 1000000",
        ),
        (
            "replay --key order/1 --why x --rate NaN",
            "0.001 to 1000000",
        ),
        (
            "replay --key order/1 --why x --rate 1e-300",
            "0.001 to 1000000",
        ),
        ("replay --key order/1 --why ''", "is empty"),
        ("replay --since 1h --until 2h --why x", "is not before"),
        ("prune --older-than -5s", "argument '-5'"),
        ("prune --older-than 5", "up to 100 years"),
        ("prune --by ''", "is empty"),
        ("status --source nobody", "the configuration has default"),
        ("status --source ''", "is empty"),
        (
            "run --source default",
            "--source is for commands that act on one database",
        ),
        ("check --source default", "--source is for commands"),
    ] {
        ran(&world, &words(command)).await.ends(2, &[says]);
    }
    // A monitoring system reads 2 as critical and 1 as a warning.
    for thresholds in [
        "--warning -5s",
        "--warning 5",
        "--warning 10m --critical 5m",
        "--critical 1000000y",
        "--nope",
        "--source nobody",
        "--set nope=1",
    ] {
        let run = ran(&world, &words(&format!("check-lag {thresholds}"))).await;
        run.ends(3, &[]);
        let unknown = run.stdout.starts_with("OUTBOX UNKNOWN - ");
        assert!(unknown, "{thresholds}: {}", run.stdout);
    }
    assert_eq!(ran(&world, &["check-lag", "--help"]).await.code, 0);
}

/// Each command answers within a moment, whatever the file is. If one hangs, the run's time-out makes the test red.
#[tokio::test]
async fn a_file_that_never_ends_or_never_begins_is_a_bad_configuration() {
    let world = world().await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&folder.path().join("pipe"), mode).unwrap();
    let huge = std::fs::File::create(at("huge")).unwrap();
    huge.set_len(3 << 30).unwrap();
    huge.set_permissions(std::fs::Permissions::from_mode(0o600))
        .unwrap();
    std::fs::write(at("group"), world.database_url()).unwrap();
    std::fs::set_permissions(at("group"), std::fs::Permissions::from_mode(0o660)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();

    let files = [
        at("pipe"),
        at("huge"),
        at("link"),
        "/dev/zero".to_owned(),
        "/".to_owned(),
    ];
    for file in &files {
        let run = ran(&world, &["check", "--config", file]).await;
        run.ends(78, &[file]);
        for (key, room) in [
            ("OUTBOXD__DATABASE__URL_FILE", "DATABASE_URL"),
            ("OUTBOXD__BROKER__URL_FILE", "AMQP_URL"),
            ("OUTBOXD__BROKER__CA_FILE", ""),
            ("OUTBOXD__DATABASE__CA_FILE", ""),
        ] {
            let mut env = vec![(key, file.as_str())];
            if !room.is_empty() {
                env.push((room, ""));
            }
            let run = world.outboxd(&["check"], &env).await;
            run.ends(78, &[file]);
        }
    }
    let group = at("group");
    let env = [
        ("DATABASE_URL", ""),
        ("OUTBOXD__DATABASE__URL_FILE", &group),
    ];
    let run = world.outboxd(&["check"], &env).await;
    run.ends(78, &[]);
    assert!(
        run.stderr
            .contains("can be changed by its group (mode 660); chmod g-w")
            && !run.stderr.contains("canary"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_database_url_of_a_platform_or_an_orm_connects_or_names_what_is_in_the_way() {
    let world = world().await;
    let url = world.database_url();
    let (head, tail) = url.split_once("//").unwrap();
    let separator = if url.contains('?') { '&' } else { '?' };
    assert_eq!(head, "postgres:");
    for form in [
        format!("postgresql://{tail}"),
        format!(
            "{url}{separator}schema=public&connection_limit=5&pool_timeout=10&connect_timeout=15"
        ),
        format!(
            "{url}{separator}application_name=shop&client_encoding=UTF8&keepalives=1&keepalives_idle=30"
        ),
        format!(
            "{url}{separator}sslmode=prefer&channel_binding=prefer&target_session_attrs=primary"
        ),
        format!("{url}\n"),
    ] {
        let run = world.outboxd(&["status"], &[("DATABASE_URL", &form)]).await;
        run.ends(0, &[]);
    }
    for (form, says) in [
        (
            format!("{url}{separator}sslrootcert=/ca.pem"),
            "has the parameter sslrootcert: write database.ca_file",
        ),
        (
            format!("{url}{separator}pgbouncer=true"),
            "set database.prepared_statements = false",
        ),
        (
            format!("postgresql+psycopg2://{tail}"),
            "is an SQLAlchemy URL",
        ),
        (format!("jdbc:postgresql://{tail}"), "is a JDBC URL"),
        (url.replace("canary", "can/ary"), "write / as %2F"),
    ] {
        let run = world.outboxd(&["status"], &[("DATABASE_URL", &form)]).await;
        run.ends(78, &["database.url: ", says]);
        assert!(!run.stderr.contains("canary") && !run.stderr.contains("ary-password"));
    }
    let pooled = format!("{url}{separator}pgbouncer=true");
    let env = [
        ("DATABASE_URL", &*pooled),
        ("OUTBOXD__DATABASE__PREPARED_STATEMENTS", "false"),
        ("OUTBOXD__DATABASE__LISTEN", "false"),
    ];
    let run = world.outboxd(&["status"], &env).await;
    run.ends(0, &[]);
}
