//! Enqueue, as a role that holds `outbox_producer` and nothing else.

use std::time::{Duration, SystemTime};

use outbox::{EnqueueError, Event, enqueue, enqueue_all};
use uuid::Uuid;

use crate::{database, onlooker};

async fn count(aggregate_type: &str) -> i64 {
    onlooker()
        .await
        .query_one(
            "SELECT count(*) FROM outbox.message WHERE aggregate_type = $1",
            &[&aggregate_type],
        )
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn every_part_of_an_event_reaches_its_column() {
    let client = database().await;
    let id = Uuid::new_v4();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let text = "{ \"total\" : 1e400, \"total\":2,\n\"note\":\"\\u0000\" }";
    let event = Event::new("full", "created")
        .key("1042")
        .raw_json(text)
        .unwrap()
        .message_id(id)
        .header("tenant", "blue")
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .correlation_id("c-1")
        .route("audit", "orders.created")
        .available_at(at);
    assert_eq!(enqueue(&client, &event).await.unwrap(), id);

    let row = onlooker()
        .await
        .query_one(
            "SELECT message_id, aggregate_id, event_type, payload::text, binary_payload, content_type, \
                    headers->>'tenant', headers->>'traceparent', headers->>'correlation_id', exchange, routing_key, \
                    available_at, sent_at IS NULL \
             FROM outbox.message WHERE aggregate_type = 'full'",
            &[],
        )
        .await
        .unwrap();
    let column = |n: usize| row.get::<_, Option<String>>(n).unwrap();
    assert_eq!(row.get::<_, Uuid>(0), id);
    assert_eq!(
        (column(1), column(2)),
        ("1042".to_owned(), "created".to_owned())
    );
    assert_eq!(column(3), text, "byte for byte");
    assert_eq!(row.get::<_, Option<Vec<u8>>>(4), None);
    assert_eq!(column(5), "application/json");
    assert_eq!(
        (column(6), column(8)),
        ("blue".to_owned(), "c-1".to_owned())
    );
    assert_eq!(
        column(7),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
    assert_eq!(
        (column(9), column(10)),
        ("audit".to_owned(), "orders.created".to_owned())
    );
    assert_eq!(row.get::<_, SystemTime>(11), at);
    assert!(row.get::<_, bool>(12));
}

#[tokio::test]
async fn what_is_left_out_is_null_or_the_table_s_default() {
    let client = database().await;
    let bytes = vec![0, 255, 10];
    let event = Event::new("bare", "scanned").bytes("image/png", bytes.clone());
    let id = enqueue(&client, &event).await.unwrap();
    let row = onlooker()
        .await
        .query_one(
            "SELECT binary_payload, content_type, \
                    num_nulls(payload, aggregate_id, headers, exchange, routing_key, available_at), tx IS NOT NULL \
             FROM outbox.message WHERE message_id = $1",
            &[&id],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, Vec<u8>>(0), bytes);
    assert_eq!(row.get::<_, String>(1), "image/png");
    assert_eq!(row.get::<_, i32>(2), 6);
    assert!(row.get::<_, bool>(3));
}

#[tokio::test]
async fn an_event_lives_and_dies_with_its_transaction() {
    let mut client = database().await;
    let mut transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO orders VALUES ('1', 1, 'placed')", &[])
        .await
        .unwrap();
    enqueue(&transaction, &Event::new("atomic", "kept"))
        .await
        .unwrap();
    let savepoint = transaction.transaction().await.unwrap();
    enqueue(&savepoint, &Event::new("atomic", "undone"))
        .await
        .unwrap();
    savepoint.rollback().await.unwrap();
    assert_eq!(count("atomic").await, 0, "not committed yet");
    transaction.commit().await.unwrap();
    assert_eq!(count("atomic").await, 1);

    let transaction = client.transaction().await.unwrap();
    enqueue(&transaction, &Event::new("atomic", "dropped"))
        .await
        .unwrap();
    drop(transaction);
    client.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(count("atomic").await, 1);
}

#[tokio::test]
async fn positions_follow_the_slice() {
    let client = database().await;
    let events: Vec<Event> = (0..1000)
        .map(|n| match n % 3 {
            0 => Event::new("many", "numbered")
                .key("1")
                .bytes("text/plain", vec![b'x']),
            _ => Event::new("many", "numbered").key("1").json(&n).unwrap(),
        })
        .collect();
    let ids = enqueue_all(&client, &events).await.unwrap();
    assert_eq!(ids, events.iter().map(Event::id).collect::<Vec<_>>());
    let written: Vec<Uuid> = onlooker()
        .await
        .query(
            "SELECT message_id FROM outbox.message WHERE aggregate_type = 'many' ORDER BY id",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(written, ids);
    assert_eq!(enqueue_all(&client, &[]).await.unwrap(), Vec::<Uuid>::new());
}

#[tokio::test]
async fn a_refused_event_writes_nothing_and_leaves_the_transaction_usable() {
    let mut client = database().await;
    let transaction = client.transaction().await.unwrap();
    let events = [
        Event::new("refused", "fine"),
        Event::new("refused", "bad").header("outbox-key", "forged"),
    ];
    let error = enqueue_all(&transaction, &events).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::Event { message_id, .. } if message_id == events[1].id()),
        "{error}"
    );
    enqueue(&transaction, &Event::new("refused", "later"))
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(count("refused").await, 1);
}

#[tokio::test]
async fn a_pool_in_transaction_mode_is_left_no_prepared_statement() {
    let client = database().await;
    enqueue(&client, &Event::new("typed", "made"))
        .await
        .unwrap();
    let rows = client
        .simple_query("SELECT statement FROM pg_prepared_statements")
        .await
        .unwrap();
    let statements = rows
        .iter()
        .filter(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(_)));
    assert_eq!(statements.count(), 0);
}

#[tokio::test]
async fn an_event_that_a_trigger_swallows_is_an_error() {
    onlooker()
        .await
        .batch_execute(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER swallow BEFORE INSERT ON outbox.message FOR EACH ROW \
             WHEN (NEW.aggregate_type = 'swallowed') EXECUTE FUNCTION swallow()",
        )
        .await
        .unwrap();
    let client = database().await;
    let error = enqueue(&client, &Event::new("swallowed", "made"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            EnqueueError::NotAllWritten {
                events: 1,
                written: 0
            }
        ),
        "{error}"
    );
}
