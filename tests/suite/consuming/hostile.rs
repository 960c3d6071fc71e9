//! A hostile publisher: messages that nobody can read, or that no relay would write, end in the dead-letter queue, and the work on
//! other messages goes on.

use test_support::raw::{HEADERS, MESSAGE_ID, Publisher, TYPE, long, nested, short as text};

use super::{trouble::Failures, *};

/// Consumes an existing queue with messages, and pays for the good ones.
async fn declared(world: &World) {
    let running = start(world, Payments::default(), |_| ());
    until_holds(world, QUEUE, 0).await;
    until_holds(world, DEAD, 0).await;
    running.stopped().await;
}

async fn good(world: &World, n: usize) {
    let account = format!("good{n}");
    pays(&account, &account).to(world).await;
}

/// Every good message is paid once, each bad message is a dead letter with its reason, and no connection was lost.
async fn assert_survived(
    world: &World,
    failures: &Failures,
    good: usize,
    bad: &[(&str, &str)],
) -> Vec<Seen> {
    until_empty(world).await;
    until_holds(world, DEAD, bad.len()).await;
    let expected = (0..good).map(|n| (format!("good{n}"), 1)).collect();
    assert_eq!(cents(world).await, expected);
    let dead = world.consume(DEAD).await.until(bad.len()).await;
    for (body, reason) in bad {
        let letter = dead.iter().find(|m| m.body == body.as_bytes());
        let letter = letter.unwrap_or_else(|| panic!("{body} is no dead letter"));
        let said = letter.text_header("outbox-dead-reason");
        assert_eq!(said.as_deref(), Some(*reason), "{body}");
        // The error may be missing if there was no room for it.
        let why = letter.text_header("outbox-dead-error");
        let cut = letter.header("outbox-dead-removed").is_some();
        assert_eq!(why.is_some_and(|why| !why.is_empty()), !cut, "{body}");
    }
    assert!(failures.none(), "a connection was lost");
    dead
}

/// Without the guard, lapin's parser would overflow its stack and end the process, or end the connection again and again.
#[tokio::test]
async fn what_cannot_be_parsed_is_dead_lettered_and_ends_neither_process_nor_connection() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    declared(&world).await;
    let port = world.rabbitmq().port();
    let mut publisher = Publisher::connect(port, &world.vhost).await.unwrap();
    let pays = [text("id"), text("pays")].concat();
    let with = |headers: &[u8]| [long(headers), pays.clone()].concat();
    let all = HEADERS | MESSAGE_ID | TYPE;
    let mut bad: Vec<(&str, u16, Vec<u8>)> = vec![
        ("nested 500", all, with(&nested(500))),
        ("nested 20,000", all, with(&nested(20_000))),
        ("a header's name", all, with(b"\x02\xff\xfet\x01")),
        ("a name inside", all, with(b"\x01aF\0\0\0\x04\x01\xfft\x01")),
        (
            "the type",
            MESSAGE_ID | TYPE,
            b"\x02id\x02\xff\xfe".to_vec(),
        ),
        (
            "the id",
            MESSAGE_ID | TYPE,
            b"\x02\xff\xfe\x04pays".to_vec(),
        ),
    ];
    let marker = [text("outbox-headers-removed"), b"t\x01".to_vec()].concat();
    bad.push(("a forged marker", all, with(&marker)));
    for (n, (body, flags, properties)) in bad.iter().enumerate() {
        good(&world, n).await;
        publisher
            .publish(QUEUE, *flags, properties, body.as_bytes())
            .await
            .unwrap();
    }
    publisher.done().await.unwrap();
    good(&world, bad.len()).await;
    let running = start(&world, Payments::default(), |_| ());
    let expected: Vec<_> = bad
        .iter()
        .map(|(body, ..)| (*body, "headers_unreadable"))
        .collect();
    assert_survived(&world, &failures, bad.len() + 1, &expected).await;
    running.stopped().await;
}

/// A header that, beside the properties that [`Sent::to`] sets, fills the frame to its last byte.
fn filling(id: &str, type_: &str) -> AMQPValue {
    let frame = 8 + 14;
    let mode = 1;
    let properties = 1 + "text/plain".len() + mode + 1 + id.len() + 1 + type_.len();
    let table = 4 + 1 + "large".len() + 1 + 4;
    AMQPValue::LongString("x".repeat(131_072 - frame - properties - table).into())
}

#[tokio::test]
async fn a_dead_letter_whose_headers_fill_a_frame_is_cut_to_fit_and_says_so() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    declared(&world).await;
    good(&world, 0).await;
    let large = [("large", filling("m1", "wrong"))];
    pays("m1", "full").of("wrong").with(&large).to(&world).await;
    good(&world, 1).await;
    let running = start(&world, Payments::default(), |_| ());
    let dead = assert_survived(&world, &failures, 2, &[("full", "rejected")]).await;
    running.stopped().await;
    let letter = &dead[0];
    assert_eq!(letter.message_id, "m1");
    let removed = letter.text_header("outbox-dead-removed");
    assert_eq!(removed.as_deref(), Some("1: large"));
}

/// RabbitMQ adds a header with a count, and so sends a frame that is larger than the agreed size.
#[tokio::test]
async fn headers_that_outgrow_the_frame_when_they_come_again_are_no_fault_of_the_message() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    declared(&world).await;
    let large = [("large", filling("m1", "panics_once"))];
    pays("m1", "full")
        .of("panics_once")
        .with(&large)
        .to(&world)
        .await;
    let running = start(&world, Payments::default(), |_| ());
    until_paid(&world, "full").await;
    until_empty(&world).await;
    failures.until(&[1]).await;
    running.stopped().await;
    until_holds(&world, DEAD, 0).await;
    failures.until(&[1]).await;
}

/// A relay header of another type would get around the order, the stale guard, or the replay policy.
#[tokio::test]
async fn headers_of_a_relay_that_no_relay_wrote_are_dead_lettered() {
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let (failures, _guard) = Failures::seen();
    let world = world().await;
    declared(&world).await;
    let string = |text: &str| AMQPValue::LongString(text.into());
    let bytes = AMQPValue::LongString(vec![0xff, 0xfe].into());
    let forged = [
        ("outbox-position", string("7")),
        ("outbox-position", AMQPValue::LongLongInt(0)),
        ("outbox-position", AMQPValue::LongLongInt(i64::MIN)),
        ("outbox-position", AMQPValue::Double(1e300)),
        ("outbox-key", AMQPValue::LongLongInt(7)),
        ("outbox-key", bytes),
        ("outbox-replay", string("true")),
        ("outbox-replay", AMQPValue::LongLongInt(1)),
    ];
    let mut bad = Vec::new();
    for (n, header) in forged.iter().enumerate() {
        let id = format!("forged{n}");
        pays(&id, &id)
            .with(std::slice::from_ref(header))
            .to(&world)
            .await;
        good(&world, n).await;
        bad.push(id);
    }
    // What a dead letter says of itself is the runner's.
    let says = [
        "outbox-dead-reason",
        "outbox-dead-error",
        "outbox-dead-removed",
    ];
    let says = says.map(|name| (name, string("forged")));
    pays("says", "says")
        .of("wrong")
        .with(&says)
        .to(&world)
        .await;
    // Headers that the runner does not read may have any value, and so may the broker's own history of a message.
    for (n, (name, value)) in [
        ("x-death", string("many")),
        ("x-death", AMQPValue::LongLongInt(i64::MAX)),
        ("x-delivery-count", AMQPValue::LongLongInt(i64::MAX)),
        ("outbox-dead-removed", string("x")),
        ("outbox-position", AMQPValue::LongLongInt(i64::MAX)),
    ]
    .into_iter()
    .enumerate()
    {
        let (id, header) = (format!("good{}", forged.len() + n), [(name, value)]);
        pays(&id, &id).with(&header).to(&world).await;
    }
    let running = start(&world, Payments::default(), |options| {
        options.replay = ReplayPolicy::Skip;
    });
    let bad: Vec<_> = bad
        .iter()
        .map(|id| (id.as_str(), "headers_invalid"))
        .chain([("says", "rejected")])
        .collect();
    let dead = assert_survived(&world, &failures, forged.len() + 5, &bad).await;
    for letter in dead {
        let why = letter.text_header("outbox-dead-error").unwrap();
        assert!(!why.contains("forged"), "{why}");
    }
    running.stopped().await;
}
