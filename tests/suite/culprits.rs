//! A refusal of the broker costs only the refused message. A broker that lies costs no message.

use std::collections::{BTreeMap, HashMap, HashSet};

use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use test_support::{
    Daemon, amqp, eventually,
    liar::{self, Liar},
    probe,
};

use crate::world::{Consumer, SOON, World, own_world, short, world};

/// A user who may write to `events` only with routing keys of the event types "good…".
async fn with_topic_permission(world: &World) -> String {
    let ctl = async |args: &[&str]| world.rabbitmq().ctl(args).await.unwrap();
    ctl(&["add_user", "relay", "relay"]).await;
    ctl(&[
        "set_permissions",
        "relay",
        "",
        "^(events|amq\\.default)$",
        "",
    ])
    .await;
    let allowed = "^order\\.good";
    ctl(&["set_topic_permissions", "relay", "events", allowed, ".*"]).await;
    world.rabbitmq().url_for("relay", "relay", "/")
}

/// 700 messages, `percent` of them forbidden, with up to 500 refused keys.
async fn share(world: &World, consumer: &Consumer, percent: i32) {
    let before = consumer.len();
    world
        .client
        .execute(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', CASE WHEN i % 3 = 0 THEN ($1::int || '-' || i) END, \
                    CASE WHEN (i * 37) % 100 < $1 THEN 'bad' || i % 500 ELSE 'good' || i % 7 END, '1' \
             FROM generate_series(1, 700) i",
            &[&percent],
        )
        .await
        .unwrap();
    let permitted = 7 * (100 - usize::try_from(percent).unwrap());
    consumer.until(before + permitted).await;
    world
        .until(
            "the forbidden to be dead",
            "outbox.message m JOIN outbox.dead d USING (lane, id) WHERE m.event_type LIKE 'bad%'",
            world
                .count("outbox.message WHERE event_type LIKE 'bad%'")
                .await,
        )
        .await;
    world.drained().await;
    assert_eq!(
        world
            .count("outbox.message m JOIN outbox.dead d USING (lane, id) WHERE m.event_type LIKE 'good%'")
            .await,
        0,
        "no permitted message is dead, {percent} %"
    );
    let counted = consumer
        .seen()
        .iter()
        .filter(|m| m.header("outbox-attempt").is_some())
        .count();
    assert_eq!(
        counted, 0,
        "no permitted message paid an attempt, {percent} %"
    );
    assert_eq!(
        world
            .count(
                "outbox.dead d JOIN outbox.message m USING (lane, id) \
                 WHERE d.reason <> 'access_refused' OR d.attempts <> 3 \
                    OR position('access to topic ''order.' || m.event_type || '''' IN d.last_error) = 0"
            )
            .await,
        0,
        "each died of its own refusal, {percent} %"
    );
}

#[tokio::test]
async fn a_topic_permission_harms_only_what_it_refuses_at_any_share() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let url = with_topic_permission(&world).await;
    let relay = world.relay(&[("AMQP_URL", &url), ("OUTBOXD__RELAY__MAX_ATTEMPTS", "3")]);
    for percent in [1, 30, 99] {
        share(&world, &consumer, percent).await;
    }
    // The broker closed the channel of a wave once for each worker, when the worker knew no culprit yet. After that the culprits
    // go alone.
    let closings = relay
        .lines()
        .iter()
        .filter(|line| line.contains("publishing the batch again"))
        .count();
    assert!(closings <= 2, "{closings}");
    let ids: HashSet<String> = consumer.seen().into_iter().map(|m| m.message_id).collect();
    assert_eq!(
        ids.len(),
        7 * (99 + 70 + 1),
        "each permitted message arrived"
    );
}

#[tokio::test]
async fn a_topic_permission_that_is_given_and_taken_away_is_followed_at_work() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let url = with_topic_permission(&world).await;
    let _relay = world.relay(&[("AMQP_URL", &url), ("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000")]);
    world.insert(None, "good", "1", "").await;
    world.insert(None, "late", "2", "").await;
    consumer.until(1).await;
    let waits = "outbox.waiting WHERE reason = 'access_refused'";
    world.until("the refusal", waits, 1).await;
    let allow = async |pattern: &str| {
        let args = ["set_topic_permissions", "relay", "events", pattern, ".*"];
        world.rabbitmq().ctl(&args).await.unwrap();
    };
    allow(".*").await;
    consumer.until(2).await;
    // The broker's channels cache permissions for a while; a new channel does not have them.
    allow("^order\\.late").await;
    world
        .rabbitmq()
        .ctl(&["close_all_connections", "a new permission"])
        .await
        .unwrap();
    world.insert(None, "good", "3", "").await;
    world.insert(None, "late", "4", "").await;
    eventually("the last of the permitted", SOON, async || {
        consumer.seen().iter().any(|m| m.body == b"4").then_some(())
    })
    .await;
    world.until("the other one to wait", waits, 1).await;
    assert_eq!(world.count("outbox.dead").await, 0);
}

/// Messages that go alone use sixteen channels, if the broker allows as many.
#[tokio::test]
async fn a_user_who_may_have_few_channels_is_served_more_slowly() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    let url = with_topic_permission(&world).await;
    let few = r#"{"max-channels": 5}"#;
    let limit = ["set_user_limits", "relay", few];
    world.rabbitmq().ctl(&limit).await.unwrap();
    let relay = world.relay(&[("AMQP_URL", &url), ("OUTBOXD__RELAY__MAX_ATTEMPTS", "2")]);
    for n in 0..60 {
        let event_type = if n % 2 == 0 {
            format!("bad{n}")
        } else {
            "good".to_owned()
        };
        world.insert(None, &event_type, &n.to_string(), "").await;
    }
    consumer.until(30).await;
    world.dead("reason = 'access_refused'", 30).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
    // The relay reached the limit.
    relay.line("open another channel", SOON).await;
}

/// A producer's fan-out: one id, several destinations.
#[tokio::test]
async fn messages_with_one_id_in_a_wave_have_each_their_own_fate() {
    const N: usize = 100;
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    world.declare_exchange("other").await;
    let consumer = world.consume("all").await;
    let rows = "INSERT INTO outbox.message (message_id, aggregate_type, event_type, payload, exchange) \
                SELECT md5(i::text)::uuid, 'order', t.type, to_json(t.type), t.exchange \
                FROM generate_series(1, 100) i, \
                     (VALUES ('good', 'events'), ('good', 'events'), ('nobody', 'events'), ('good', 'other')) \
                     t (type, exchange) \
                ORDER BY CASE WHEN i % 2 = 0 THEN t.type END, i";
    world.sql(rows).await;
    let _relay = world.relay(&[
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__MAX_ATTEMPTS", "2"),
    ]);
    world.dead("reason = 'unroutable'", 2 * N as i64).await;
    world.drained().await;
    consumer.until(2 * N).await;
    let wrong = "outbox.message m LEFT JOIN outbox.dead d USING (lane, id) \
                 WHERE (m.event_type = 'good' AND m.exchange = 'events') IS DISTINCT FROM (d.id IS NULL)";
    assert_eq!(world.count(wrong).await, 0);
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in consumer.seen() {
        assert!(seen.header("outbox-attempt").is_none(), "{seen:?}");
        *times.entry(seen.message_id).or_default() += 1;
    }
    assert!(
        times.len() == N && times.values().all(|n| *n == 2),
        "{times:?}"
    );
}

async fn over_exchanges(ordering: &str) {
    const EXCHANGES: [&str; 4] = ["one", "two", "three", "four"];
    let world = world().await;
    let consumer = world.consumer().await;
    let channel = world.channel().await;
    for exchange in EXCHANGES {
        amqp::bind(&channel, exchange, "all").await.unwrap();
    }
    for n in 0..120 {
        let exchange = EXCHANGES[n % 7 % EXCHANGES.len()];
        let key = ["a", "b", "c"][n % 3];
        let columns = format!("exchange = '{exchange}'");
        world
            .insert(Some(key), "created", &n.to_string(), &columns)
            .await;
    }
    let _relay = world.relay(&[("OUTBOXD__RELAY__ORDERING", ordering)]);
    consumer.until(120).await;
    world.clean(&consumer, 0).await;
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for seen in consumer.seen() {
        let key = seen.text_header("outbox-key").unwrap();
        let Some(AMQPValue::LongLongInt(position)) = seen.header("outbox-position") else {
            panic!("{seen:?}");
        };
        let before = last.insert(key, position);
        assert!(
            before.is_none_or(|before| before < position),
            "{before:?} {position}"
        );
    }
}

#[tokio::test]
async fn a_key_over_several_exchanges_keeps_its_order_in_pipelined_mode() {
    over_exchanges("pipelined").await;
}

#[tokio::test]
async fn a_key_over_several_exchanges_keeps_its_order_in_strict_mode() {
    over_exchanges("strict").await;
}

/// Where `requester` takes answers, and the address that RabbitMQ gives to whoever answers it.
async fn reply_address(world: &World, requester: &lapin::Channel) -> (lapin::Consumer, String) {
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let reply_to = || short("amq.rabbitmq.reply-to");
    let replies = requester
        .basic_consume(reply_to(), short(""), no_ack, FieldTable::default())
        .await
        .unwrap();
    let (how, none) = (QueueDeclareOptions::default(), FieldTable::default());
    requester
        .queue_declare(short("requests"), how, none)
        .await
        .unwrap();
    let properties = BasicProperties::default().with_reply_to(reply_to());
    let (to, how) = (short("requests"), BasicPublishOptions::default());
    requester
        .basic_publish(short(""), to, how, b"ask", properties)
        .await
        .unwrap()
        .await
        .unwrap();
    let asked = world.channel().await;
    let how = BasicGetOptions { no_ack: true };
    let request = asked
        .basic_get(short("requests"), how)
        .await
        .unwrap()
        .unwrap();
    let address = request.properties.reply_to().clone().unwrap().to_string();
    assert!(address.starts_with("amq.rabbitmq.reply-to."), "{address}");
    (replies, address)
}

/// RabbitMQ before 4.2 hands it back, too, when it is mandatory.
#[tokio::test]
async fn an_answer_by_direct_reply_to_is_sent_once() {
    use futures_util::StreamExt;
    let world = world().await;
    world.declare_exchange("events").await;
    let requester = world.channel().await;
    let (mut replies, address) = reply_address(&world, &requester).await;
    // Whoever asked does not wait for the answer.
    let gone = world.channel().await;
    let (_, nobody) = reply_address(&world, &gone).await;
    gone.close(200, short("")).await.unwrap();

    let attempts = [("OUTBOXD__RELAY__MAX_ATTEMPTS", "3")];
    let _relay = world.relay_with_default_exchange(&attempts);
    let columns = format!("exchange = ''; routing_key = '{address}'");
    let id = world.insert(None, "answer", "42", &columns).await;
    let columns = format!("exchange = ''; routing_key = '{nobody}'");
    world.insert(None, "answer", "43", &columns).await;
    // What only looks like one is a queue's name, and mandatory.
    let queue = world
        .insert(
            None,
            "answer",
            "44",
            "exchange = ''; routing_key = 'amq.rabbitmq.reply'",
        )
        .await;
    let topic = world
        .insert(
            None,
            "answer",
            "45",
            "exchange = 'events'; routing_key = 'amq.rabbitmq.reply-to.x'",
        )
        .await;
    world.dead("reason = 'unroutable'", 2).await;
    world.drained().await;
    assert!(world.reason(queue).await.is_some() && world.reason(topic).await.is_some());
    let reply = tokio::time::timeout(SOON, replies.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            reply.data.as_slice(),
            reply.properties.message_id().clone().unwrap().to_string()
        ),
        (&b"42"[..], id.to_string())
    );
    let again = tokio::time::timeout(std::time::Duration::from_millis(300), replies.next()).await;
    assert!(again.is_err(), "once");
}

/// The peak memory of a process, in MiB.
fn peak_mib(relay: &Daemon) -> u64 {
    probe::peak_kib(relay.pid()).unwrap() / 1024
}

#[tokio::test]
async fn a_broker_without_a_frame_limit_costs_no_memory() {
    let world = own_world().await;
    let consumer = world.consumer().await;
    // Lie only from here on: the test's own clients are connected already, and have no guard.
    let unlimited = "application:set_env(rabbit, frame_max, 0).";
    world.rabbitmq().ctl(&["eval", unlimited]).await.unwrap();
    let relay = world.relay(&[]);
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    world.insert(None, "large", &large, "").await;
    world.commit_many(50, 5).await;
    consumer.until(51).await;
    world.drained().await;
    let report = world.judge(&consumer).await;
    assert!(report.is_clean(), "{report}");
    assert!(peak_mib(&relay) < 300, "{} MiB", peak_mib(&relay));
}

#[tokio::test]
async fn a_broker_that_names_any_frame_limit_is_offered_ours() {
    let world = world().await;
    for (said, agreed) in [(0, 131_072), (u32::MAX, 131_072), (8192, 8192)] {
        let liar = Liar::start(liar::start(), liar::tune(said)).await.unwrap();
        let mut relay = world.relay(&[("AMQP_URL", &liar.url())]);
        eventually("an agreement", SOON, async || {
            (!liar.agreed().is_empty()).then_some(())
        })
        .await;
        assert_eq!(liar.agreed()[0], agreed);
        assert!(peak_mib(&relay) < 300, "{} MiB", peak_mib(&relay));
        relay.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_nests_its_properties_is_refused_and_the_relay_lives() {
    let world = world().await;
    for levels in [40, 500, 20_000] {
        let liar = Liar::start(liar::nested_start(levels), liar::tune(131_072))
            .await
            .unwrap();
        let mut relay = world.relay(&[("AMQP_URL", &liar.url())]);
        relay.line("nested deeper than 32 levels", SOON).await;
        relay.terminate().unwrap();
        assert!(relay.ended(SOON).await.unwrap().success());
    }
    // This is deeper than anybody needs, but harmless.
    let liar = Liar::start(liar::nested_start(31), liar::tune(131_072))
        .await
        .unwrap();
    let _relay = world.relay(&[("AMQP_URL", &liar.url())]);
    eventually("an agreement", SOON, async || {
        (!liar.agreed().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_announces_an_endless_frame_is_refused() {
    let world = world().await;
    let mut endless = vec![1, 0, 0, 0xff, 0xff, 0xff, 0xff];
    endless.extend([0, 10, 0, 10]);
    let liar = Liar::start(endless, Vec::new()).await.unwrap();
    let relay = world.relay(&[("AMQP_URL", &liar.url())]);
    relay.line("131072 were agreed on", SOON).await;
    let tls = Liar::start(b"\x15\x03\x03\0\x02\x02\x28".to_vec(), Vec::new())
        .await
        .unwrap();
    let other = world.relay(&[("AMQP_URL", &tls.url())]);
    other.line("does not speak AMQP", SOON).await;
}

/// The broker closes the channel, and all that was published with the message is published again: once for each connection, because
/// the broker names its limit.
#[tokio::test]
async fn bodies_above_the_broker_s_limit_repeat_one_wave_of_each_connection() {
    const ROUNDS: i64 = 6;
    let world = own_world().await;
    let limit = "application:set_env(rabbit, max_message_size, 100000), persistent_term:erase(max_message_size).";
    world.rabbitmq().ctl(&["eval", limit]).await.unwrap();
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    for round in 1..=ROUNDS {
        world
            .sql(
                "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                 SELECT 'order', i::text, 'created', to_json(repeat('x', CASE WHEN i % 40 = 0 THEN 150000 ELSE 10 END)) \
                 FROM generate_series(1, 200) i",
            )
            .await;
        world
            .dead("reason = 'precondition_failed'", 5 * round)
            .await;
        world.drained().await;
    }
    eventually("each good message", SOON, async || {
        let seen = consumer.seen();
        let ids: HashSet<&str> = seen.iter().map(|seen| seen.message_id.as_str()).collect();
        (ids.len() == 195 * usize::try_from(ROUNDS).unwrap()).then_some(())
    })
    .await;
    let lines = relay.lines();
    let again = lines
        .iter()
        .filter(|line| line.contains("the broker closed the channel"));
    assert!(again.count() <= 2, "one for each worker");
}
