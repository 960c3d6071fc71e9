//! The consumer runner: claim → handler → commit → ack, whatever happens around it.

mod bursts;
mod trouble;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use outbox::{
    consumer::{ConsumerOptions, Failure, Handler, Message, ReplayPolicy, Reply, run},
    inbox::{Inbox, MAX_RESULT, Operation, OperationError},
};
use test_support::{Mode, Proxy, eventually};
use tokio::task::JoinHandle;
use tokio_postgres::{NoTls, Transaction};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use crate::world::{SOON, World, short, world};

const QUEUE: &str = "payments";
const DEAD: &str = "payments.dead";

/// Adds one cent to the account that the body names; and does what the type says.
#[derive(Default)]
struct Payments {
    tried: Mutex<Vec<String>>,
    running: AtomicUsize,
    proxy: Option<Proxy>,
}

struct Shared(Arc<Payments>);

impl Handler for Shared {
    fn operation(&self, message: &Message) -> Result<Operation, OperationError> {
        match message.text_header("payment") {
            Some(business) => message.operation_as(&business),
            None => message.operation(),
        }
    }

    async fn handle(
        &self,
        message: &Message,
        transaction: &Transaction<'_>,
    ) -> Result<Reply, Failure> {
        let account = String::from_utf8_lossy(&message.body).into_owned();
        self.0.tried.lock().unwrap().push(account.clone());
        let sql = "INSERT INTO account AS a (id, cents) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET cents = a.cents + 1";
        transaction.execute(sql, &[&account]).await?;
        let tries = || {
            self.0
                .tried
                .lock()
                .unwrap()
                .iter()
                .filter(|t| **t == account)
                .count()
        };
        match message.type_() {
            "fails" => Err(Failure::Retry("always".to_owned())),
            "fails_until_other" if !self.0.tried.lock().unwrap().contains(&"other".to_owned()) => {
                Err(Failure::Retry("the other one first".to_owned()))
            }
            "fails_twice" if tries() <= 2 => Err(Failure::Retry("not yet".to_owned())),
            "wrong" => Err(Failure::Reject("no such order".to_owned())),
            "doubt" => Err(Failure::InDoubt("the provider did not answer".to_owned())),
            "slow" => {
                self.0.running.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(700)).await;
                Reply::json(&"slow")
            }
            "slow_then_writes" => {
                tokio::time::sleep(Duration::from_millis(700)).await;
                transaction.execute(sql, &[&account]).await?;
                Ok(Reply::none())
            }
            "hangs_once" if tries() == 1 => std::future::pending().await,
            "hangs" => std::future::pending().await,
            "panics_once" if tries() == 1 => panic!("a handler's bug"),
            "panics" => panic!("a handler's bug"),
            // The effect is committed, and its acknowledgement lost.
            "cut" if tries() == 1 => {
                if let Some(proxy) = &self.0.proxy {
                    proxy.set(Mode::Stall);
                }
                Ok(Reply::none())
            }
            "returns_too_much" => Reply::json(&"x".repeat(MAX_RESULT)),
            "ignores_an_error" => {
                let _ = transaction.execute("SELECT 1 / 0", &[]).await;
                Ok(Reply::none())
            }
            _ => Reply::json(&"paid"),
        }
    }
}

struct Running {
    payments: Arc<Payments>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task)
            .await
            .expect("it ends")
            .unwrap();
    }
}

fn start(world: &World, payments: Payments, change: impl FnOnce(&mut ConsumerOptions)) -> Running {
    let url = match &payments.proxy {
        Some(proxy) => world.broker_url().replace(
            &format!(":{}/", world.rabbitmq().port()),
            &format!(":{}/", proxy.port()),
        ),
        None => world.broker_url(),
    };
    let database = world
        .postgres()
        .url_for("payments", "payments", &world.database);
    let mut options = ConsumerOptions {
        declare: true,
        max_attempts: 4,
        backoff_initial: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        ..ConsumerOptions::new(QUEUE)
    };
    change(&mut options);
    let payments = Arc::new(payments);
    let handler = Shared(Arc::clone(&payments));
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move {
        let connect = move || {
            let database = database.clone();
            async move {
                let (client, connection) = tokio_postgres::connect(&database, NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        };
        let inbox = Inbox::new("payments").unwrap();
        run(&url, connect, inbox, options, handler, token)
            .await
            .unwrap();
    });
    Running {
        payments,
        stop,
        task,
    }
}

/// A message, as a relay or anybody else publishes it.
struct Sent<'a> {
    id: Option<&'a str>,
    type_: &'a str,
    account: &'a str,
    key: Option<&'a str>,
    headers: &'a [(&'a str, AMQPValue)],
}

const PLAIN: Sent<'static> = Sent {
    id: None,
    type_: "pays",
    account: "",
    key: None,
    headers: &[],
};

async fn send(world: &World, sent: &Sent<'_>) {
    let mut headers = FieldTable::default();
    if let Some(key) = sent.key {
        headers.insert("outbox-key".into(), AMQPValue::LongString(key.into()));
    }
    for (name, value) in sent.headers {
        headers.insert(short(name), value.clone());
    }
    let mut properties = BasicProperties::default()
        .with_type(short(sent.type_))
        .with_content_type("text/plain".into())
        .with_headers(headers);
    if let Some(id) = sent.id {
        properties = properties.with_message_id(short(id));
    }
    let channel = world.channel().await;
    eventually("the queue", SOON, async || {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let body = sent.account.as_bytes();
        let confirm = channel
            .basic_publish(short(""), short(QUEUE), options, body, properties.clone())
            .await
            .unwrap();
        matches!(confirm.await.unwrap(), lapin::Confirmation::Ack(None)).then_some(())
    })
    .await;
}

async fn cents(world: &World) -> HashMap<String, i64> {
    let rows = world
        .client
        .query("SELECT id, cents FROM account", &[])
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until_paid(world: &World, account: &str) {
    eventually("the payment", SOON, async || {
        cents(world).await.contains_key(account).then_some(())
    })
    .await;
}

/// Everything was acknowledged.
async fn until_empty(world: &World) {
    until_holds(world, QUEUE, 0).await;
}

/// Messages that are not acknowledged. It asks the queue's own state machine: what `list_queues` says of a quorum queue
/// is up to five seconds old.
async fn until_holds(world: &World, queue: &str, messages: usize) {
    let total = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>)), \
         {{ok, N, _}} = ra:consistent_query(amqqueue:get_pid(Q), {{rabbit_fifo, query_messages_total, []}}), N.",
        world.vhost
    );
    eventually("a queue of that length", SOON, async || {
        let total = world.rabbitmq().ctl(&["eval", &total]).await.ok()?;
        (total.trim() == messages.to_string()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_comes_five_times_to_two_consumers_is_applied_once() {
    let world = world().await;
    let (one, two) = (
        start(&world, Payments::default(), |_| ()),
        start(&world, Payments::default(), |options| {
            // As behind a pooler.
            options.prepared_statements = false;
        }),
    );
    for n in 0..20 {
        let (id, account) = (format!("m{n}"), format!("a{n}"));
        for _ in 0..5 {
            send(
                &world,
                &Sent {
                    id: Some(&id),
                    account: &account,
                    ..PLAIN
                },
            )
            .await;
        }
    }
    until_empty(&world).await;
    let cents = cents(&world).await;
    assert_eq!(cents.len(), 20);
    assert!(cents.values().all(|cents| *cents == 1), "{cents:?}");
    one.stopped().await;
    two.stopped().await;
}

#[tokio::test]
async fn one_business_fact_under_two_message_ids_is_applied_once() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let headers = [("payment", AMQPValue::LongString("pay_123".into()))];
    for id in ["m1", "m2"] {
        send(
            &world,
            &Sent {
                id: Some(id),
                account: "a",
                headers: &headers,
                ..PLAIN
            },
        )
        .await;
    }
    until_empty(&world).await;
    assert_eq!(cents(&world).await["a"], 1);
    running.stopped().await;
}

#[tokio::test]
async fn an_effect_whose_acknowledgement_was_lost_happens_once() {
    let world = world().await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.rabbitmq().port()).into())
        .await
        .unwrap();
    let running = start(
        &world,
        Payments {
            proxy: Some(proxy),
            ..Payments::default()
        },
        |_| (),
    );
    send(
        &world,
        &Sent {
            id: Some("m1"),
            type_: "cut",
            account: "a",
            ..PLAIN
        },
    )
    .await;
    until_paid(&world, "a").await;
    let proxy = running.payments.proxy.as_ref().unwrap();
    proxy.set(Mode::Cut);
    eventually("the connections to be cut", SOON, async || {
        (proxy.connections() == 0).then_some(())
    })
    .await;
    proxy.set(Mode::Forward);
    until_empty(&world).await;
    assert_eq!(cents(&world).await["a"], 1);
    assert_eq!(world.count("inbox.message").await, 1);
    running.stopped().await;
}

#[tokio::test]
async fn a_handler_that_fails_is_tried_again_with_nothing_left_behind() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    send(
        &world,
        &Sent {
            id: Some("m1"),
            type_: "fails_twice",
            account: "a",
            ..PLAIN
        },
    )
    .await;
    until_empty(&world).await;
    assert_eq!(
        cents(&world).await["a"],
        1,
        "each failed attempt was rolled back"
    );
    assert_eq!(running.payments.tried.lock().unwrap().len(), 3);
    assert_eq!(
        world.count("inbox.attempt").await,
        0,
        "applied in the end: forgiven"
    );
    running.stopped().await;
}

#[tokio::test]
async fn what_cannot_be_applied_is_dead_lettered_with_reason_attempts_and_error() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let send = |id: Option<&'static str>, type_: &'static str, account: &'static str| {
        let world = &world;
        async move {
            send(
                world,
                &Sent {
                    id,
                    type_,
                    account,
                    ..PLAIN
                },
            )
            .await
        }
    };
    send(Some("m0"), "pays", "known").await;
    until_paid(&world, "known").await;
    send(Some("m0"), "pays", "another body").await;
    send(Some("m1"), "fails", "a").await;
    send(Some("m2"), "wrong", "b").await;
    send(Some("m3"), "doubt", "c").await;
    send(None, "pays", "d").await;
    let consumer = world.consume(DEAD).await;
    let seen = consumer.until(5).await;
    let of = |account: &str| seen.iter().find(|m| m.body == account.as_bytes()).unwrap();
    for (account, reason, attempts) in [
        ("another body", "conflict", 0),
        ("a", "attempts_exhausted", 4),
        ("b", "rejected", 0),
        ("c", "in_doubt", 0),
        ("d", "message_id_invalid", 0),
    ] {
        let dead = of(account);
        assert_eq!(
            dead.text_header("outbox-dead-reason").as_deref(),
            Some(reason),
            "{account}"
        );
        assert_eq!(
            dead.header("outbox-dead-attempts"),
            Some(AMQPValue::LongLongInt(attempts)),
            "{account}"
        );
        assert!(!dead.text_header("outbox-dead-error").unwrap().is_empty());
    }
    assert_eq!(
        of("b").text_header("outbox-dead-error").as_deref(),
        Some("no such order")
    );
    assert_eq!(of("a").message_id, "m1");
    until_empty(&world).await;
    assert_eq!(
        cents(&world).await.len(),
        1,
        "none of them left anything behind"
    );
    running.stopped().await;
}

/// A time to live, a sender and copies are the original's: on its dead letter they would lose it, close the channel, or
/// give it to others once more.
#[tokio::test]
async fn a_dead_letter_does_not_expire_and_goes_nowhere_else() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    // The runner has declared its queues.
    let first = Sent {
        id: Some("m0"),
        account: "known",
        ..PLAIN
    };
    send(&world, &first).await;
    until_paid(&world, "known").await;
    let user = format!("producer-{}", world.vhost);
    for args in [
        &["add_user", &user, "p"][..],
        &[
            "set_permissions",
            "-p",
            &world.vhost,
            &user,
            ".*",
            ".*",
            ".*",
        ],
    ] {
        world.rabbitmq().ctl(args).await.unwrap();
    }
    let url = world.rabbitmq().url_for(&user, "p", &world.vhost);
    let producer = Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap();
    let producer = producer.create_channel().await.unwrap();
    producer
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let copies = || {
        let (options, none) = (QueueDeclareOptions::default(), FieldTable::default());
        producer.queue_declare(short("copies"), options, none)
    };
    copies().await.unwrap();
    let mut headers = FieldTable::default();
    let cc = AMQPValue::LongString("copies".into());
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![cc].into()));
    let properties = BasicProperties::default()
        .with_type("wrong".into())
        .with_message_id("m1".into())
        .with_expiration("60000".into())
        .with_user_id(short(&user))
        .with_headers(headers);
    let options = BasicPublishOptions::default();
    let confirm = producer.basic_publish(short(""), short(QUEUE), options, b"a", properties);
    confirm.await.unwrap().await.unwrap();
    let consumer = world.consume(DEAD).await;
    let dead = &consumer.until(1).await[0];
    assert_eq!(
        dead.text_header("outbox-dead-reason").as_deref(),
        Some("rejected")
    );
    assert_eq!(dead.properties.expiration(), &None);
    assert_eq!(dead.properties.user_id(), &None);
    until_empty(&world).await;
    assert_eq!(
        copies().await.unwrap().message_count(),
        1,
        "the original's copy, and no other"
    );
    running.stopped().await;
}

/// The head of a key waits for its retries: what is behind it waits too, and other keys go on.
#[tokio::test]
async fn a_key_keeps_its_order_behind_a_retry_and_holds_nobody_else_back() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.handlers = 1;
        options.max_attempts = 100_000;
    });
    send(
        &world,
        &Sent {
            id: Some("k1"),
            type_: "fails_until_other",
            account: "first",
            key: Some("k"),
            ..PLAIN
        },
    )
    .await;
    send(
        &world,
        &Sent {
            id: Some("k2"),
            account: "second",
            key: Some("k"),
            ..PLAIN
        },
    )
    .await;
    send(
        &world,
        &Sent {
            id: Some("o1"),
            account: "other",
            key: Some("o"),
            ..PLAIN
        },
    )
    .await;
    until_empty(&world).await;
    let tried = running.payments.tried.lock().unwrap().clone();
    assert!(tried.iter().filter(|t| *t == "first").count() > 1);
    assert_eq!(
        tried.last().map(String::as_str),
        Some("second"),
        "{tried:?}"
    );
    let other = tried.iter().position(|t| t == "other").unwrap();
    assert!(
        other < tried.iter().rposition(|t| t == "first").unwrap(),
        "it did not wait for the other key: {tried:?}"
    );
    running.stopped().await;
}

#[tokio::test]
async fn a_handler_that_hangs_or_panics_is_ended_and_the_message_tried_again() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.handler_timeout = Duration::from_millis(300)
    });
    send(
        &world,
        &Sent {
            id: Some("m1"),
            type_: "hangs_once",
            account: "a",
            ..PLAIN
        },
    )
    .await;
    send(
        &world,
        &Sent {
            id: Some("m2"),
            type_: "panics_once",
            account: "b",
            ..PLAIN
        },
    )
    .await;
    until_empty(&world).await;
    let cents = cents(&world).await;
    assert_eq!((cents["a"], cents["b"]), (1, 1));
    running.stopped().await;
}

#[tokio::test]
async fn a_handler_that_hangs_every_time_is_given_up_after_its_attempts() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.handler_timeout = Duration::from_millis(100);
        options.max_attempts = 3;
    });
    let hanging = Sent {
        id: Some("m1"),
        type_: "hangs",
        account: "a",
        ..PLAIN
    };
    send(&world, &hanging).await;
    let consumer = world.consume(DEAD).await;
    let dead = &consumer.until(1).await[0];
    assert_eq!(
        dead.text_header("outbox-dead-reason").as_deref(),
        Some("attempts_exhausted")
    );
    assert_eq!(
        dead.header("outbox-dead-attempts"),
        Some(AMQPValue::LongLongInt(3))
    );
    until_empty(&world).await;
    assert_eq!(running.payments.tried.lock().unwrap().len(), 3);
    running.stopped().await;
}

/// Handlers that give up at the same time do not take each other's confirms for their own.
#[tokio::test]
async fn many_dead_letters_at_once_all_arrive() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| options.handlers = 8);
    for n in 0..200 {
        let id = format!("m{n}");
        let wrong = Sent {
            id: Some(&id),
            type_: "wrong",
            account: &id,
            ..PLAIN
        };
        send(&world, &wrong).await;
    }
    until_empty(&world).await;
    running.stopped().await;
    let consumer = world.consume(DEAD).await;
    let seen = consumer.until(200).await;
    let distinct: HashSet<_> = seen.iter().map(|m| m.message_id.clone()).collect();
    assert_eq!((seen.len(), distinct.len()), (200, 200));
}

#[tokio::test]
async fn every_metric_of_the_inbox_moves() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // The runtime of a test has one thread: everything it runs is counted here, and nothing else.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let begun = Operation::new("doubtful", "t", "c", b"").unwrap();
    Inbox::new("payments")
        .unwrap()
        .begin_effect(&world.client, &begun)
        .await
        .unwrap();
    let running = start(&world, Payments::default(), |options| {
        options.replay = ReplayPolicy::Skip;
        options.handler_timeout = Duration::from_millis(300);
    });
    let replay = [("outbox-replay", AMQPValue::Boolean(true))];
    let message = |id, type_, account| Sent {
        id: Some(id),
        type_,
        account,
        ..PLAIN
    };
    send(&world, &message("m1", "pays", "a")).await;
    send(&world, &message("m1", "pays", "a")).await;
    send(&world, &message("m1", "pays", "another body")).await;
    send(&world, &message("m2", "fails_twice", "b")).await;
    send(&world, &message("m3", "hangs_once", "c")).await;
    let replayed = Sent {
        headers: &replay,
        ..message("m4", "pays", "d")
    };
    send(&world, &replayed).await;
    until_empty(&world).await;
    let metrics = metrics.render();
    let value = |series: &str| {
        reading(&metrics, series).unwrap_or_else(|| panic!("{series} is missing in\n{metrics}"))
    };
    let outcome = |outcome: &str| {
        value(&format!(
            r#"inbox_messages_total{{consumer="payments",outcome="{outcome}"}}"#
        ))
    };
    assert_eq!(outcome("first"), 3.0);
    assert_eq!(outcome("duplicate"), 1.0);
    assert_eq!(outcome("conflict"), 1.0);
    assert_eq!(outcome("replay_skipped"), 1.0);
    assert_eq!(value("inbox_conflicts_total"), 1.0);
    let retries = |reason| {
        value(&format!(
            r#"inbox_retries_total{{consumer="payments",reason="{reason}"}}"#
        ))
    };
    assert_eq!(retries("failed"), 2.0);
    assert_eq!(retries("timed_out"), 1.0);
    let dead = r#"inbox_dead_lettered_total{consumer="payments",reason="conflict"}"#;
    assert_eq!(value(dead), 1.0);
    assert_eq!(value("inbox_in_doubt"), 1.0);
    assert!(value("inbox_oldest_in_doubt_age_seconds") > 0.0);
    assert_eq!(value("inbox_handler_timeout_seconds"), 0.3);
    // What has not happened yet is 0 and not absent: an alert on the first one needs a 0 before it.
    assert_eq!(value("inbox_lost_acknowledgements_total"), 0.0);
    let none = r#"inbox_dead_lettered_total{consumer="payments",reason="rejected"}"#;
    assert_eq!(value(none), 0.0);
    assert_eq!(
        value("inbox_handler_seconds_count"),
        6.0,
        "three that applied, two that failed, one that hung"
    );
    running.stopped().await;
}

/// The runner keeps its own inbox alone; one for external effects is kept by whoever asks for it.
#[tokio::test]
async fn an_inbox_of_external_effects_is_measured_and_pruned() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let effects = Inbox::new("at the provider").unwrap();
    for key in ["charged", "doubtful"] {
        let begun = Operation::new(key, "t", "c", b"").unwrap();
        effects.begin_effect(&world.client, &begun).await.unwrap();
    }
    let recorded = effects.record_effect(&world.client, "charged", &"yes");
    recorded.await.unwrap();
    let older = "UPDATE inbox.message \
                 SET claimed_at = claimed_at - interval '1 h', recorded_at = recorded_at - interval '1 h'";
    world.client.batch_execute(older).await.unwrap();
    let database = world
        .postgres()
        .url_for("payments", "payments", &world.database);
    let kept = tokio::spawn(async move {
        let connect = async || {
            let (client, connection) = tokio_postgres::connect(&database, NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, tokio_postgres::Error>(client)
        };
        let hour = Duration::from_secs(3600);
        effects.forget_expired(hour, connect, |c| c).await;
    });
    eventually("the charge to be forgotten", SOON, async || {
        let left = world.count("inbox.message").await;
        (left == 1).then_some(())
    })
    .await;
    kept.abort();
    assert_eq!(world.count("inbox.in_doubt").await, 1);
    let doubts = r#"inbox_in_doubt{consumer="at the provider"}"#;
    assert_eq!(reading(&metrics.render(), doubts), Some(1.0));
}

/// What Prometheus reads in a series, unless it is absent.
fn reading(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// An inbox that cannot be asked must not look like one without doubts and without retries.
#[tokio::test]
async fn a_database_that_is_away_is_counted_and_is_no_reading_of_zero() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = world().await;
    let stop = CancellationToken::new();
    let options = ConsumerOptions {
        declare: true,
        ..ConsumerOptions::new(QUEUE)
    };
    let url = world.broker_url();
    let token = stop.clone();
    let task = tokio::spawn(async move {
        // Nobody listens there.
        let connect = async || {
            let (client, _) = tokio_postgres::connect("host=127.0.0.1 port=1", NoTls).await?;
            Ok(client)
        };
        let handler = Shared(Arc::new(Payments::default()));
        let inbox = Inbox::new("payments").unwrap();
        run(&url, connect, inbox, options, handler, token)
            .await
            .unwrap();
    });
    let message = Sent {
        id: Some("m1"),
        ..PLAIN
    };
    send(&world, &message).await;
    let retries = r#"inbox_retries_total{consumer="payments",reason="database"}"#;
    eventually("a retry", SOON, async || {
        (reading(&metrics.render(), retries)? > 0.0).then_some(())
    })
    .await;
    let metrics = metrics.render();
    for series in ["inbox_in_doubt", "inbox_oldest_in_doubt_age_seconds"] {
        let value = reading(&metrics, series).expect(series);
        assert!(value.is_nan(), "{series} is {value}");
    }
    stop.cancel();
    tokio::time::timeout(SOON, task)
        .await
        .expect("it ends")
        .unwrap();
}

/// What the producer's trace began, the consumer's span goes on with.
#[tokio::test]
async fn a_consumer_s_span_continues_the_producer_s_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    // While there is but one subscriber, a span is judged by the thread that comes to it first, for all of them; and a
    // test beside this one has none. Of two, both are asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing_subscriber::registry().with(layer).set_default();
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", AMQPValue::LongString(parent.into()))];
    let traced = Sent {
        id: Some("m1"),
        account: "a",
        headers: &headers,
        ..PLAIN
    };
    send(&world, &traced).await;
    let span = eventually("the span", SOON, async || {
        let spans = exporter.get_finished_spans().unwrap();
        spans.into_iter().find(|span| span.name == "consume")
    })
    .await;
    let trace = span.span_context.trace_id().to_string();
    assert_eq!(trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
    running.stopped().await;
}

#[tokio::test]
async fn replays_are_skipped_by_a_consumer_that_says_so_and_applied_by_one_that_lost_them() {
    let world = world().await;
    let replay = [("outbox-replay", AMQPValue::Boolean(true))];
    let running = start(&world, Payments::default(), |options| {
        options.replay = ReplayPolicy::Skip
    });
    send(
        &world,
        &Sent {
            id: Some("m1"),
            account: "a",
            headers: &replay,
            ..PLAIN
        },
    )
    .await;
    until_empty(&world).await;
    assert_eq!(cents(&world).await.len(), 0);
    running.stopped().await;
    let running = start(&world, Payments::default(), |_| ());
    send(
        &world,
        &Sent {
            id: Some("m1"),
            account: "a",
            headers: &replay,
            ..PLAIN
        },
    )
    .await;
    until_paid(&world, "a").await;
    running.stopped().await;
}

#[tokio::test]
async fn a_stop_lets_the_running_handler_finish_and_leaves_the_rest_in_the_queue() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| options.handlers = 1);
    for n in 0..5 {
        let id = format!("m{n}");
        send(
            &world,
            &Sent {
                id: Some(&id),
                type_: "slow",
                account: &id,
                ..PLAIN
            },
        )
        .await;
    }
    let payments = Arc::clone(&running.payments);
    eventually("the first handler", SOON, async || {
        (payments.running.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    running.stopped().await;
    let done = cents(&world).await.len();
    assert!((1..5).contains(&done), "{done} were applied");
    assert_eq!(
        payments.running.load(Ordering::SeqCst),
        done,
        "what was begun was finished"
    );
    let running = start(&world, Payments::default(), |_| ());
    until_empty(&world).await;
    let cents = cents(&world).await;
    assert!(
        cents.len() == 5 && cents.values().all(|cents| *cents == 1),
        "{cents:?}"
    );
    running.stopped().await;
}

/// From the producer's row to the consumer's, through a relay, with every message doubled by a replay.
#[tokio::test]
async fn from_outbox_to_inbox_each_event_is_applied_once() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let _relay = world.relay(&[("OUTBOXD__BROKER__DECLARE", "true")]);
    eventually("the queue to be bound", SOON, async || {
        let (binding, none) = (Default::default(), Default::default());
        let channel = world.channel().await;
        channel
            .queue_bind(short(QUEUE), short("events"), short("#"), binding, none)
            .await
            .ok()
    })
    .await;
    world.commit_many(200, 20).await;
    world.drained().await;
    let replay = world
        .outboxd(
            &[
                "replay",
                "--aggregate-type",
                "order",
                "--rate",
                "1000000",
                "--why",
                "test",
            ],
            &[],
        )
        .await;
    assert_eq!(replay.code, 0, "{}", replay.stderr);
    world.drained().await;
    until_empty(&world).await;
    assert_eq!(world.count("inbox.message").await, 200);
    let total: i64 = cents(&world).await.values().sum();
    assert_eq!(total, 200);
    running.stopped().await;
}
