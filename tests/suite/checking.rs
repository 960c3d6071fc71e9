//! `outboxd check --connect` and the start report all faults at once, and the exit code says whether waiting helps.

use std::collections::BTreeMap;

use test_support::RabbitMqOptions;

use crate::world::{SOON, World, own_world, own_world_with, world};

async fn check(world: &World, env: &[(&str, &str)]) -> crate::world::Run {
    world.outboxd(&["check", "--connect"], env).await
}

#[tokio::test]
async fn every_fault_of_every_source_is_told_at_once() {
    let world = world().await;
    world.declare_exchange("events").await;
    let producer = world.url_of("producer");
    let client = &world.client;
    client
        .batch_execute("DROP VIEW outbox.debezium; ALTER TABLE outbox.dead RENAME reason TO because; DROP FUNCTION outbox.enqueue")
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let source = |name: &str, database: &str, broker: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\n[source.database]\nurl = \"{database}\"\n[source.broker]\nurl = \"{broker}\"\n"
        )
    };
    let away = "postgres://u:p@127.0.0.1:1/x";
    let nobody = world.broker_url().replace("guest:guest@", "guest:wrong@");
    assert_ne!(nobody, world.broker_url());
    let text = [
        "[routing]\nexchange = \"nope\"\n[[routing.routes]]\naggregate_type = \"x\"\nexchange = \"nor.this\"\n".to_owned(),
        source("one", &producer, &world.broker_url()),
        source("two", away, &nobody),
    ]
    .concat();
    std::fs::write(&file, text).unwrap();
    let mut env = world.env(&[]);
    env.retain(|(name, _)| name != "DATABASE_URL" && name != "AMQP_URL");
    let run = crate::world::run(
        &["--config", file.to_str().unwrap(), "check", "--connect"],
        &env,
    )
    .await;
    for said in [
        "one: PostgreSQL: this role lacks privileges that a relay needs",
        "column outbox.dead.reason\n",
        "function outbox.enqueue(",
        "view outbox.debezium\n",
        "one: RabbitMQ: RabbitMQ (look for an exchange): ",
        "no exchange 'nope'",
        "no exchange 'nor.this'",
        "two: PostgreSQL: PostgreSQL (connect to 127.0.0.1:",
        "two: RabbitMQ: RabbitMQ (connect)",
    ] {
        run.ends(78, &[said]);
    }
}

#[tokio::test]
async fn the_exit_code_tells_whether_waiting_helps() {
    let world = world().await;
    world.declare_exchange("events").await;
    let postgres = world.postgres();
    let wrong = postgres.url_for("relay", "wrong", &world.database);
    let nowhere = postgres.url_for("relay", "relay-canary-password", "nowhere");
    let broker = world.broker_url();
    let password = broker.replace("guest:guest@", "guest:wrong@");
    let vhost = world.rabbitmq().url("not.there");
    for (what, env, code) in [
        ("all is well", ("OUTBOXD__RELAY__WORKERS", "2"), 0),
        ("password", ("DATABASE_URL", wrong.as_str()), 78),
        ("database", ("DATABASE_URL", nowhere.as_str()), 78),
        (
            "server away",
            ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/x"),
            69,
        ),
        ("broker's password", ("AMQP_URL", password.as_str()), 78),
        ("virtual host", ("AMQP_URL", vhost.as_str()), 78),
        ("broker away", ("AMQP_URL", "amqp://u:p@127.0.0.1:1"), 69),
        ("exchange", ("OUTBOXD__ROUTING__EXCHANGE", "nope"), 78),
    ] {
        let run = check(&world, &[env]).await;
        assert_eq!(run.code, code, "{what}: {}{}", run.stdout, run.stderr);
    }
}

/// The check does not publish to the exchange: a queue that takes everything stays empty.
#[tokio::test]
async fn a_user_without_write_on_the_exchange_is_told_and_nothing_is_published() {
    let world = world().await;
    world.bind("all", "#", &[]).await;
    world.declare_exchange("other").await;
    let user = format!("writer_{}", world.vhost);
    let rabbitmq = world.rabbitmq();
    // Each call of rabbitmqctl starts an Erlang node, which may time out on a loaded machine.
    let ctl = async |args: &[&str]| {
        test_support::eventually("rabbitmqctl", SOON * 3, async || {
            rabbitmq.ctl(args).await.ok()
        })
        .await;
    };
    let there = async || {
        rabbitmq
            .ctl(&["list_users"])
            .await
            .is_ok_and(|users| users.contains(&user))
    };
    test_support::eventually("the user", SOON * 3, async || {
        (there().await || rabbitmq.ctl(&["add_user", &user, "p"]).await.is_ok()).then_some(())
    })
    .await;
    let url = rabbitmq.url_for(&user, "p", &world.vhost);
    let both = ("OUTBOXD__BROKER__DECLARE", "true");
    for (configure, write, read, declares, refused) in [
        ("^$", "^events$", "^$", false, None),
        ("^$", "^events$", ".*", false, None),
        (".*", ".*", ".*", false, None),
        (
            "^$",
            "^other$",
            ".*",
            false,
            Some("access to exchange 'events'"),
        ),
        ("^$", "^$", "^$", false, Some("access to exchange 'events'")),
        ("^events$", "^events$", "^$", true, None),
        (
            "^$",
            "^events$",
            "^$",
            true,
            Some("access to exchange 'events'"),
        ),
    ] {
        let vhost = world.vhost.as_str();
        ctl(&[
            "set_permissions",
            "--vhost",
            vhost,
            &user,
            configure,
            write,
            read,
        ])
        .await;
        let mut env = vec![("AMQP_URL", url.as_str())];
        if declares {
            env.push(both);
        }
        let run = check(&world, &env).await;
        match refused {
            None => run.ends(0, &[]),
            Some(words) => run.ends(78, &[words]),
        }
    }
    // No queue gets the message of `check`.
    let channel = world.channel().await;
    let got = channel
        .basic_get("all".into(), lapin::options::BasicGetOptions::default())
        .await
        .unwrap();
    assert!(got.is_none(), "a queue got something");
}

#[tokio::test]
async fn a_broker_that_takes_no_publishes_is_not_ok() {
    let mut world = own_world().await;
    world.declare_exchange("events").await;
    assert_eq!(check(&world, &[]).await.code, 0);
    world
        .own()
        .rabbitmq
        .ctl(&["set_vm_memory_high_watermark", "0"])
        .await
        .unwrap();
    let blocked = test_support::eventually("the alarm", SOON, async || {
        let run = check(&world, &[]).await;
        (run.code != 0).then_some(run)
    })
    .await;
    blocked.ends(69, &["RabbitMQ blocks publishers"]);
    world
        .own()
        .rabbitmq
        .ctl(&["set_vm_memory_high_watermark", "0.4"])
        .await
        .unwrap();
    test_support::eventually("the end of it", SOON, async || {
        (check(&world, &[]).await.code == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_where_a_relay_can_write_nothing_is_not_ok() {
    let world = own_world().await;
    world.declare_exchange("events").await;
    let port = world.postgres().port();
    let standby = world.postgres().standby("standby", port).await.unwrap();
    let url = standby.url_for("relay", "relay-canary-password", &world.database);
    let run = test_support::eventually("the standby to have it all", SOON, async || {
        let run = check(&world, &[("DATABASE_URL", &url)]).await;
        (!run.stderr.contains("does not exist")).then_some(run)
    })
    .await;
    run.ends(78, &["this server is a standby", "target_session_attrs"]);
    let migrate = world.outboxd(&["migrate"], &[("DATABASE_URL", &url)]).await;
    migrate.ends(78, &["this server is a standby"]);

    for freeze in [
        "ALTER ROLE relay SET",
        "ALTER DATABASE db SET",
        "ALTER ROLE relay IN DATABASE db SET",
    ] {
        let sql = format!("{freeze} default_transaction_read_only = on");
        world.postgres().execute("postgres", &sql).await.unwrap();
        let run = check(&world, &[]).await;
        run.ends(78, &["default_transaction_read_only"]);
        let sql = sql.replace(" SET ", " RESET ").replace(" = on", "");
        world.postgres().execute("postgres", &sql).await.unwrap();
        assert_eq!(check(&world, &[]).await.code, 0);
    }
}

/// RabbitMQ answers with the same code to all of them, and to a virtual host that does not exist.
#[tokio::test]
async fn each_limit_of_the_broker_is_named_with_its_own_cure() {
    let world = own_world_with(RabbitMqOptions {
        config: vec!["channel_max = 1".to_owned()],
        ..RabbitMqOptions::default()
    })
    .await;
    world.declare_exchange("events").await;
    let (broker, vhost) = (world.rabbitmq(), world.vhost.as_str());
    let none = [r#"{"max-connections":0}"#, r#"{"max-channels":0}"#];
    let user = "set_user_limits USER";
    let of_vhost = ["set_vhost_limits", "-p", vhost, none[0]];
    for (limits, says) in [
        (&[] as &[&str], ["channel_max", "too few channels"]),
        (&of_vhost, ["connection limit", "set_vhost_limits -p"]),
        (&["clear_vhost_limits", "-p", vhost], ["channel_max", "two"]),
        (
            &["set_user_limits", "guest", none[0]],
            [user, "'{\"max-connections\""],
        ),
        (
            &["clear_user_limits", "guest", "all"],
            ["channel_max", "two"],
        ),
        (
            &["set_user_limits", "guest", none[1]],
            [user, "'{\"max-channels\""],
        ),
    ] {
        if !limits.is_empty() {
            broker.ctl(limits).await.unwrap();
        }
        let run = check(&world, &[]).await;
        assert!(run.code != 0, "{limits:?}: {}", run.stderr);
        for text in says {
            assert!(run.stderr.contains(text), "{limits:?}: {}", run.stderr);
        }
    }
}

/// One example for all parts: a difference that stops a relay refuses its start, and other differences are logged.
#[tokio::test]
async fn a_relay_starts_without_what_only_producers_need_and_says_so() {
    let world = world().await;
    let consumer = world.consumer().await;
    world
        .sql("DROP VIEW outbox.debezium; ALTER TABLE outbox.message DISABLE TRIGGER wake")
        .await;
    let relay = world.relay(&[]);
    relay.line("view outbox.debezium", SOON).await;
    world.commit_many(10, 3).await;
    consumer.until(10).await;
    drop(relay);
    world
        .sql("ALTER TABLE outbox.waiting DROP CONSTRAINT waiting_pkey")
        .await;
    let refused = world.outboxd(&["run"], &[]).await;
    refused.ends(78, &["key outbox.waiting.waiting_pkey"]);
}

/// A statement of the relay calls it, and would fail again and again.
#[tokio::test]
async fn a_relay_starts_without_a_function_only_if_it_does_not_call_it() {
    let functions = "SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
                     WHERE n.nspname = 'outbox' ORDER BY 1";
    let names: Vec<String> = {
        let world = world().await;
        let rows = world.all(functions).await;
        rows.iter().map(|row| row.get(0)).collect()
    };
    assert!(names.len() >= 11, "{names:?}");
    for name in names {
        let world = world().await;
        let consumer = world.consumer().await;
        world
            .sql(&format!("DROP FUNCTION outbox.{name} CASCADE"))
            .await;
        let part = match name.as_str() {
            "key_hash" => "function outbox.key_hash",
            "measure" => "view outbox.status",
            "uuid_v7" => "column outbox.message.message_id",
            _ => "",
        };
        if part.is_empty() {
            let relay = world.relay(&[]);
            relay.line(&format!("function outbox.{name}"), SOON).await;
            world.commit_many(10, 3).await;
            world
                .insert(Some("1"), "created", "1", "headers = '[]'")
                .await;
            consumer.until(10).await;
            world.until("the dead one", "outbox.dead", 1).await;
            relay.never_said("backing off");
        } else {
            let refused = world.outboxd(&["run"], &[]).await;
            refused.ends(78, &[part]);
        }
    }
}

/// By default a row can name any exchange except the default exchange, by which it could name any queue.
#[tokio::test]
async fn a_producer_does_not_reach_other_people_s_queues_by_the_default_exchange() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.bind("other.queue", "nothing.ever", &[]).await;
    let relay = world.relay(&[]);
    let forged = world
        .insert(
            Some("1"),
            "created",
            "{}",
            "exchange = ''; routing_key = 'other.queue'",
        )
        .await;
    world.insert(Some("2"), "created", "{}", "").await;
    consumer.until(1).await;
    world.until("its death", "outbox.dead", 1).await;
    assert_eq!(
        world.reason(forged).await.as_deref(),
        Some("exchange_not_allowed")
    );
    drop(relay);
    // The list may allow the default exchange.
    let other = world.consume("other.queue").await;
    let _relay = world.relay_with_default_exchange(&[]);
    world
        .insert(
            Some("3"),
            "created",
            "{}",
            "exchange = ''; routing_key = 'other.queue'",
        )
        .await;
    other.until(1).await;
}

/// The second column of the answer, by the first.
async fn by_table(world: &World, sql: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in world.all(sql).await {
        tables.entry(row.get(0)).or_default().push(row.get(1));
    }
    tables
}

/// Ways to spoil a schema, how each is undone, and what is said of it.
type Broken = Vec<(String, String, Vec<String>)>;

/// Each table without its columns, and without its name.
async fn without_tables(world: &World) -> Broken {
    // A view's columns come and go with it.
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns \
                   WHERE table_schema = 'outbox' AND table_name NOT IN ('debezium', 'status') \
                     AND (table_name, column_name) <> ('migration', 'version')";
    let tables = by_table(world, columns).await;
    let mut broken = Broken::new();
    for (table, columns) in &tables {
        let rename = |from: &str, to: &str| -> String {
            let each = columns.iter().map(|column| {
                format!("ALTER TABLE outbox.{table} RENAME {column}{from} TO {column}{to};")
            });
            each.collect()
        };
        let says = columns
            .iter()
            .map(|column| format!("column outbox.{table}.{column}\n"));
        broken.push((rename("", "_gone"), rename("_gone", ""), says.collect()));
    }
    for table in tables.keys().map(String::as_str).chain(["status"]) {
        let says = match table {
            // It says which schema this is: without it there may be none.
            "migration" => "run `outboxd migrate`".to_owned(),
            "status" => "view outbox.status\n".to_owned(),
            _ => format!("table outbox.{table}\n"),
        };
        broken.push((
            format!("ALTER TABLE outbox.{table} RENAME TO gone"),
            format!("ALTER TABLE outbox.gone RENAME TO {table}"),
            vec![says],
        ));
    }
    broken
}

/// A sequence that would draw a position later than one above it.
fn without_order() -> Broken {
    let alter = |how: &str| format!("ALTER SEQUENCE outbox.message_id_seq {how}");
    let says = || vec!["sequence outbox.message_id_seq: CACHE 1".to_owned()];
    [
        ("CACHE 20", "CACHE 1"),
        ("CYCLE", "NO CYCLE"),
        ("INCREMENT BY -1", "INCREMENT BY 1"),
    ]
    .map(|(breaks, mends)| (alter(breaks), alter(mends), says()))
    .into()
}

async fn without_privileges(world: &World) -> Broken {
    let grants = "SELECT table_name::text, privilege_type || ' ON outbox.' || table_name \
                  FROM information_schema.role_table_grants \
                  WHERE grantee = 'outbox_relay' AND table_schema = 'outbox'";
    let on_tables = by_table(world, grants).await.into_values();
    let singly = [
        "USAGE ON SCHEMA outbox",
        "UPDATE (sent_at) ON outbox.message",
        "SELECT ON SEQUENCE outbox.message_id_seq",
        "EXECUTE ON FUNCTION outbox.measure()",
    ];
    let singly = singly.map(|privilege| vec![privilege.to_owned()]);
    let each = |privileges: &[String], statement: fn(&str) -> String| -> Vec<String> {
        privileges.iter().map(|what| statement(what)).collect()
    };
    on_tables
        .chain(singly)
        .map(|privileges| {
            // What everybody may, nobody can be refused.
            let revoke = |what: &str| format!("REVOKE {what} FROM outbox_relay, PUBLIC");
            let grant = |what: &str| format!("GRANT {what} TO outbox_relay");
            let says = |what: &str| format!("GRANT {what} TO relay");
            (
                each(&privileges, revoke).join("; "),
                each(&privileges, grant).join("; "),
                each(&privileges, says),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_table_a_column_or_a_privilege_that_is_missing_is_named_at_the_start_with_the_cure() {
    let world = world().await;
    world.declare_exchange("events").await;
    let broken = [
        without_tables(&world).await,
        without_order(),
        without_privileges(&world).await,
    ]
    .concat();
    assert!(broken.len() > 20, "{broken:?}");
    for (breaks, mends, says) in &broken {
        world.sql(breaks).await;
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        world.outboxd(&["run"], &[]).await.ends(78, &says);
        world.sql(mends).await;
    }
    check(&world, &[]).await.ends(0, &[]);
}
