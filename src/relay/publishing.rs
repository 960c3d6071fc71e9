//! From a claim to its outcomes: prepares the messages, rehearses the marks where that is needed, and publishes wave by wave.
//! What is decided of a message, and from which answer, is in `outbox_core::wave`.

use outbox_core::{
    claim::{Claim, Item},
    message::Position,
    outcome::Answer,
    plan::Plan,
    reason::Reason,
    wave::{self, Outgoing},
};
use tokio::time::{Duration, Instant};

use super::shared::Shared;
use crate::{
    broker::{BrokerError, Publisher},
    outbox::{OutboxError, rehearsal, session::Session},
    telemetry::relaying,
};

/// A lane is not held longer than this for the sake of one key's long chain.
const WAVES: Duration = Duration::from_secs(1);

/// A claim, and in its items what is to be settled.
pub(super) struct Decided {
    pub claim: Claim,
    /// The link is not to be used again.
    pub lost: Option<BrokerError>,
}

/// `cautious`: nothing is published that was not marked in a rehearsal.
pub(super) async fn publish_claim(
    shared: &Shared,
    session: &Session,
    publisher: &mut Publisher,
    claim: Claim,
    cautious: bool,
    deadline: Instant,
) -> Result<Decided, OutboxError> {
    let mut plan = Plan::new(claim, shared.relay.ordering);
    prepare(shared, publisher.frame_max(), &mut plan);
    rehearse(shared, session, &mut plan, cautious).await?;

    let began = Instant::now();
    let mut lost = None;
    loop {
        let wave = plan.next_wave();
        if wave.is_empty() || lost.is_some() || Instant::now() >= deadline {
            break;
        }
        let outgoing = admit(shared, wave);
        if outgoing.is_empty() {
            continue;
        }
        let published = publisher.publish(outgoing, deadline).await;
        lost = published.lost;
        decide(shared, published.answered, lost.as_ref());
        if began.elapsed() > WAVES {
            break;
        }
    }
    let claim = plan.into_claim();
    Ok(Decided { claim, lost })
}

/// Before the first wave, for all messages: nobody waits for one that was refused before it was published.
fn prepare(shared: &Shared, frame_max: u32, plan: &mut Plan) {
    for item in plan.publishable() {
        let (builder, policy) = (&shared.builder, &shared.policy);
        if let Err(reason) = wave::prepare(item, builder, frame_max, policy, &mut rand::rng()) {
            relaying::not_published(shared.health.source(), reason);
        }
    }
}

fn admit<'c>(shared: &Shared, wave: Vec<&'c mut Item>) -> Vec<Outgoing<'c>> {
    let now = Instant::now().into_std();
    wave::admit(
        wave,
        &mut shared.circuits(),
        &shared.policy,
        now,
        &mut rand::rng(),
    )
}

fn decide(shared: &Shared, mut answered: Vec<(Outgoing<'_>, Answer)>, lost: Option<&BrokerError>) {
    let source = shared.health.source();
    let answers = answered.iter().map(|(_, answer)| answer);
    relaying::answered(source, answers, lost.map(unanswered));
    wave::decide(&mut answered, &shared.policy, &mut rand::rng());
    let mut circuits = shared.circuits();
    let now = Instant::now().into_std();
    let changes = wave::watch(&mut answered, &mut circuits, now, &mut rand::rng());
    if let Some(changes) = changes {
        // Under the lock: else the gauge could keep the older one of two workers' numbers.
        relaying::destinations(source, &changes);
    }
}

/// Marks what is to be published and takes it back. A message that cannot be marked waits, and is not published.
async fn rehearse(
    shared: &Shared,
    session: &Session,
    plan: &mut Plan,
    cautious: bool,
) -> Result<(), OutboxError> {
    let suspects: Vec<Position> = {
        let caution = shared.caution();
        let candidates = plan.publishable().map(|item| &item.candidate);
        // A replay has its mark already.
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
        shared.cannot_mark([], why);
        relaying::not_published(shared.health.source(), Reason::Unmarkable);
        let answer = Answer::Unmarkable { text: why.clone() };
        item.decide(&answer, &shared.policy, &mut rand::rng());
    }
    Ok(())
}

/// Why a message of this wave has no answer.
fn unanswered(lost: &BrokerError) -> Reason {
    match lost {
        BrokerError::Timeout { .. } => Reason::ConfirmTimeout,
        _ => Reason::ConnectionLost,
    }
}
