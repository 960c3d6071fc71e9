//! Each operation is applied once and in order, whatever happens to its message.

use super::*;

#[tokio::test]
async fn a_message_that_comes_five_times_to_two_consumers_is_applied_once() {
    let world = world().await;
    let (one, two) = (
        start(&world, Payments::default(), |_| ()),
        start(&world, Payments::default(), |options| {
            // The settings for a pooler.
            options.prepared_statements = false;
        }),
    );
    for n in 0..20 {
        let (id, account) = (format!("m{n}"), format!("a{n}"));
        for _ in 0..5 {
            pays(&id, &account).to(&world).await;
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
        pays(id, "a").with(&headers).to(&world).await;
    }
    until_empty(&world).await;
    assert_eq!(cents(&world).await["a"], 1);
    running.stopped().await;
}

#[tokio::test]
async fn an_effect_whose_acknowledgement_was_lost_happens_once() {
    let world = world().await;
    let (proxy, _) = Proxy::before(&world.broker_url()).await.unwrap();
    let running = start(
        &world,
        Payments {
            proxy: Some(proxy),
            ..Payments::default()
        },
        |_| (),
    );
    pays("m1", "a").of("cut").to(&world).await;
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
    pays("m1", "a").of("fails_twice").to(&world).await;
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
    pays("m0", "known").to(&world).await;
    until_paid(&world, "known").await;
    pays("m0", "another body").to(&world).await;
    pays("m1", "a").of("fails").to(&world).await;
    pays("m2", "b").of("wrong").to(&world).await;
    pays("m3", "c").of("doubt").to(&world).await;
    let anonymous = Sent {
        id: None,
        ..pays("", "d")
    };
    anonymous.to(&world).await;
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
        assert_dead(dead, reason, attempts);
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

/// A dead letter must not carry the original's time to live (it would expire), its sender (the broker would close the channel) or
/// its copies (other queues would get it again).
#[tokio::test]
async fn a_dead_letter_does_not_expire_and_goes_nowhere_else() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    // The runner has declared its queues.
    pays("m0", "known").to(&world).await;
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
    let producer = amqp::channel(&url).await.unwrap();
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

/// The head of a key waits for its retry: the later messages of the key wait too, and other keys go on.
#[tokio::test]
async fn a_key_keeps_its_order_behind_a_retry_and_holds_nobody_else_back() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| {
        options.handlers = 1;
        options.max_attempts = 100_000;
    });
    pays("k1", "first")
        .of("fails_until_other")
        .key("k")
        .to(&world)
        .await;
    pays("k2", "second").key("k").to(&world).await;
    pays("o1", "other").key("o").to(&world).await;
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
        options.handler_timeout = UNHURRIED;
    });
    pays("m1", "a").of("hangs_once").to(&world).await;
    pays("m2", "b").of("panics_once").to(&world).await;
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
    pays("m1", "a").of("hangs").to(&world).await;
    let consumer = world.consume(DEAD).await;
    assert_dead(&consumer.until(1).await[0], "attempts_exhausted", 3);
    until_empty(&world).await;
    assert_eq!(running.payments.tried.lock().unwrap().len(), 3);
    running.stopped().await;
}

/// Handlers that give up at the same time do not get each other's confirms.
#[tokio::test]
async fn many_dead_letters_at_once_all_arrive() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| options.handlers = 8);
    for n in 0..200 {
        let id = format!("m{n}");
        pays(&id, &id).of("wrong").to(&world).await;
    }
    until_empty(&world).await;
    running.stopped().await;
    let consumer = world.consume(DEAD).await;
    let seen = consumer.until(200).await;
    let distinct: HashSet<_> = seen.iter().map(|m| m.message_id.clone()).collect();
    assert_eq!((seen.len(), distinct.len()), (200, 200));
}

#[tokio::test]
async fn replays_are_skipped_by_a_consumer_that_says_so_and_applied_by_one_that_lost_them() {
    let world = world().await;
    let replay = [("outbox-replay", AMQPValue::Boolean(true))];
    let running = start(&world, Payments::default(), |options| {
        options.replay = ReplayPolicy::Skip
    });
    pays("m1", "a").with(&replay).to(&world).await;
    until_empty(&world).await;
    assert_eq!(cents(&world).await.len(), 0);
    running.stopped().await;
    let running = start(&world, Payments::default(), |_| ());
    pays("m1", "a").with(&replay).to(&world).await;
    until_paid(&world, "a").await;
    running.stopped().await;
}

#[tokio::test]
async fn a_stop_lets_the_running_handler_finish_and_leaves_the_rest_in_the_queue() {
    let world = world().await;
    let running = start(&world, Payments::default(), |options| options.handlers = 1);
    for n in 0..5 {
        let id = format!("m{n}");
        pays(&id, &id).of("slow").to(&world).await;
    }
    let payments = Arc::clone(&running.payments);
    eventually("the first handler", SOON, async || {
        (payments.running.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    running.stop.cancel();
    payments.go();
    running.stopped().await;
    let done = cents(&world).await.len();
    assert!((1..5).contains(&done), "{done} were applied");
    assert_eq!(
        payments.running.load(Ordering::SeqCst),
        done,
        "what was begun was finished"
    );
    let running = start(&world, Payments::default(), |_| ());
    running.payments.go();
    until_empty(&world).await;
    let cents = cents(&world).await;
    assert!(
        cents.len() == 5 && cents.values().all(|cents| *cents == 1),
        "{cents:?}"
    );
    running.stopped().await;
}

/// The whole way from the producer's row to the consumer's row, through a relay, with every message doubled by a replay.
#[tokio::test]
async fn from_outbox_to_inbox_each_event_is_applied_once() {
    let world = world().await;
    let running = start(&world, Payments::default(), |_| ());
    let _relay = world.relay(&[("OUTBOXD__BROKER__DECLARE", "true")]);
    eventually("the queue to be bound", SOON, async || {
        let channel = world.channel().await;
        amqp::bind_key(&channel, "events", QUEUE, "#").await.ok()
    })
    .await;
    world.commit_many(200, 20).await;
    world.drained().await;
    world
        .ok("replay --aggregate-type order --rate 1000000 --why test")
        .await;
    world.drained().await;
    until_empty(&world).await;
    assert_eq!(world.count("inbox.message").await, 200);
    let total: i64 = cents(&world).await.values().sum();
    assert_eq!(total, 200);
    running.stopped().await;
}
