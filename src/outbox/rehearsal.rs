//! Rehearsal: checks whether messages can be marked as sent, in the claim's own transaction and before the publish.
//!
//! **Why.** Some obstacles show only at the mark: a revoked privilege, a trigger that raises an error or swallows the update,
//! a publication with a row filter, a row that another session has locked, a deferred constraint. A claim that meets them
//! after its publishes would publish the same messages again at its next attempt.

use std::collections::{HashMap, HashSet};

use outbox_core::message::{Lane, Position};
use tokio_postgres::types::Type;

use super::{
    OutboxError, blockers,
    row::get,
    session::{Query, Session},
};

const REHEARSE: Query = Query {
    action: "rehearse the marks",
    sql: include_str!("sql/rehearse.sql"),
    types: &[Type::INT2_ARRAY, Type::INT8_ARRAY],
};

/// After this many refused messages the rehearsal stops, and all others count as refused.
const REFUSALS: usize = 3;

/// Returns the messages that cannot be marked, each with the reason. The transaction is unchanged afterwards.
pub async fn rehearse(
    session: &Session,
    positions: &[Position],
) -> Result<HashMap<Position, String>, OutboxError> {
    let mut refused = HashMap::new();
    match attempt(session, positions).await {
        Ok(marked) => {
            let left: Vec<Position> = positions
                .iter()
                .filter(|p| !marked.contains(p))
                .copied()
                .collect();
            if !left.is_empty() {
                let why = not_marked(session, &left).await?;
                refused.extend(left.into_iter().map(|p| (p, why.clone())));
            }
            return Ok(refused);
        }
        Err(error) if !error.is_statement_refused() => return Err(error),
        Err(error) if positions.len() == 1 => {
            refused.extend(positions.iter().map(|p| (*p, error.to_string())));
            return Ok(refused);
        }
        Err(_) => {}
    }
    // The server refuses one message or all. Single attempts show which.
    let mut refusals = 0;
    let mut last = String::new();
    for position in positions {
        if refusals >= REFUSALS {
            refused.insert(*position, last.clone());
            continue;
        }
        match attempt(session, std::slice::from_ref(position)).await {
            Ok(marked) if marked.is_empty() => {
                let why = not_marked(session, std::slice::from_ref(position)).await?;
                refused.insert(*position, why);
            }
            Ok(_) => {}
            Err(error) if error.is_statement_refused() => {
                refusals += 1;
                last = error.to_string();
                refused.insert(*position, last.clone());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

async fn attempt(
    session: &Session,
    positions: &[Position],
) -> Result<HashSet<Position>, OutboxError> {
    let (lanes, ids): (Vec<Lane>, Vec<i64>) = positions.iter().map(|p| (p.lane, p.id)).unzip();
    session
        .batch("begin a rehearsal", "SAVEPOINT rehearsal")
        .await?;
    let rehearsed = async {
        let rows = session.query(&REHEARSE, &[&lanes, &ids]).await?;
        // Run deferred triggers now instead of at COMMIT.
        session
            .batch("rehearse the commit", "SET CONSTRAINTS ALL IMMEDIATE")
            .await?;
        Ok::<_, OutboxError>(rows)
    }
    .await;
    if let Err(error) = &rehearsed
        && !error.is_statement_refused()
    {
        return rehearsed.map(|_| HashSet::new());
    }
    let undo = "ROLLBACK TO SAVEPOINT rehearsal; RELEASE SAVEPOINT rehearsal";
    session.batch("end a rehearsal", undo).await?;
    let position = |row: &tokio_postgres::Row| {
        Ok(Position {
            lane: get(row, "lane")?,
            id: get(row, "id")?,
        })
    };
    rehearsed?.iter().map(position).collect()
}

async fn not_marked(session: &Session, positions: &[Position]) -> Result<String, OutboxError> {
    let blockers = blockers::find(session, positions).await?;
    Ok(if blockers.is_empty() {
        "the mark is not written: does a trigger or a rule on outbox.message keep its rows as they are?"
            .to_owned()
    } else {
        format!("its row is locked by {}", blockers::text(&blockers))
    })
}
