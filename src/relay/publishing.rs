//! From a claim to its outcomes: prepares the messages, rehearses marks if necessary, and publishes wave by wave.
//! `outbox_core::wave` decides the outcome of each message from its answer.

use outbox_core::{
    claim::{Claim, Item},
    message::Position,
    outcome::Answer,
    plan::Plan,
    reason::Reason,
    wave::{self, Outgoing},
};
use tokio::time::{Duration, Instant};

use super::context::Context;
use crate::{
    broker::{BrokerError, Publisher},
    outbox::{OutboxError, rehearsal, session::Session},
    telemetry::relaying,
};

/// After this time a claim publishes no further wave: a long chain of one key must not keep the lane.
const WAVES_FOR: Duration = Duration::from_secs(1);

/// A claim whose items have their outcomes.
pub(super) struct Decided {
    pub claim: Claim,
    /// The connection to the broker must not be used again.
    pub lost: Option<BrokerError>,
}

/// `cautious`: publishes only messages that were marked in a rehearsal.
pub(super) async fn publish_claim(
    context: &Context,
    session: &Session,
    publisher: &mut Publisher,
    claim: Claim,
    cautious: bool,
    deadline: Instant,
) -> Result<Decided, OutboxError> {
    let mut plan = Plan::new(claim, context.relay.ordering);
    prepare(context, publisher.frame_max(), &mut plan);
    rehearse(context, session, &mut plan, cautious).await?;

    let began = Instant::now();
    let mut lost = None;
    loop {
        let wave = plan.next_wave();
        if wave.is_empty() || lost.is_some() || Instant::now() >= deadline {
            break;
        }
        let outgoing = admit(context, wave);
        if outgoing.is_empty() {
            continue;
        }
        let published = publisher.publish(outgoing, deadline).await;
        lost = published.lost;
        decide(context, published.answered, lost.as_ref());
        if began.elapsed() > WAVES_FOR {
            break;
        }
    }
    let claim = plan.into_claim();
    Ok(Decided { claim, lost })
}

/// Prepares all messages before the first wave: no later message of a key waits for one that is refused here.
fn prepare(context: &Context, frame_max: u32, plan: &mut Plan) {
    for item in plan.publishable() {
        let (builder, policy) = (&context.builder, &context.policy);
        if let Err(reason) = wave::prepare(item, builder, frame_max, policy, &mut rand::rng()) {
            relaying::not_published(context.health.source(), reason);
        }
    }
}

fn admit<'c>(context: &Context, wave: Vec<&'c mut Item>) -> Vec<Outgoing<'c>> {
    let now = Instant::now().into_std();
    wave::admit(
        wave,
        &mut context.circuits(),
        &context.policy,
        now,
        &mut rand::rng(),
    )
}

fn decide(
    context: &Context,
    mut answered: Vec<(Outgoing<'_>, Answer)>,
    lost: Option<&BrokerError>,
) {
    let source = context.health.source();
    let answers = answered.iter().map(|(_, answer)| answer);
    relaying::answered(source, answers, lost.map(unanswered));
    wave::decide(&mut answered, &context.policy, &mut rand::rng());
    let mut circuits = context.circuits();
    let now = Instant::now().into_std();
    let changes = wave::watch(&mut answered, &mut circuits, now, &mut rand::rng());
    if let Some(changes) = changes {
        // Under the lock: otherwise the older of two workers' numbers could stay in the gauge.
        relaying::destinations(source, &changes);
    }
}

/// Marks the messages before they are published, and takes the marks back. A message that cannot be marked waits, and is not
/// published.
async fn rehearse(
    context: &Context,
    session: &Session,
    plan: &mut Plan,
    cautious: bool,
) -> Result<(), OutboxError> {
    let suspects: Vec<Position> = {
        let caution = context.caution();
        let candidates = plan.publishable().map(|item| &item.candidate);
        // A replay is marked already.
        let suspects = candidates.filter(|candidate| {
            let known = || caution.suspects(candidate.message.position);
            !candidate.message.replay && (cautious || candidate.waited.unmarkable || known())
        });
        suspects
            .map(|candidate| candidate.message.position)
            .collect()
    };
    if suspects.is_empty() {
        return Ok(());
    }
    let refused = rehearsal::rehearse(session, &suspects).await?;
    if refused.is_empty() {
        return Ok(());
    }
    for item in plan.publishable() {
        let Some(why) = refused.get(&item.position()) else {
            continue;
        };
        context.cannot_mark([], why);
        relaying::not_published(context.health.source(), Reason::Unmarkable);
        let answer = Answer::Unmarkable { text: why.clone() };
        item.decide(&answer, &context.policy, &mut rand::rng());
    }
    Ok(())
}

/// The reason why a message of this wave has no answer.
fn unanswered(lost: &BrokerError) -> Reason {
    match lost {
        BrokerError::Timeout { .. } => Reason::ConfirmTimeout,
        _ => Reason::ConnectionLost,
    }
}
