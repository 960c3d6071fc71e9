//! Writes events into the outbox.

use tokio_postgres::{
    GenericClient,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::event::{Body, Event, EventError};

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("event {message_id}: {source}")]
    Event {
        message_id: Uuid,
        source: EventError,
    },
    #[error("cannot write to outbox.message: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// A trigger or a rule of this database keeps events out.
    #[error("outbox.message took {written} of {events} events; roll the transaction back")]
    NotAllWritten { events: usize, written: u64 },
}

/// One statement for any number of events, in their order. Payloads, headers and times are sent as text, so a producer needs no
/// type support of the driver for them.
/// Type names carry their schema, so no other role's type of the same name can replace one. `unnest` of several arrays is
/// always PostgreSQL's own.
const INSERT: &str = "\
    INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, binary_payload, \
                                content_type, headers, exchange, routing_key, available_at) \
    SELECT e.message_id, e.aggregate_type, e.aggregate_id, e.event_type, e.payload::pg_catalog.json, e.binary_payload, \
           e.content_type, e.headers::pg_catalog.json, e.exchange, e.routing_key, e.available_at \
    FROM unnest($1::pg_catalog.uuid[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], \
                $5::pg_catalog.text[], $6::pg_catalog.bytea[], $7::pg_catalog.text[], $8::pg_catalog.text[], \
                $9::pg_catalog.text[], $10::pg_catalog.text[], $11::pg_catalog.timestamptz[]) WITH ORDINALITY \
         AS e (message_id, aggregate_type, aggregate_id, event_type, payload, binary_payload, content_type, headers, \
               exchange, routing_key, available_at, n) \
    ORDER BY e.n";

/// Writes one event in the caller's transaction and returns its message id.
pub async fn enqueue(
    transaction: &impl GenericClient,
    event: &Event,
) -> Result<Uuid, EnqueueError> {
    enqueue_all(transaction, std::slice::from_ref(event)).await?;
    Ok(event.message_id)
}

/// Writes events in one statement; positions follow the order of the slice. If one event is refused, nothing is written.
pub async fn enqueue_all(
    transaction: &impl GenericClient,
    events: &[Event],
) -> Result<Vec<Uuid>, EnqueueError> {
    for event in events {
        let message_id = event.message_id;
        event
            .check()
            .map_err(|source| EnqueueError::Event { message_id, source })?;
    }
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = events.iter().map(|e| e.message_id).collect();
    let aggregate_types: Vec<&str> = events.iter().map(|e| e.aggregate_type.as_str()).collect();
    let aggregate_ids: Vec<Option<&str>> =
        events.iter().map(|e| e.aggregate_id.as_deref()).collect();
    let event_types: Vec<&str> = events.iter().map(|e| e.event_type.as_str()).collect();
    let (payloads, binary_payloads): (Vec<Option<&str>>, Vec<Option<&[u8]>>) = events
        .iter()
        .map(|e| match &e.body {
            Body::Json(text) => (Some(text.as_str()), None),
            Body::Bytes(bytes) => (None, Some(bytes.as_slice())),
        })
        .unzip();
    let content_types: Vec<&str> = events.iter().map(|e| e.content_type.as_str()).collect();
    let headers: Vec<Option<String>> = events.iter().map(Event::headers_json).collect();
    let exchanges: Vec<Option<&str>> = events.iter().map(|e| e.exchange.as_deref()).collect();
    let routing_keys: Vec<Option<&str>> = events.iter().map(|e| e.routing_key.as_deref()).collect();
    let available_at: Vec<_> = events.iter().map(|e| e.available_at).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 11] = [
        (&ids, Type::UUID_ARRAY),
        (&aggregate_types, Type::TEXT_ARRAY),
        (&aggregate_ids, Type::TEXT_ARRAY),
        (&event_types, Type::TEXT_ARRAY),
        (&payloads, Type::TEXT_ARRAY),
        (&binary_payloads, Type::BYTEA_ARRAY),
        (&content_types, Type::TEXT_ARRAY),
        (&headers, Type::TEXT_ARRAY),
        (&exchanges, Type::TEXT_ARRAY),
        (&routing_keys, Type::TEXT_ARRAY),
        (&available_at, Type::TIMESTAMPTZ_ARRAY),
    ];
    // With explicit types this takes one round trip and leaves no named statement, so it works with a pool in transaction mode.
    let written = transaction.execute_typed(INSERT, &parameters).await?;
    if written != ids.len() as u64 {
        return Err(EnqueueError::NotAllWritten {
            events: ids.len(),
            written,
        });
    }
    Ok(ids)
}
