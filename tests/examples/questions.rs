//! What every handler must answer, whatever it is written in.

use std::{collections::BTreeMap, net::SocketAddr};

use test_support::{Mode, Proxy, eventually};

use crate::{
    provider,
    world::{PLACED, SOON, Sent, World},
};

const MOVED: Sent<'static> = Sent {
    type_: "order_moved",
    ..PLACED
};
const REQUESTED: Sent<'static> = Sent {
    type_: "payment_requested",
    ..PLACED
};
const PAID: &str = "payment WHERE order_id <> 'end'";

/// Processed twice? Nothing is written the second time. Where is it stored, and under which unique constraint? In
/// `inbox.message`, whose primary key is the consumer and the key.
pub async fn a_message_that_comes_twice_is_applied_once(world: &World) {
    let consumer = world.consumer().await;
    let other = Sent { id: "m2", ..PLACED };
    world
        .send_all(&[PLACED, PLACED, other, PLACED, other])
        .await;
    world.finish([consumer]).await;
    assert_eq!(world.count(PAID).await, 2, "one for each id");
    world.no_dead_letter().await;
    let stored = "inbox.message WHERE consumer = 'payments' AND idempotency_key IN ('m1', 'm2') \
                  AND state = 'applied' AND result IS NOT NULL \
                  AND fingerprint = inbox.fingerprint('order_placed', 'application/json', convert_to('{\"order\":\"1042\",\"cents\":1999}', 'UTF8'))";
    assert_eq!(world.count(stored).await, 2);
    let again = "INSERT INTO inbox.message (consumer, idempotency_key, fingerprint, state) \
                 VALUES ('payments', 'm1', sha256(''), 'applied')";
    let error = world.client.execute(again, &[]).await.unwrap_err();
    assert_eq!(
        error.as_db_error().and_then(|e| e.constraint()),
        Some("message_pkey")
    );
}

/// Two consumers at once? The second waits for the first, and then finds its work done.
pub async fn two_consumers_at_once_apply_a_message_once(world: &World) {
    let consumers = [world.consumer().await, world.consumer().await];
    // The first stands before its write, inside its transaction; the second must then stand before its claim.
    let held = world.hold("payment").await;
    world.send_all(&[PLACED, PLACED]).await;
    world.until_blocked(2).await;
    held.release().await;
    world.until("the payment", PAID, 1).await;
    // And as it happens to come.
    let ids: Vec<String> = (0..100).map(|n| format!("race-{n}")).collect();
    let copies: Vec<Sent> = ids
        .iter()
        .flat_map(|id| [Sent { id, ..PLACED }; 4])
        .collect();
    world.send_all(&copies).await;
    world.until("all payments", PAID, 101).await;
    world.finish(consumers).await;
    assert_eq!(world.count(PAID).await, 101);
    world.no_dead_letter().await;
}

/// Database write done, acknowledgement lost? The message comes again, and is a duplicate. Nor is anything
/// acknowledged before the commit.
pub async fn killed_before_the_commit_nothing_is_lost_and_after_it_nothing_is_applied_twice(
    world: &World,
) {
    let mut first = world.consumer().await;
    let held = world.hold("payment").await;
    world.send(&PLACED).await;
    world.until_blocked(1).await;
    first.kill().await.unwrap();
    world.until_ready(1).await;
    held.release().await;
    // The backend of the killed one may still be about to find out that nobody listens.
    let backends =
        "pg_stat_activity WHERE usename = 'payments_service' AND datname = current_database()";
    world.until("the backend to end", backends, 0).await;
    assert_eq!(
        world.count(PAID).await,
        0,
        "its transaction was rolled back"
    );

    // This one commits while nothing that it says reaches the broker.
    let broker = SocketAddr::from(([127, 0, 0, 1], world.broker_port()));
    let held = world.hold("payment").await;
    let proxy = Proxy::start(broker).await.unwrap();
    let mut second = world.consumer_over(proxy.port()).await;
    world.until_blocked(1).await;
    proxy.set(Mode::Stall);
    held.release().await;
    world.until("the payment", PAID, 1).await;
    second.kill().await.unwrap();
    proxy.set(Mode::Cut);
    world.until_ready(1).await;

    let third = world.consumer().await;
    world.finish([third]).await;
    assert_eq!(world.count(PAID).await, 1);
    world.no_dead_letter().await;
}

/// Which key? The business key where there is one; the provider gets the same.
pub async fn an_external_effect_is_asked_for_once_under_the_key_of_the_message(world: &World) {
    let requested = Sent {
        payment: Some("pay_123"),
        ..REQUESTED
    };
    world.provider.set(provider::Mode::Hold);
    let consumers = [world.consumer().await, world.consumer().await];
    // Both stand before their claim: the provider is not asked, and will not be waited for, until the other one is there.
    let held = world.hold("inbox.message").await;
    world.send_all(&[requested, requested]).await;
    world.until_blocked(2).await;
    held.release().await;
    asked(world, 1).await;
    // The other copy waits for what this one is at; it is not in doubt yet.
    world.until_blocked(1).await;
    world.provider.set(provider::Mode::Answer);
    world.until("the charge", "charge", 1).await;
    world.send(&requested).await;
    world.finish(consumers).await;
    assert_eq!(world.provider.asked(), ["pay_123"]);
    assert_eq!(
        world
            .count("charge WHERE provider_id = 'charge of pay_123'")
            .await,
        1
    );
    assert_eq!(world.count("inbox.in_doubt").await, 0);
    world.no_dead_letter().await;
}

/// External call done, response lost? Visible as in doubt, and never asked for again on its own.
pub async fn a_lost_response_leaves_the_effect_in_doubt_until_somebody_settles_it(world: &World) {
    world.provider.set(provider::Mode::LoseTheResponse);
    let consumer = world.consumer().await;
    world.send(&REQUESTED).await;
    dead(world, "m1", "in_doubt").await;
    assert_eq!(world.provider.asked(), ["m1"]);
    let doubt = "inbox.in_doubt WHERE idempotency_key = 'm1'";
    assert_eq!(world.count(doubt).await, 1);
    // It is back, and whoever redrives blindly is told the same.
    world.provider.set(provider::Mode::Answer);
    world.send(&REQUESTED).await;
    dead(world, "m1", "in_doubt").await;
    // Somebody asked the provider.
    let settled = "SELECT inbox.record_effect(consumer, idempotency_key, '\"charged\"', 'application/json') \
                   FROM inbox.in_doubt";
    world.client.execute(settled, &[]).await.unwrap();
    world.send(&REQUESTED).await;
    world.finish([consumer]).await;
    assert_eq!(world.provider.asked(), ["m1"]);
    assert_eq!(world.count("inbox.in_doubt").await, 0);
    world.no_dead_letter().await;
}

/// The intent is committed before the call: who comes after a crash knows of it.
pub async fn killed_during_the_external_call_the_effect_is_in_doubt(world: &World) {
    world.provider.set(provider::Mode::Hold);
    let mut first = world.consumer().await;
    world.send(&REQUESTED).await;
    asked(world, 1).await;
    first.kill().await.unwrap();
    world.until_ready(1).await;
    world.provider.set(provider::Mode::Answer);
    let second = world.consumer().await;
    dead(world, "m1", "in_doubt").await;
    world.finish([second]).await;
    assert_eq!(world.provider.asked(), ["m1"]);
    assert_eq!(
        world
            .count("inbox.in_doubt WHERE idempotency_key = 'm1'")
            .await,
        1
    );
    assert_eq!(world.count("charge").await, 0);
}

/// Which key? `payment` when the message has it, else its id.
pub async fn one_business_fact_under_two_message_ids_is_applied_once(world: &World) {
    let consumer = world.consumer().await;
    let payment = Some("pay_1");
    let one = Sent {
        id: "a",
        payment,
        ..PLACED
    };
    let two = Sent {
        id: "b",
        payment,
        ..PLACED
    };
    world.send_all(&[one, two]).await;
    world.finish([consumer]).await;
    assert_eq!(world.count(PAID).await, 1);
    assert_eq!(
        world
            .count("inbox.message WHERE idempotency_key = 'pay_1'")
            .await,
        1
    );
    assert_eq!(
        world
            .count("inbox.message WHERE idempotency_key IN ('a', 'b')")
            .await,
        0
    );
    world.no_dead_letter().await;
}

/// Wrong order? The newest address alone counts.
pub async fn an_older_address_never_replaces_a_newer_one(world: &World) {
    let consumer = world.consumer().await;
    let moved = |id, position, body| Sent {
        id,
        position,
        body,
        ..MOVED
    };
    let newest = moved("m9", 9, r#"{"order":"1042","address":"9 Elm Street"}"#);
    let older = moved("m5", 5, r#"{"order":"1042","address":"5 Oak Street"}"#);
    let first = moved("m2", 2, r#"{"order":"1042","address":"2 Ash Street"}"#);
    world
        .send_all(&[first, newest, older, first, older, newest])
        .await;
    world.finish([consumer]).await;
    let address: String = world.value("SELECT address FROM address", &[]).await;
    assert_eq!(address, "9 Elm Street");
    let states: Vec<String> = world
        .value("SELECT array_agg(state::text ORDER BY idempotency_key) FROM inbox.message WHERE idempotency_key <> 'end'", &[])
        .await;
    assert_eq!(states, ["applied", "stale", "applied"], "m2, m5, m9");
    world.no_dead_letter().await;
}

pub async fn another_body_under_a_known_key_is_a_conflict(world: &World) {
    let consumer = world.consumer().await;
    let other = Sent {
        body: r#"{"order":"1042","cents":5}"#,
        ..PLACED
    };
    world.send_all(&[PLACED, other]).await;
    let headers = dead(world, "m1", "conflict").await;
    assert_eq!(headers["outbox-dead-attempts"], "0");
    assert_eq!(headers["outbox-key"], "orders", "its own headers stay");
    assert!(!headers["outbox-dead-error"].is_empty());
    world.finish([consumer]).await;
    assert_eq!(world.count("payment WHERE cents = 1999").await, 1);
    assert_eq!(world.count("payment WHERE cents = 5").await, 0);
}

pub async fn what_cannot_be_read_is_dead_lettered_with_its_reason(world: &World) {
    let consumer = world.consumer().await;
    let long = "k".repeat(300);
    let cases = [
        (
            Sent {
                id: "no-json",
                body: "{",
                ..PLACED
            },
            "rejected",
        ),
        (
            Sent {
                id: "no-object",
                body: "[]",
                ..PLACED
            },
            "rejected",
        ),
        (
            Sent {
                id: "no-cents",
                body: r#"{"order":"1042"}"#,
                ..PLACED
            },
            "rejected",
        ),
        (
            Sent {
                id: "cents-text",
                body: r#"{"order":"1","cents":"x"}"#,
                ..PLACED
            },
            "rejected",
        ),
        (
            Sent {
                id: "fraction",
                body: r#"{"order":"1","cents":1.5}"#,
                ..PLACED
            },
            "rejected",
        ),
        (
            Sent {
                id: "no-type",
                type_: "order_lost",
                ..PLACED
            },
            "rejected",
        ),
        (Sent { id: "", ..PLACED }, "message_id_invalid"),
        (
            Sent {
                id: "long",
                payment: Some(&long),
                ..PLACED
            },
            "message_id_invalid",
        ),
        (
            Sent {
                id: "control",
                payment: Some("a\nb"),
                ..PLACED
            },
            "message_id_invalid",
        ),
    ];
    for (message, reason) in &cases {
        world.send(message).await;
        dead(world, message.id, reason).await;
    }
    world.finish([consumer]).await;
    assert_eq!(world.count(PAID).await, 0);
    assert_eq!(world.count("inbox.message").await, 1, "the end alone");
}

pub async fn a_write_that_keeps_failing_is_given_up_with_the_number_of_its_attempts(world: &World) {
    let broken = "ALTER TABLE payment ADD CONSTRAINT closed CHECK (cents <> 1999)";
    world.client.execute(broken, &[]).await.unwrap();
    let consumer = world.consumer().await;
    world.send(&PLACED).await;
    let headers = dead(world, "m1", "attempts_exhausted").await;
    assert_eq!(headers["outbox-dead-attempts"], "5");
    assert!(
        headers["outbox-dead-error"].contains("closed"),
        "{headers:?}"
    );
    assert_eq!(
        world.count("inbox.message").await,
        0,
        "no claim is left behind"
    );
    // It was repaired, and somebody redrives it.
    let repaired = "ALTER TABLE payment DROP CONSTRAINT closed";
    world.client.execute(repaired, &[]).await.unwrap();
    world.send(&PLACED).await;
    world.finish([consumer]).await;
    assert_eq!(world.count(PAID).await, 1);
}

pub async fn a_lost_database_connection_loses_no_message(world: &World) {
    let consumer = world.consumer().await;
    let held = world.hold("payment").await;
    world.send(&PLACED).await;
    world.until_blocked(1).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE usename = 'payments_service' AND datname = current_database()";
    world.client.execute(cut, &[]).await.unwrap();
    // It tries again, on a new connection.
    world.until_blocked(1).await;
    held.release().await;
    world.until("the payment", PAID, 1).await;
    world.finish([consumer]).await;
    assert_eq!(world.count(PAID).await, 1);
    world.no_dead_letter().await;
}

pub async fn a_stop_ends_the_running_handler_and_acknowledges_its_message(world: &World) {
    let mut consumer = world.consumer().await;
    let held = world.hold("payment").await;
    let later = Sent { id: "m2", ..PLACED };
    world.send_all(&[PLACED, later]).await;
    world.until_blocked(1).await;
    consumer.terminate().unwrap();
    held.release().await;
    let status = consumer.ended(SOON).await.unwrap();
    assert!(status.success(), "{status}");
    world.until_consumers(0).await;
    // The one that ran is applied and gone; the one behind it is applied too, or still there.
    let applied = world.count(PAID).await;
    assert_eq!(
        world
            .count("inbox.message WHERE idempotency_key = 'm1'")
            .await,
        1
    );
    world.until_ready(u32::try_from(2 - applied).unwrap()).await;
    let next = world.consumer().await;
    world.finish([next]).await;
    assert_eq!(world.count(PAID).await, 2);
}

async fn asked(world: &World, n: usize) {
    eventually("the provider to be asked", SOON, async || {
        (world.provider.asked().len() == n).then_some(())
    })
    .await;
}

async fn dead(world: &World, id: &str, reason: &str) -> BTreeMap<String, String> {
    let (dead, headers) = world.dead_letter().await;
    let said = headers.get("outbox-dead-reason").map(String::as_str);
    assert_eq!((dead.as_str(), said), (id, Some(reason)), "{headers:?}");
    headers
}
