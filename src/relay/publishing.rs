//! From a claim to its outcomes: prepares the messages, rehearses settles if necessary, and publishes wave by wave.
//! `outbox_core::wave` decides the outcome of each message from its answer.

use std::collections::HashSet;

use outbox_core::{
    caution::{Caution, Kind},
    claim::{Claim, Ctid, Item},
    deadline::Deadline,
    message::Position,
    outcome::{Answer, Outcome},
    plan::Plan,
    reason::Reason,
    wave::{self, Outgoing},
};
use tokio::time::{Duration, Instant};

use super::context::Context;
use crate::{
    broker::{BrokerError, Publisher},
    outbox::{
        OutboxError,
        rehearsal::{self, Rehearsal, Subject},
        session::Session,
    },
    telemetry::relaying,
};

/// A claim whose items have their outcomes.
pub(super) struct Decided {
    pub claim: Claim,
    /// The connection to the broker must not be used again.
    pub lost: Option<BrokerError>,
    /// A rehearsal failed: messages cannot be settled.
    pub refused: bool,
    /// Messages were set aside that were not before. The next claim reads others.
    pub set_aside: bool,
}

/// `allowed`: publishes at most this number, and only messages that were settled in a rehearsal. `read_at`: the end of the
/// claim's last statement.
pub(super) async fn publish_claim(
    context: &Context,
    session: &Session,
    publisher: &mut Publisher,
    claim: Claim,
    allowed: Option<usize>,
    read_at: Instant,
) -> Result<Decided, OutboxError> {
    let mut plan = Plan::new(claim, context.relay.ordering);
    prepare(context, publisher.frame_max(), &mut plan);
    let rehearsed = Box::pin(rehearse(context, session, &mut plan, allowed)).await?;
    let last_statement = rehearsed.map_or(read_at, |rehearsed| rehearsed.at);
    let refused = rehearsed.is_some_and(|rehearsed| rehearsed.refused);
    let set_aside = rehearsed.is_some_and(|rehearsed| rehearsed.set_aside);

    let mut deadline = Deadline::new(
        last_statement.into_std(),
        context.source.database.idle_in_transaction_timeout,
        context.relay.confirm_timeout,
    );
    let mut lost = None;
    loop {
        let wave = plan.next_wave();
        if wave.is_empty() || lost.is_some() {
            break;
        }
        if !deadline.begins(Instant::now().into_std()) {
            if deadline.was_missed() {
                let waited = last_statement.elapsed();
                relaying::deadline_missed(context.health.source(), wave.len(), waited);
            }
            break;
        }
        let outgoing = admit(context, wave);
        if outgoing.is_empty() {
            continue;
        }
        let published = publisher.publish(outgoing, deadline.at().into()).await;
        lost = published.lost;
        decide(context, published.answered, lost.as_ref());
    }
    let claim = plan.into_claim();
    Ok(Decided {
        claim,
        lost,
        refused,
        set_aside,
    })
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

/// A rehearsal that took place.
#[derive(Clone, Copy)]
struct Rehearsed {
    /// The end of its last statement.
    at: Instant,
    /// A message was refused.
    refused: bool,
    /// A message was set aside that was not before.
    set_aside: bool,
}

/// Settles the messages before they are published, and takes that back. A message that cannot be settled waits, and is not
/// published. If it cannot be filed either, this claim leaves it as it is. `None`: it sent no statement.
async fn rehearse(
    context: &Context,
    session: &Session,
    plan: &mut Plan,
    allowed: Option<usize>,
) -> Result<Option<Rehearsed>, OutboxError> {
    let subjects = subjects(&context.caution(), plan.claim(), allowed.is_some());
    if subjects.is_empty() {
        return Ok(None);
    }
    let rehearsal = Rehearsal {
        session,
        marks: rehearsal::moved(plan.claim()),
        keep: context.keep,
        released_at_once: context.relay.batch_size,
    };
    let room = allowed.unwrap_or(usize::MAX);
    let rehearsed = rehearsal.run(&subjects, room).await?;
    let at = Instant::now();
    let mut left = HashSet::new();
    let mut set_aside = false;
    for subject in &subjects {
        let position = subject.position;
        if rehearsed.passed.contains(&position) {
            // No rehearsal shows what the server refuses at COMMIT.
            let refused = context.caution().uncommitted(position).map(str::to_owned);
            if let Some(why) = refused.filter(|_| subject.publishes) {
                defer(context, plan, position, &why);
            }
            continue;
        }
        let Some(refusal) = rehearsed.refused.get(&position) else {
            left.insert(position);
            continue;
        };
        if refusal.fileable {
            defer(context, plan, position, &refusal.why);
            context.not_settled([], []);
            continue;
        }
        left.insert(position);
        context.cannot_mark([position], &refusal.why, Duration::ZERO);
        let kind = kind(plan, subject);
        // Each claim meets a message again that is left. Another caution would make all of them small.
        if context.caution().set_aside(position, kind, at.into_std()) {
            set_aside = true;
            relaying::set_aside(context.health.source(), position, &refusal.why);
            relaying::not_published(context.health.source(), Reason::Unmarkable);
            context.not_settled([], []);
        }
    }
    plan.leave(&left);
    let refused = !rehearsed.refused.is_empty();
    Ok(Some(Rehearsed {
        at,
        refused,
        set_aside,
    }))
}

/// The message waits before it is rehearsed again, and is not published.
fn defer(context: &Context, plan: &mut Plan, position: Position, why: &str) {
    let answer = Answer::Unmarkable {
        text: why.to_owned(),
    };
    let mut delay = Duration::ZERO;
    if let Some(item) = plan.item(position) {
        item.decide(&answer, &context.policy, &mut rand::rng());
        delay = retry_in(item);
    }
    context.cannot_mark([position], why, delay);
    relaying::not_published(context.health.source(), Reason::Unmarkable);
}

/// How later claims find the message.
fn kind(plan: &mut Plan, subject: &Subject) -> Kind {
    if subject.filed {
        return Kind::Filed;
    }
    // Before its time, a scheduled message has no order.
    let item = plan
        .item(subject.position)
        .filter(|item| !item.candidate.scheduled);
    Kind::New {
        key: item.and_then(|item| item.candidate.key_hash),
    }
}

fn retry_in(item: &Item) -> Duration {
    match item.outcome() {
        Outcome::Retry { delay, .. } => *delay,
        _ => Duration::ZERO,
    }
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
        aside: caution.is_aside(orphan.position),
        publishes: false,
        removes: true,
        waits: false,
        dies: false,
    });
    let items = claim.items.iter().filter(|item| {
        let candidate = &item.candidate;
        let position = item.position();
        let beside = candidate.filed && beside || caution.is_aside(position);
        candidate.waited.unmarkable || beside || suspect(position)
    });
    let items = items.map(|item| {
        let position = item.position();
        let filing = item.candidate.waited.unmarkable || caution.needs_filing(position);
        subject(item, filing, caution.is_aside(position))
    });
    orphans.chain(items).collect()
}

/// `filing`: its last outcome could not be filed.
fn subject(item: &Item, filing: bool, aside: bool) -> Subject {
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
        aside,
        publishes,
        removes: candidate.filed && (publishes || dead),
        waits: filing && publishes || !publishes && !dead,
        dies: filing && publishes || dead,
    }
}

/// The reason why a message of this wave has no answer.
fn unanswered(lost: &BrokerError) -> Reason {
    match lost {
        BrokerError::Timeout { .. } => Reason::ConfirmTimeout,
        _ => Reason::ConnectionLost,
    }
}
