//! From a row to a confirmed message.

use lapin::types::AMQPValue;

use crate::world::{FAR, FARTHER, Gate, SOON, world};

#[tokio::test]
async fn a_committed_event_arrives_as_the_contract_says() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[("OUTBOXD__RELAY__APP_ID", "shop")]);
    let headers = r#"headers = '{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b","correlation_id":"c-1","tenant":"blue","n":5,"deep":{"a":[1]}}'"#;
    let id = world
        .insert(Some("1042"), "created", r#"{ "total" : 1.10 }"#, headers)
        .await;
    let seen = consumer.until(1).await.remove(0);

    assert_eq!(seen.message_id, id.to_string());
    assert_eq!(
        (seen.exchange.as_str(), seen.routing_key.as_str()),
        ("events", "order.created")
    );
    assert_eq!(seen.body, br#"{ "total" : 1.10 }"#, "byte for byte");
    let p = &seen.properties;
    assert_eq!(p.kind().as_ref().unwrap().as_str(), "created");
    assert_eq!(
        p.content_type().as_ref().unwrap().as_str(),
        "application/json"
    );
    assert_eq!(p.app_id().as_ref().unwrap().as_str(), "shop");
    assert_eq!(p.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(*p.delivery_mode(), Some(2));
    let created: i64 = world.one("SELECT extract(epoch FROM created_at)::bigint FROM outbox.message WHERE created_at - interval '0.5 s' IS NOT NULL").await;
    assert!(
        p.timestamp()
            .unwrap()
            .abs_diff(u64::try_from(created).unwrap())
            <= 1
    );
    assert_eq!(
        seen.text_header("traceparent").unwrap(),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
    assert_eq!(seen.text_header("tracestate").unwrap(), "a=b");
    assert_eq!(seen.text_header("tenant").unwrap(), "blue");
    assert_eq!(seen.header("n").unwrap(), AMQPValue::LongLongInt(5));
    assert_eq!(seen.text_header("outbox-key").unwrap(), "order:1042");
    assert!(matches!(
        seen.header("outbox-position").unwrap(),
        AMQPValue::LongLongInt(_)
    ));
    assert_eq!(
        seen.header("outbox-attempt"),
        None,
        "only from the second attempt on"
    );
    assert_eq!(seen.header("outbox-replay"), None);

    world.drained().await;
    relay.terminate().unwrap();
    assert!(relay.ended(SOON).await.unwrap().success());
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn a_rolled_back_event_never_arrives() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.sql("BEGIN; INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('order', 'ghost', '1'); ROLLBACK").await;
    world.commit(&[(None, "real", "2")]).await;
    let seen = consumer.until(1).await;
    assert_eq!(seen[0].routing_key, "order.real");
    world.drained().await;
    assert_eq!(consumer.len(), 1);
}

#[tokio::test]
async fn cloudevents_attributes_come_with_the_format() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[
        ("OUTBOXD__ROUTING__FORMAT", "cloudevents"),
        ("OUTBOXD__ROUTING__CLOUDEVENTS_SOURCE", "/shop"),
    ]);
    let id = world.commit(&[(Some("7"), "created", "{}")]).await[0];
    let seen = consumer.until(1).await.remove(0);
    let attribute = |name: &str| seen.text_header(&format!("cloudEvents_{name}")).unwrap();
    assert_eq!(attribute("specversion"), "1.0");
    assert_eq!(attribute("id"), id.to_string());
    assert_eq!(attribute("source"), "/shop");
    assert_eq!(attribute("type"), "created");
    assert_eq!(attribute("subject"), "7");
    assert_eq!(attribute("partitionkey"), "order:7");
    assert!(attribute("time").ends_with('Z'));
}

#[tokio::test]
async fn a_row_and_a_route_choose_exchange_and_routing_key() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.declare_exchange("audit").await;
    let channel = world.channel().await;
    let (binding, none) = (Default::default(), Default::default());
    use crate::world::short;
    channel
        .queue_bind(short("all"), short("audit"), short("#"), binding, none)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let routes = "[[routing.routes]]\nevent_type = 'audit*'\nexchange = 'audit'\nrouting_key = 'by.{aggregate_id}'\n";
    std::fs::write(&file, routes).unwrap();
    let args = ["run", "--config", file.to_str().unwrap()];
    let _relay =
        test_support::Daemon::start(&crate::world::binary(), &args, &world.env(&[])).unwrap();
    world.insert(Some("1"), "created", "1", "").await;
    world.insert(Some("1"), "audited", "2", "").await;
    world
        .insert(
            Some("1"),
            "created",
            "3",
            "exchange = 'audit'; routing_key = 'own'",
        )
        .await;
    let mut seen: Vec<_> = consumer
        .until(3)
        .await
        .into_iter()
        .map(|m| (m.exchange, m.routing_key))
        .collect();
    seen.sort();
    let expected = [
        ("audit", "by.1"),
        ("audit", "own"),
        ("events", "order.created"),
    ];
    assert_eq!(seen, expected.map(|(e, k)| (e.to_owned(), k.to_owned())));
}

#[tokio::test]
async fn a_scheduled_event_waits_for_its_time_and_holds_nobody_back() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    for at in ["clock_timestamp() + interval '1 d'", "'infinity'"] {
        let at = format!("available_at = {at}");
        world.insert(Some("1"), "later", "1", &at).await;
    }
    let now = world.insert(Some("1"), "now", "2", "").await;
    consumer.until(1).await;
    let before = std::time::Instant::now();
    let at = "available_at = clock_timestamp() + interval '4 s'";
    let soon = world.insert(Some("1"), "soon", "1", at).await;
    let seen = consumer.until(2).await;
    let ids: Vec<_> = seen.iter().map(|m| m.message_id.clone()).collect();
    assert_eq!(ids, [now.to_string(), soon.to_string()]);
    assert!(
        seen[1].at - before >= std::time::Duration::from_secs(4),
        "not before its time"
    );
    world.marked(2).await;
    let status = world.outboxd(&["status", "--json"], &[]).await;
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(
        (&status["waiting"], &status["due"]),
        (&2.into(), &0.into()),
        "those of tomorrow and of never wait, and are not due"
    );
}

#[tokio::test]
async fn sent_rows_are_deleted_when_none_are_kept() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[("OUTBOXD__RETENTION__SENT", "0s")]);
    world.commit_many(300, 10).await;
    consumer.until(300).await;
    world.until("an empty table", "outbox.message", 0).await;
    world.clean(&consumer, 0).await;
}

#[tokio::test]
async fn a_row_that_somebody_writes_as_it_is_while_it_is_claimed_is_sent_once_and_marked_or_deleted()
 {
    for (retention, left) in [("7d", 20), ("0s", 0)] {
        let world = world().await;
        let consumer = world.consumer().await;
        let gate = Gate::new();
        world.commit_many(20, 20).await;
        let relay = world.relay(&[
            ("OUTBOXD__RETENTION__SENT", retention),
            ("OUTBOXD__RELAY__WORKERS", "1"),
            ("OUTBOXD_FAILPOINT", &gate.at("confirm.before_settle")),
        ]);
        relay.line("failpoint reached", SOON).await;
        // A new version of every row: the places that the claim saw are no longer theirs.
        let rewrite =
            "UPDATE outbox.message SET payload = payload, created_at = created_at - interval '1 s'";
        world.sql(rewrite).await;
        gate.open();
        world
            .until("no pending row", "outbox.message WHERE sent_at IS NULL", 0)
            .await;
        assert_eq!(world.count("outbox.message").await, left);
        consumer.until(20).await;
        assert_eq!(consumer.len(), 20, "with a history of {retention}");
        relay.never_said("rows changed under a held lane");
    }
}

/// What was published is not what the row says now. The person who corrects it is not kept waiting, and reads nowhere that
/// it was too late; so the message goes out once more.
#[tokio::test]
async fn a_message_that_somebody_corrects_while_it_is_published_is_published_again_as_it_is_now() {
    // The correction commits before the settle, or the settle waits for it.
    for (retention, left, settle_waits) in [
        ("7d", 6, false),
        ("7d", 6, true),
        ("0s", 0, false),
        ("0s", 0, true),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let gate = Gate::new();
        let kinds = [
            ("payload", "payload = '2'"),
            ("binary", "payload = NULL, binary_payload = '2'"),
            ("content_type", "content_type = 'text/plain'"),
            ("headers", "headers = '{\"corrected\":\"yes\"}'"),
            ("route", "routing_key = 'corrected'"),
            ("left_alone", ""),
        ];
        for (kind, _) in kinds {
            world.insert(Some("k"), kind, "1", "").await;
        }
        // One key, and all of it at once: one claim publishes the six.
        let relay = world.relay(&[
            ("OUTBOXD__RETENTION__SENT", retention),
            ("OUTBOXD__RELAY__WORKERS", "1"),
            ("OUTBOXD__RELAY__ORDERING", "pipelined"),
            ("OUTBOXD__DATABASE__LOCK_TIMEOUT", FAR),
            ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", FAR),
            ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", FARTHER),
            ("OUTBOXD_FAILPOINT", &gate.at("confirm.before_settle")),
        ]);
        relay.line("failpoint reached", SOON).await;
        let first = consumer.until(6).await;
        let person = world.postgres().connect(&world.database).await.unwrap();
        let corrections: String = kinds
            .iter()
            .filter(|(_, change)| !change.is_empty())
            .map(|(kind, change)| {
                format!("UPDATE outbox.message SET {change} WHERE event_type = '{kind}';")
            })
            .collect();
        person
            .batch_execute(&format!("BEGIN; {corrections}"))
            .await
            .unwrap();
        if settle_waits {
            gate.open();
            let waits = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() \
                         AND application_name LIKE 'outboxd/%'";
            test_support::eventually("the settle to wait", SOON, async || {
                (world.count(waits).await > 0).then_some(())
            })
            .await;
            person.batch_execute("COMMIT").await.unwrap();
        } else {
            person.batch_execute("COMMIT").await.unwrap();
            gate.open();
        }
        let seen = consumer.until(6 + 5).await;
        for again in &seen[6..] {
            let kind = again.properties.kind().as_ref().unwrap().as_str();
            let corrected = match kind {
                "payload" | "binary" => again.body == b"2",
                "content_type" => {
                    again.properties.content_type().as_ref().unwrap().as_str() == "text/plain"
                }
                "headers" => again.text_header("corrected").as_deref() == Some("yes"),
                "route" => again.routing_key == "corrected",
                _ => false,
            };
            assert!(corrected, "{kind}: {again:?}");
            assert!(
                first.iter().any(|m| m.message_id == again.message_id),
                "under the id that it has"
            );
        }
        world.drained().await;
        assert_eq!(world.count("outbox.message").await, left);
        assert_eq!(consumer.len(), 6 + 5, "with a history of {retention}");
    }
}

/// Bodies above `batch_bytes / batch_size` do not come along with their rows, and above `batch_bytes` in all a claim
/// takes no more.
#[tokio::test]
async fn large_and_small_bodies_of_a_key_arrive_whole_and_in_order() {
    let world = world().await;
    let consumer = world.consumer().await;
    let sizes = [
        10, 300_000, 0, 1_048_576, 20, 700_000, 700_000, 30, 40, 1_000_000,
    ];
    let sql = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, binary_payload) \
               VALUES ('order', '1', 'sized', convert_to(repeat(chr(65 + $1), $2), 'UTF8'))";
    for n in 0..30 {
        let size = sizes[n as usize % sizes.len()];
        world.client.execute(sql, &[&n, &size]).await.unwrap();
    }
    let _relay = world.relay(&[
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__BATCH_SIZE", "8"),
        ("OUTBOXD__RELAY__BATCH_BYTES", "2MiB"),
        ("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1MiB"),
    ]);
    let seen = consumer.until(30).await;
    for (n, message) in seen.iter().enumerate() {
        let expected = vec![65 + n as u8; sizes[n % sizes.len()] as usize];
        assert!(
            message.body == expected,
            "message {n} of {} bytes",
            message.body.len()
        );
    }
    world.drained().await;
    assert_eq!(consumer.len(), 30);
}

#[tokio::test]
async fn one_daemon_relays_several_databases_and_one_s_failure_is_its_own() {
    let (one, two) = (world().await, world().await);
    let (first, second) = (one.consumer().await, two.consumer().await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let text = format!(
        "[[source]]\nname = 'one'\ndatabase.url = '{}'\nbroker.url = '{}'\n\
         [[source]]\nname = 'two'\ndatabase.url = '{}'\nbroker.url = '{}'\n\
         [[source]]\nname = 'away'\ndatabase.url = 'postgres://u:p@127.0.0.1:1/x'\nbroker.url = 'amqp://u:p@127.0.0.1:1'\n",
        one.database_url(),
        one.broker_url(),
        two.database_url(),
        two.broker_url()
    );
    std::fs::write(&file, text).unwrap();
    let env = [
        ("OUTBOXD__ADMIN__LISTEN".to_owned(), "off".to_owned()),
        ("OUTBOXD__RELAY__WORKERS".to_owned(), "1".to_owned()),
    ];
    let args = ["run", "--config", file.to_str().unwrap()];
    let _relay = test_support::Daemon::start(&crate::world::binary(), &args, &env).unwrap();
    one.commit_many(20, 3).await;
    two.commit_many(30, 3).await;
    first.until(20).await;
    second.until(30).await;
}

/// The settings for PgBouncer in transaction mode: no prepared statement, no session setting, no listener.
#[tokio::test]
async fn without_a_session_of_its_own_the_relay_polls_and_delivers_all_the_same() {
    let world = world().await;
    world.bind("all", "order.created", &[]).await;
    let consumer = world.consume("all").await;
    let relay = world.relay(&[
        ("OUTBOXD__DATABASE__PREPARED_STATEMENTS", "false"),
        ("OUTBOXD__DATABASE__LISTEN", "false"),
        ("OUTBOXD__RELAY__POLL_INTERVAL", "200ms"),
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "2"),
    ]);
    relay.line("connected to both servers", SOON).await;
    world.commit_many(2000, 50).await;
    world.insert(Some("x"), "nobody", "1", "").await;
    consumer.until(2000).await;
    world.clean(&consumer, 0).await;
    assert_eq!(world.count("outbox.dead").await, 1);
    let sessions = "pg_stat_activity a WHERE datname = current_database() AND application_name LIKE 'outboxd/%'";
    assert!(world.count(sessions).await > 0);
    let locks = "pg_locks l JOIN pg_database d ON d.oid = l.database \
                 WHERE d.datname = current_database() AND l.locktype = 'advisory'";
    assert_eq!(
        world.count(locks).await,
        0,
        "nothing that a pooled connection would leave behind"
    );
}
