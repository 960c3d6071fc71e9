//! Held messages: their destination fails, and they wait in `outbox.waiting` without a due time (`outbox_core::circuit`).
//! Each step is one statement of bounded size. It skips rows that another session has locked.

use outbox_core::{
    circuit::{Destination, Held, Why},
    reason::Reason,
};
use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    session::{Params, Query, Session},
    settle,
};

const PROBE: Query = Query {
    action: "probe a destination",
    sql: include_str!("sql/held_probe.sql"),
    types: &[Type::INT8, Type::INT8],
};
const GIVE_UP: Query = Query {
    action: "give up held messages",
    sql: include_str!("sql/held_give_up.sql"),
    types: &[Type::INT8, Type::INT4, Type::INT4, Type::INT8],
};
const RELEASE: Query = Query {
    action: "release held messages",
    sql: include_str!("sql/held_release.sql"),
    types: &[Type::INT8, Type::INT8],
};
const PROBE_NEWEST: Query = Query {
    action: "probe untried destinations",
    sql: include_str!("sql/held_probe_newest.sql"),
    types: &[Type::INT8],
};
const RELEASE_NEWEST: Query = Query {
    action: "release messages to untried destinations",
    sql: include_str!("sql/held_release_newest.sql"),
    types: &[Type::INT8, Type::INT8],
};
const DESTINATIONS: Query = Query {
    action: "look for held messages",
    sql: include_str!("sql/held_destinations.sql"),
    types: &[Type::INT4],
};

/// Makes one held message due, and returns its position; `None` if no message is held. Here and below, an error if a trigger
/// keeps the records as they were: the relay would believe that nothing is held any more.
pub async fn probe(
    session: &Session,
    destination: Destination,
    after: i64,
) -> Result<Option<i64>, OutboxError> {
    made_due(session, &PROBE, &[&destination.0, &after]).await
}

/// The same for the newest held message.
pub async fn probe_newest(
    session: &Session,
    destination: Destination,
) -> Result<Option<i64>, OutboxError> {
    made_due(session, &PROBE_NEWEST, &[&destination.0]).await
}

async fn made_due(
    session: &Session,
    query: &Query,
    params: Params<'_>,
) -> Result<Option<i64>, OutboxError> {
    let rows = session.query(query, params).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    proven(query, 1, i64::from(get::<bool, _>(row, "written")?))?;
    get(row, "id").map(Some)
}

/// Makes held messages that have failed often enough due for the last time. Returns their number, at most `rows`.
pub async fn give_up(
    session: &Session,
    destination: Destination,
    failed_probes: u32,
    max_attempts: u32,
    rows: i64,
) -> Result<u64, OutboxError> {
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let (probes, attempts) = (int(failed_probes), int(max_attempts));
    let params: Params<'_> = &[&destination.0, &probes, &attempts, &rows];
    let (chosen, written) = settle::released(&session.query(&GIVE_UP, params).await?)?;
    proven(&GIVE_UP, chosen, written)?;
    Ok(u64::try_from(written).unwrap_or(0))
}

/// The records are locked when they are chosen, so nobody else's change explains a difference.
fn proven(query: &Query, chosen: i64, written: i64) -> Result<(), OutboxError> {
    if chosen == written {
        return Ok(());
    }
    Err(OutboxError::NotReleased {
        action: query.action,
        messages: chosen - written,
    })
}

/// Makes the first `rows` held messages due; returns their number.
pub async fn release(
    session: &Session,
    destination: Destination,
    rows: usize,
) -> Result<usize, OutboxError> {
    released(session, &RELEASE, destination, rows).await
}

/// Makes the newest `rows` held messages due; returns their number.
pub async fn release_newest(
    session: &Session,
    destination: Destination,
    rows: usize,
) -> Result<usize, OutboxError> {
    released(session, &RELEASE_NEWEST, destination, rows).await
}

async fn released(
    session: &Session,
    query: &Query,
    destination: Destination,
    rows: usize,
) -> Result<usize, OutboxError> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let params: Params<'_> = &[&destination.0, &rows];
    let (chosen, written) = settle::released(&session.query(query, params).await?)?;
    proven(query, chosen, written)?;
    Ok(usize::try_from(written).unwrap_or(0))
}

/// Destinations with held messages, at most `most`, each described by its first message.
pub async fn destinations(session: &Session, most: i32) -> Result<Vec<Held>, OutboxError> {
    let rows = session.query(&DESTINATIONS, &[&most]).await?;
    rows.iter()
        .map(|row| {
            let reason: Option<String> = get(row, "reason")?;
            let error: Option<String> = get(row, "last_error")?;
            let reason = reason.and_then(|word| Reason::from_word(&word));
            Ok(Held {
                destination: Destination(get(row, "destination")?),
                failures: u32::try_from(get::<i32, _>(row, "failed_probes")?).unwrap_or(0),
                why: Why {
                    reason: reason.unwrap_or(Reason::BrokerRefused),
                    error: error.unwrap_or_default(),
                },
            })
        })
        .collect()
}
