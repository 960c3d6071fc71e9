//! The services' crate, with only a producer's rights.

use std::time::{Duration, SystemTime};

use outbox::{EnqueueError, Event, enqueue, enqueue_all};
use tokio_postgres::NoTls;

use crate::world::{World, world};

async fn producer(world: &World) -> tokio_postgres::Client {
    let url = world
        .postgres()
        .url_for("producer", "producer", &world.database);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn enqueue_needs_insert_alone_and_arrives() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    let mut client = producer(&world).await;
    let transaction = client.transaction().await.unwrap();
    let event = Event::new("order", "created")
        .key("7")
        .raw_json(r#"{ "a" : 1 }"#)
        .unwrap()
        .header("tenant", "blue")
        .correlation_id("c-1");
    let id = enqueue(&transaction, &event).await.unwrap();
    let scanned = Event::new("order", "scanned").bytes("image/png", vec![0, 255]);
    enqueue(&transaction, &scanned).await.unwrap();
    let ghost = Event::new("order", "ghost");
    {
        let mut inner = transaction;
        let savepoint = inner.transaction().await.unwrap();
        enqueue(&savepoint, &ghost).await.unwrap();
        savepoint.rollback().await.unwrap();
        inner.commit().await.unwrap();
    }
    let seen = consumer.until(2).await;
    let created = seen
        .iter()
        .find(|m| m.message_id == id.to_string())
        .unwrap();
    assert_eq!(created.body, br#"{ "a" : 1 }"#);
    assert_eq!(created.text_header("tenant").unwrap(), "blue");
    assert_eq!(
        created
            .properties
            .correlation_id()
            .as_ref()
            .unwrap()
            .as_str(),
        "c-1"
    );
    let scanned = seen
        .iter()
        .find(|m| m.routing_key == "order.scanned")
        .unwrap();
    assert_eq!(
        (scanned.body.as_slice(), scanned.header("outbox-key")),
        (&[0, 255][..], None)
    );
    world.drained().await;
    assert_eq!(
        consumer.len(),
        2,
        "what a savepoint rolled back never arrives"
    );
}

#[tokio::test]
async fn several_events_keep_their_order_in_one_statement() {
    let world = world().await;
    let consumer = world.consumer().await;
    let client = producer(&world).await;
    let later = SystemTime::now() + Duration::from_secs(3600);
    let mut events: Vec<Event> = (0..500)
        .map(|n| Event::new("order", "numbered").key("1").json(&n).unwrap())
        .collect();
    events.push(Event::new("order", "later").available_at(later));
    enqueue_all(&client, &events).await.unwrap();
    let _relay = world.relay(&[]);
    let numbers: Vec<i32> = consumer
        .until(500)
        .await
        .iter()
        .map(|m| String::from_utf8_lossy(&m.body).parse().unwrap())
        .collect();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    world
        .until(
            "the scheduled one to wait",
            "outbox.waiting WHERE cause = 'scheduled'",
            1,
        )
        .await;
}

#[tokio::test]
async fn one_bad_event_keeps_the_whole_batch_out() {
    let world = world().await;
    let client = producer(&world).await;
    let events = [
        Event::new("order", "fine"),
        Event::new("order", "bad").header("x-death", 1),
    ];
    let error = enqueue_all(&client, &events).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::Event { message_id, .. } if message_id == events[1].id())
    );
    assert_eq!(world.count("outbox.message").await, 0);
}
