//! Decodes a row of `sql/read.sql`.

use std::{fmt::Display, time::SystemTime};

use outbox_core::{
    circuit::Destination,
    claim::{Candidate, Orphan, Waited},
    message::{Message, Position},
};
use tokio_postgres::{
    Row,
    row::RowIndex,
    types::{FromSql, Type},
};

use super::{
    OutboxError,
    ctid::{Tid, Xid},
    row::{Values, get},
};

/// The number of each column of a result of `sql/read.sql`. Found by name once for a result, because a search by name in
/// every row compares hundreds of names.
pub(super) struct Columns {
    filed: usize,
    lane: usize,
    id: usize,
    place: usize,
    tx: usize,
    key_hash: usize,
    attempts: usize,
    replay: usize,
    scheduled: usize,
    message_id: usize,
    aggregate_type: usize,
    aggregate_id: usize,
    event_type: usize,
    content_type: usize,
    headers: usize,
    headers_size: usize,
    exchange: usize,
    routing_key: usize,
    created_at: usize,
    body_size: usize,
    payload: usize,
    binary_payload: usize,
    after_id: usize,
    probe: usize,
    unmarkable: usize,
    destination: usize,
}

impl Columns {
    /// The columns of the result to which `row` belongs. `action` is for the error.
    pub fn of(row: &Row, action: &'static str) -> Result<Self, OutboxError> {
        let columns = row.columns();
        Self::find(action, |name| columns.iter().position(|c| c.name() == name))
    }

    fn find(
        action: &'static str,
        number: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, OutboxError> {
        let number = |column| number(column).ok_or(OutboxError::ColumnMissing { action, column });
        Ok(Self {
            filed: number("filed")?,
            lane: number("lane")?,
            id: number("id")?,
            place: number("place")?,
            tx: number("tx")?,
            key_hash: number("key_hash")?,
            attempts: number("attempts")?,
            replay: number("replay")?,
            scheduled: number("scheduled")?,
            message_id: number("message_id")?,
            aggregate_type: number("aggregate_type")?,
            aggregate_id: number("aggregate_id")?,
            event_type: number("event_type")?,
            content_type: number("content_type")?,
            headers: number("headers")?,
            headers_size: number("headers_size")?,
            exchange: number("exchange")?,
            routing_key: number("routing_key")?,
            created_at: number("created_at")?,
            body_size: number("body_size")?,
            payload: number("payload")?,
            binary_payload: number("binary_payload")?,
            after_id: number("after_id")?,
            probe: number("probe")?,
            unmarkable: number("unmarkable")?,
            destination: number("destination")?,
        })
    }

    /// The message of the row. `None`: the message is gone, and the row is its record in `outbox.waiting`, an orphan.
    ///
    /// A value of the message that cannot be decoded (somebody dropped a NOT NULL) fails this message, not the claim.
    pub fn candidate(&self, row: &Row) -> Result<Option<Candidate>, OutboxError> {
        let place: Option<Tid> = get(row, self.place)?;
        let Some(Tid(ctid)) = place else {
            return Ok(None);
        };
        let mut values = Values::of(row);
        let destination: Option<i64> = values.optional(self.destination)?;
        let message = self.message(row, &mut values)?;
        // A row without its transaction counts as written by transaction 0, in every statement.
        let tx: Option<Xid> = values.optional(self.tx)?;
        Ok(Some(Candidate {
            message: Message {
                damage: values.damage(),
                ..message
            },
            ctid,
            tx: tx.map_or(0, |tx| tx.0),
            key_hash: get(row, self.key_hash)?,
            filed: get(row, self.filed)?,
            scheduled: get(row, self.scheduled)?,
            after: get(row, self.after_id)?,
            waited: Waited {
                probe: get::<Option<bool>, _>(row, self.probe)?.unwrap_or(false),
                unmarkable: get(row, self.unmarkable)?,
                destination: destination.map(Destination),
            },
        }))
    }

    fn message(&self, row: &Row, values: &mut Values<'_>) -> Result<Message, OutboxError> {
        let attempts: Option<i32> = get(row, self.attempts)?;
        let replay: Option<bool> = get(row, self.replay)?;
        let headers: Option<JsonText> = values.optional(self.headers)?;
        let headers_size: i32 = get(row, self.headers_size)?;
        let body_size: i32 = values.required(self.body_size)?;
        let created_at: Option<SystemTime> = values.needed(self.created_at)?;
        let body = body(row, self.payload, self.binary_payload)?;
        if body.is_none() && body_size == 0 {
            values.note(self.payload, "is NULL, and so is binary_payload");
        }
        Ok(Message {
            position: self.position(row)?,
            message_id: values.required(self.message_id)?,
            aggregate_type: values.required(self.aggregate_type)?,
            aggregate_id: values.optional(self.aggregate_id)?,
            event_type: values.required(self.event_type)?,
            content_type: values.required(self.content_type)?,
            headers: headers.map(|text| text.0),
            headers_size: u64::try_from(headers_size).unwrap_or(0),
            exchange: values.optional(self.exchange)?,
            routing_key: values.optional(self.routing_key)?,
            created_at_us: created_at.map_or(0, micros),
            attempts: attempts.map_or(0, |n| u32::try_from(n).unwrap_or(0)),
            replay: replay.unwrap_or(false),
            body_size: u64::try_from(body_size).unwrap_or(0),
            body,
            damage: None,
        })
    }

    pub fn orphan(&self, row: &Row) -> Result<Orphan, OutboxError> {
        Ok(Orphan {
            position: self.position(row)?,
            key_hash: get(row, self.key_hash)?,
        })
    }

    fn position(&self, row: &Row) -> Result<Position, OutboxError> {
        Ok(Position {
            lane: get(row, self.lane)?,
            id: get(row, self.id)?,
        })
    }
}

/// The body, from the one of its two columns that has it.
pub(super) fn body<I: RowIndex + Display>(
    row: &Row,
    json: I,
    binary: I,
) -> Result<Option<Vec<u8>>, OutboxError> {
    let body: Option<Body> = match get(row, json)? {
        Some(body) => Some(body),
        None => get(row, binary)?,
    };
    Ok(body.map(|body| body.0))
}

/// Microseconds since 1970.
pub(super) fn micros(at: SystemTime) -> i64 {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}

/// A body as the server sent it: the bytes of `json` and of `bytea`, never decoded.
struct Body(Vec<u8>);

impl<'a> FromSql<'a> for Body {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::BYTEA)
    }
}

/// `json` as the producer wrote it.
struct JsonText(String);

impl<'a> FromSql<'a> for JsonText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_column_that_is_missing_is_named() {
        let asked = RefCell::new(Vec::new());
        let all = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            Some(0)
        };
        assert!(Columns::find("read messages", all).is_ok());
        for missing in asked.into_inner() {
            let found = Columns::find("read messages", |name| (name != missing).then_some(0));
            let error = found.err().unwrap();
            assert!(error.is_schema() && error.needs_a_person());
            let error = error.to_string();
            assert!(error.contains(&format!("\"{missing}\"")), "{error}");
        }
    }
}
