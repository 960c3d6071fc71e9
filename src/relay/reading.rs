//! A claim that PostgreSQL refused: is one message to blame, or something else?
//!
//! A message that cannot be read is given up, so that its neighbours flow. Nothing else is a message's fault: then the worker
//! backs off, and the relay is not ready.

use outbox_core::{
    caution::PassedOver,
    scheduling::{BatchLimit, LaneResult},
};

use super::{context::Context, health::Obstacle, lanes::TakenLanes};
use crate::{
    outbox::{OutboxError, session::Session, unreadable},
    telemetry::relaying,
};

/// From now on claims read one message, until the read of a single message fails. If the server cannot read that row alone
/// either, the relay gives this message up. A time-out must happen twice to the same message: a server that stalled once is
/// not the message's fault. An error means that no message is to blame, and the worker backs off.
pub async fn refused(
    context: &Context,
    session: &Session,
    limit: &mut BatchLimit,
    taken: TakenLanes<'_>,
    passed_over: &PassedOver,
    error: OutboxError,
) -> Result<(), OutboxError> {
    session.rollback().await?;
    if !error.is_of_many_rows() {
        return Err(not_a_row(context, session, error).await);
    }
    let source = context.health.source();
    let alone = limit.is_collapsed();
    limit.collapse();
    let Some(lane) = taken.lanes().first().copied().filter(|_| alone) else {
        relaying::unreadable_claim(source, &error);
        taken.release(|_| LaneResult::Unread);
        return Ok(());
    };
    let first = match unreadable::first(session, lane, passed_over).await {
        Ok(Some(first)) => first,
        // The lane has no message now, or another relay holds it.
        Ok(None) => return Err(error),
        Err(error) => return Err(not_a_row(context, session, error).await),
    };
    let largest = context.relay.max_payload_bytes;
    let error = match unreadable::read_alone(session, first, largest).await? {
        Err(error) if error.may_be_about_a_row() => error,
        Err(error) => return Err(not_a_row(context, session, error).await),
        // The row can be read: the error came from an index or from another table.
        Ok(()) => return Err(not_a_row(context, session, error).await),
    };
    let damaged = unreadable::damaged(session, &error).await?;
    if damaged.is_some_and(|damaged| !damaged.has_messages) {
        return Err(not_a_row(context, session, error).await);
    }
    if error.is_a_time_out() && !context.timed_out.again(first.position) {
        return Err(error);
    }
    let why = error.to_string();
    if Box::pin(unreadable::mark_dead(session, first, passed_over, &why)).await? {
        relaying::unreadable_message(source, first.position, &error);
    }
    taken.release(|_| LaneResult::Unread);
    Ok(())
}

/// Says why no message can be read, with the damaged relation. A lock and a time-out pass, and are reported elsewhere.
async fn not_a_row(context: &Context, session: &Session, error: OutboxError) -> OutboxError {
    if error.passes() || !error.is_statement_refused() {
        return error;
    }
    let why = match unreadable::damaged(session, &error).await {
        Ok(Some(damaged)) => format!("{error}. {}", damaged.remedy()),
        Ok(None) | Err(_) => error.to_string(),
    };
    context.health.fails(Obstacle::Reads, &why);
    error
}
