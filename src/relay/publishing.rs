//! From a claim to its outcomes: prepares the messages, rehearses the settle where that is needed, and publishes wave by wave.
//! What is decided of a message, and from which answer, is in `outbox_core::wave`.

use std::collections::HashSet;

use outbox_core::{
    caution::Caution,
    claim::{Claim, Ctid, Item},
    outcome::{Answer, Outcome},
    plan::Plan,
    reason::Reason,
    wave::{self, Outgoing},
};
use tokio::time::{Duration, Instant};

use super::shared::Shared;
use crate::{
    broker::{BrokerError, Publisher},
    outbox::{
        OutboxError,
        rehearsal::{Rehearsal, Subject},
        session::Session,
    },
    telemetry::relaying,
};

/// A lane is not held longer than this for the sake of one key's long chain.
const WAVES: Duration = Duration::from_secs(1);

/// A claim, and in its items what is to be settled.
pub(super) struct Decided {
    pub claim: Claim,
    /// The link is not to be used again.
    pub lost: Option<BrokerError>,
    /// A rehearsal failed: messages cannot be settled.
    pub refused: bool,
}

/// `allowed`: at most this number is published, and nothing that was not settled in a rehearsal.
pub(super) async fn publish_claim(
    shared: &Shared,
    session: &Session,
    publisher: &mut Publisher,
    claim: Claim,
    allowed: Option<usize>,
    deadline: Instant,
) -> Result<Decided, OutboxError> {
    let mut plan = Plan::new(claim, shared.relay.ordering);
    prepare(shared, publisher.frame_max(), &mut plan);
    let refused = Box::pin(rehearse(shared, session, &mut plan, allowed)).await?;

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
    Ok(Decided {
        claim,
        lost,
        refused,
    })
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

/// Settles what is to be published, and takes that back. A message that cannot be settled waits, and is not published. If it
/// cannot even be filed, this claim leaves it. Returns whether there is such a message.
async fn rehearse(
    shared: &Shared,
    session: &Session,
    plan: &mut Plan,
    allowed: Option<usize>,
) -> Result<bool, OutboxError> {
    let subjects = subjects(&shared.caution(), plan.claim(), allowed.is_some());
    if subjects.is_empty() {
        return Ok(false);
    }
    let rehearsal = Rehearsal {
        session,
        keep: shared.keep,
        released_at_once: shared.relay.batch_size,
    };
    let room = allowed.unwrap_or(usize::MAX);
    let rehearsed = rehearsal.run(&subjects, room).await?;
    let mut left = HashSet::new();
    for subject in &subjects {
        let position = subject.position;
        if rehearsed.passed.contains(&position) {
            continue;
        }
        let Some(refusal) = rehearsed.refused.get(&position) else {
            left.insert(position);
            continue;
        };
        let news = if refusal.fileable {
            let answer = Answer::Unmarkable {
                text: refusal.why.clone(),
            };
            if let Some(item) = plan.item(position) {
                item.decide(&answer, &shared.policy, &mut rand::rng());
            }
            true
        } else {
            left.insert(position);
            shared.caution().set_aside(position)
        };
        if news {
            shared.cannot_mark([], [], &refusal.why);
            relaying::not_published(shared.health.source(), Reason::Unmarkable);
        } else {
            // Each claim meets it again. Another caution would make all of them small.
            shared.health.cannot_mark(&refusal.why);
        }
    }
    plan.leave(&left);
    Ok(!rehearsed.refused.is_empty())
}

/// The messages that a claim rehearses: while the relay is cautious, all of them.
fn subjects(caution: &Caution, claim: &Claim, cautious: bool) -> Vec<Subject> {
    // The rows of a message that was set aside are locked, perhaps, and then others of the same table are.
    let beside = caution.aside() > 0;
    let suspect = |position| cautious || caution.suspects(position);
    let orphans = claim
        .orphans
        .iter()
        .filter(|orphan| beside || suspect(orphan.position));
    let orphans = orphans.map(|orphan| Subject {
        position: orphan.position,
        ctid: Ctid::default(),
        tx: 0,
        key_hash: orphan.key_hash,
        attempts: 0,
        replay: false,
        filed: true,
        publishes: false,
        removes: true,
        waits: false,
        dies: false,
    });
    let items = claim.items.iter().filter(|item| {
        let candidate = &item.candidate;
        candidate.waited.unmarkable || candidate.filed && beside || suspect(item.position())
    });
    let items = items.map(|item| {
        let filing = item.candidate.waited.unmarkable || caution.needs_filing(item.position());
        subject(item, filing)
    });
    orphans.chain(items).collect()
}

/// `filing`: its last outcome could not be filed.
fn subject(item: &Item, filing: bool) -> Subject {
    let candidate = &item.candidate;
    let outcome = item.outcome();
    let publishes = !candidate.scheduled && *outcome == Outcome::Untouched;
    let dead = matches!(outcome, Outcome::Dead { .. });
    Subject {
        position: item.position(),
        ctid: candidate.ctid,
        tx: candidate.tx,
        key_hash: candidate.key_hash,
        attempts: candidate.message.attempts,
        replay: candidate.message.replay,
        filed: candidate.filed,
        publishes,
        removes: candidate.filed && (publishes || dead),
        waits: filing && publishes || !publishes && !dead,
        dies: filing && publishes || dead,
    }
}

/// Why a message of this wave has no answer.
fn unanswered(lost: &BrokerError) -> Reason {
    match lost {
        BrokerError::Timeout { .. } => Reason::ConfirmTimeout,
        _ => Reason::ConnectionLost,
    }
}
