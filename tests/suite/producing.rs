//! The services' crate, with only a producer's rights.

use outbox::{Event, enqueue};
use tokio_postgres::NoTls;

use crate::world::{World, world};

async fn producer(world: &World) -> tokio_postgres::Client {
    let url = world.url_of("producer");
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
