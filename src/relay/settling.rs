//! Writes the outcomes of a claim, and tells all who must know what was written.

use std::time::Duration;

use outbox_core::{
    claim::{Claim, Item},
    low_water,
    message::Position,
    outcome::Outcome,
    reason::Reason,
    settlement,
};
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use super::{context::Context, health::counts_until};
use crate::{
    outbox::{OutboxError, session::Session, settle},
    telemetry::{metrics, relaying},
};

/// The claim is rolled back. `rows`: its messages.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotSettled {
    pub error: OutboxError,
    pub rows: Vec<Position>,
}

/// `confirmed_after`: time from the claim's clock to its last confirm. Messages that somebody corrected meanwhile do not get
/// their outcome, and the claim forgets them.
pub async fn settle(
    context: &Context,
    session: &Session,
    claim: &mut Claim,
    confirmed_after: Duration,
) -> Result<(), NotSettled> {
    let settling = Instant::now();
    let source = context.health.source();
    let written = settlement::settlement(claim, low_water::STRIDE);
    if written.is_empty() {
        let rows = Vec::new();
        return session
            .rollback()
            .await
            .map_err(|error| NotSettled { error, rows });
    }
    let span = info_span!("settle", source, sent = written.sent.len());
    let settled = settle::settle(session, &written, context.keep, context.relay.batch_size);
    match Box::pin(settled.instrument(span)).await {
        // They did not get their outcome, so they prove nothing.
        Ok(corrected) => claim.forget(&corrected),
        Err(error) => return Err(failed(context, claim, error)),
    }
    learn(context, claim);
    metrics::settled(source, settling.elapsed());
    relaying::settled(source, claim, confirmed_after);
    context.tally.settled(claim);
    context
        .hints
        .moved(claim.orphans.iter().map(|o| o.position.id));
    Ok(())
}

fn failed(context: &Context, claim: &Claim, error: OutboxError) -> NotSettled {
    let refused = error.is_statement_refused();
    // The messages were published, and stay pending.
    if refused || claim.positions(is_sent).next().is_some() {
        context.not_settled(claim.positions(is_sent), to_file(claim));
    }
    if error.is_refused_commit() {
        let published: Vec<Position> = claim.positions(is_sent).collect();
        let mut caution = context.caution();
        caution.commit_refused(&published, error.to_string());
    }
    // A server that is away refuses no mark. Which message it refuses, only a rehearsal tells.
    if refused {
        let all = claim.positions(|_| true);
        context.cannot_mark(all, &error.to_string(), Duration::ZERO);
    }
    let rows = claim.positions(|_| true).collect();
    NotSettled { error, rows }
}

/// What the outcomes tell about the messages that could not be settled before.
fn learn(context: &Context, claim: &Claim) {
    let sent = claim.positions(is_sent).count();
    let mut caution = context.caution();
    if sent > 0 {
        caution.marked(sent, context.relay.batch_size);
    }
    caution.settled(claim.positions(is_decided));
    caution.settled(claim.orphans.iter().map(|orphan| orphan.position));
    for (position, retry_in) in unmarkable(claim) {
        caution.not_marked([position], counts_until(retry_in).into_std());
    }
    // While a message cannot be marked, the marks of others would end the failure, and its next retry begin it again.
    // The lock is held until the failure has ended: another worker may find such a message meanwhile.
    if sent > 0 && !caution.some_are_not_marked() {
        context.health.marked();
    }
}

pub fn is_sent(outcome: &Outcome) -> bool {
    *outcome == Outcome::Sent
}

pub fn is_decided(outcome: &Outcome) -> bool {
    *outcome != Outcome::Untouched
}

/// Messages that wait because they cannot be marked, each with the time to its retry.
fn unmarkable(claim: &Claim) -> impl Iterator<Item = (Position, Duration)> {
    claim.items.iter().filter_map(|item| match item.outcome() {
        Outcome::Retry {
            reason: Reason::Unmarkable,
            delay,
            ..
        } => Some((item.position(), *delay)),
        _ => None,
    })
}

/// Messages that the settle files as waiting or dead, and deleted messages whose records it removes.
fn to_file(claim: &Claim) -> impl Iterator<Item = Position> {
    let items = claim.items.iter().filter(|item| {
        let waits = item.candidate.scheduled && !item.is_left();
        waits || is_decided(item.outcome()) && !is_sent(item.outcome())
    });
    let orphans = claim.orphans.iter().map(|orphan| orphan.position);
    items.map(Item::position).chain(orphans)
}
