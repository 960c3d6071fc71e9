//! A worker: one PostgreSQL connection and one AMQP connection, and the only place where both meet.
//!
//! Claim, publish, confirm, settle; then again. A crash anywhere rolls the claim back: no lease and no clock. What
//! was published by then is published again: duplicates, at most a batch.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::{
    batch::BatchLimit,
    board::{Board, Found, Taken},
    health::{Health, LinkReport},
    plan::Plan,
};
use crate::{
    backoff,
    broker::{BrokerError, LinkState, Publisher, publish},
    config::{Relay, Source},
    envelope::{Envelope, EnvelopeBuilder},
    failpoint,
    message::Lane,
    outbox::{
        OutboxError,
        claim::{self, Claim, Limits},
        low_water, migrate,
        session::Session,
        settle::{self, Keep},
    },
    outcome::{self, Answer, Outcome, RetryPolicy},
    reason::Reason,
    settlement,
    telemetry::metrics,
};

/// A lane is not held longer than this for the sake of one key's long chain.
const WAVES: Duration = Duration::from_secs(1);

/// What every worker of a source shares.
pub struct Shared {
    pub source: Source,
    pub relay: Relay,
    pub keep: Keep,
    /// To be declared at every connect, with `broker.declare`.
    pub exchanges: Vec<String>,
    pub builder: EnvelopeBuilder,
    pub policy: RetryPolicy,
    pub board: Board,
    pub health: Health,
    /// Name of this process in `pg_stat_activity`, `outbox.relay` and the broker's connection list.
    pub instance: String,
}

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

struct Worker {
    shared: Arc<Shared>,
    number: usize,
    stop: CancellationToken,
    session: Option<Session>,
    publisher: Option<Publisher>,
    limit: BatchLimit,
    /// The last connection was closed by something that this worker published on it.
    cautious: bool,
    failures: u32,
}

/// Works until `stop`, through every failure of either server.
pub async fn run(shared: Arc<Shared>, number: usize, stop: CancellationToken) {
    let limit = BatchLimit::new(shared.relay.batch_size);
    let mut worker = Worker {
        shared,
        limit,
        number,
        stop,
        session: None,
        publisher: None,
        cautious: false,
        failures: 0,
    };
    while !worker.stop.is_cancelled() {
        match Box::pin(worker.work()).await {
            Ok(()) => worker.failures = 0,
            Err(error) => worker.fail(error).await,
        }
    }
    worker.close().await;
}

impl Worker {
    /// Connects what is missing, waits for lanes with work, and does it once.
    async fn work(&mut self) -> Result<(), WorkError> {
        if !self.connect().await? {
            return Ok(());
        }
        let (Some(session), Some(publisher)) = (&self.session, &mut self.publisher) else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let mut link = publisher.state();
        let taken = tokio::select! {
            biased;
            // 1. Nothing new is claimed once a stop was asked for.
            () = self.stop.cancelled() => return Ok(()),
            // 2. No claim is opened without both servers.
            state = not_open(&mut link) => return Err(unusable(&state).into()),
            () = session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "wait for work", why }.into());
            }
            taken = shared.board.take() => taken,
        };
        let result = Box::pin(cycle(&shared, session, publisher, &mut self.limit, taken)).await;
        if let Ok(None) = result {
            self.cautious = false;
            publisher.trust();
        }
        match result? {
            None => Ok(()),
            Some(lost) => Err(lost.into()),
        }
    }

    /// `false` when a stop came first.
    async fn connect(&mut self) -> Result<bool, WorkError> {
        let shared = &self.shared;
        let name = format!("{}/{}", shared.instance, self.number);
        if self.session.is_none() {
            let connecting = async {
                let session = Session::connect(&shared.source.database, &name).await?;
                migrate::require_known(&session).await?;
                Ok::<_, OutboxError>(session)
            };
            self.session = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                session = connecting => Some(session?),
            };
        }
        if self.publisher.is_none() {
            let connecting = async {
                let confirm_timeout = shared.relay.confirm_timeout;
                let mut publisher = Publisher::connect(
                    &shared.source.broker,
                    &name,
                    confirm_timeout,
                    self.cautious,
                )
                .await?;
                if shared.source.broker.declare {
                    publisher.declare(&shared.exchanges).await?;
                }
                publisher
                    .canary(|state| shared.health.link(self.number, report(state)))
                    .await?;
                Ok::<_, BrokerError>(publisher)
            };
            let publisher = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                publisher = connecting => publisher?,
            };
            tracing::info!(
                source = shared.health.source(),
                worker = self.number,
                "connected to both servers"
            );
            shared.health.link(self.number, LinkReport::Up);
            self.publisher = Some(publisher);
        }
        Ok(true)
    }

    /// Drops what can no longer be trusted, says so once, and backs off.
    async fn fail(&mut self, error: WorkError) {
        self.failures = self.failures.saturating_add(1);
        let source = self.shared.health.source();
        match &error {
            WorkError::Outbox(e) => {
                // The server refused a statement (a lock time-out, a deadlock): the connection itself is good.
                let mended = e.is_statement_refused()
                    && match &self.session {
                        Some(session) => session.rollback().await.is_ok(),
                        None => false,
                    };
                if !mended {
                    self.session = None;
                }
                tracing::warn!(source, worker = self.number, failures = self.failures, error = %e, "PostgreSQL failed; backing off");
            }
            WorkError::Broker(e) => {
                self.cautious = publish::provoked(e);
                self.publisher = None;
                let report = match e {
                    BrokerError::Blocked(why) => LinkReport::Blocked(why.clone()),
                    other => LinkReport::Down(other.to_string()),
                };
                self.shared.health.link(self.number, report);
                tracing::warn!(source, worker = self.number, failures = self.failures, error = %e, "RabbitMQ failed; backing off");
            }
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(reconnect_delay(self.failures)) => {}
        }
    }

    async fn close(self) {
        if let Some(publisher) = self.publisher {
            publisher.close(Duration::from_secs(2)).await;
        }
    }
}

/// A server that is back is used within seconds, and one that is away is not stormed.
pub fn reconnect_delay(failures: u32) -> Duration {
    backoff::delay(
        failures,
        Duration::from_millis(200),
        Duration::from_secs(3),
        &mut rand::rng(),
    )
}

/// One claim, from its lanes to its commit. `Some` when the broker was lost on the way: what was confirmed before
/// is settled all the same.
async fn cycle(
    shared: &Shared,
    session: &Session,
    publisher: &mut Publisher,
    limit: &mut BatchLimit,
    taken: Taken<'_>,
) -> Result<Option<BrokerError>, WorkError> {
    let source = shared.health.source();
    let began = Instant::now();
    let limits = Limits {
        fresh: limit.get(),
        batch_size: limit.get(),
        batch_bytes: shared.relay.batch_bytes,
        max_payload_bytes: shared.relay.max_payload_bytes,
    };
    let span = info_span!("claim", source, lanes = taken.lanes().len());
    let Some(mut claim) = claim::claim(session, taken.lanes(), limits)
        .instrument(span)
        .await?
    else {
        taken.give_back(|_| Found::Peer);
        return Ok(None);
    };
    limit.learn(claim.candidates.len(), claim.cut_short);
    failpoint::reach("claim.after").await;
    if !claim.candidates.is_empty() {
        metrics::claimed(source, began.elapsed(), claim.candidates.len());
    }

    let publishing = Instant::now();
    let span = info_span!("publish", source, messages = claim.candidates.len());
    let deadline = began
        + shared
            .source
            .database
            .idle_in_transaction_timeout
            .mul_f64(0.8);
    let (outcomes, lost) = publish_claim(shared, publisher, &mut claim, deadline)
        .instrument(span)
        .await;
    if outcomes.contains(&Outcome::Sent) {
        metrics::confirmed(source, publishing.elapsed());
    }
    failpoint::reach("confirm.before_settle").await;

    let settling = Instant::now();
    let written = settlement::settlement(&claim, &outcomes, low_water::STRIDE);
    if written.is_empty() {
        session.rollback().await?;
    } else {
        let span = info_span!("settle", source, sent = written.sent.len());
        settle::settle(session, &written, shared.keep, shared.relay.batch_size)
            .instrument(span)
            .await?;
        metrics::settled(source, settling.elapsed());
        record(
            source,
            &claim,
            &outcomes,
            publishing.duration_since(began),
            publishing,
        );
    }

    let worked: HashSet<Lane> = claim
        .candidates
        .iter()
        .map(|c| c.message.position.lane)
        .collect();
    let settled = lost.is_none() && outcomes.iter().any(|o| *o != Outcome::Untouched);
    let exhausted = claim.exhausted();
    // A lane that had something is read until it has nothing; one that a broken link left alone waits for the scout.
    taken.give_back(|lane| {
        let exhausted = exhausted.get(&lane).copied();
        found(exhausted, settled, worked.contains(&lane))
    });
    Ok(lost)
}

/// Of a lane that was asked for. `exhausted`: nothing was left to read; `None` when it was not held.
fn found(exhausted: Option<bool>, settled: bool, worked: bool) -> Found {
    match exhausted {
        Some(false) if settled && worked => Found::Full,
        Some(false) if settled => Found::Unread,
        Some(true) if settled && worked => Found::Some,
        Some(_) => Found::Nothing,
        None => Found::Peer,
    }
}

/// Publishes a claim's messages, wave by wave, and decides the outcome of each.
async fn publish_claim(
    shared: &Shared,
    publisher: &mut Publisher,
    claim: &mut Claim,
    deadline: Instant,
) -> (Vec<Outcome>, Option<BrokerError>) {
    let source = shared.health.source();
    let frame_max = publisher.frame_max();
    let mut outcomes = vec![Outcome::Untouched; claim.candidates.len()];
    let mut plan = Plan::new(&claim.candidates, &mut outcomes, shared.relay.ordering);
    let mut envelopes: Vec<Option<Envelope>> = Vec::with_capacity(claim.candidates.len());
    for (candidate, outcome) in claim.candidates.iter_mut().zip(&mut outcomes) {
        if candidate.scheduled || *outcome == Outcome::Behind {
            envelopes.push(None);
            continue;
        }
        match shared.builder.build(&mut candidate.message, frame_max) {
            Ok(envelope) => envelopes.push(Some(envelope)),
            Err(refusal) => {
                metrics::publish_failed(source, refusal.reason.as_str(), 1);
                let answer = Answer::Rejected(refusal);
                *outcome = outcome::decide(
                    &answer,
                    candidate.message.attempts,
                    &shared.policy,
                    &mut rand::rng(),
                );
                envelopes.push(None);
            }
        }
    }

    let began = Instant::now();
    let mut lost = None;
    loop {
        let wave = plan.next_wave(&claim.candidates, &mut outcomes);
        if wave.is_empty() || lost.is_some() || Instant::now() >= deadline {
            break;
        }
        let batch: Vec<&Envelope> = wave.iter().filter_map(|i| envelopes[*i].as_ref()).collect();
        let published = publisher.publish(&batch, deadline).await;
        lost = published.lost;
        for (i, answer) in wave.into_iter().zip(published.answers) {
            let attempts = claim.candidates[i].message.attempts;
            count(source, &answer, lost.as_ref());
            outcomes[i] = outcome::decide(&answer, attempts, &shared.policy, &mut rand::rng());
            // Sent: its body is not needed any more. A long chain must not hold the whole batch in memory twice.
            envelopes[i] = None;
        }
        if began.elapsed() > WAVES {
            break;
        }
    }
    (outcomes, lost)
}

fn count(source: &str, answer: &Answer, lost: Option<&BrokerError>) {
    let reason = match (answer.reason(), lost) {
        (Some(reason), _) => reason.as_str(),
        (None, Some(BrokerError::Timeout { .. })) if *answer == Answer::Unknown => {
            "confirm_timeout"
        }
        (None, Some(_)) if *answer == Answer::Unknown => "connection_lost",
        (None, _) => return,
    };
    metrics::publish_failed(source, reason, 1);
}

/// After the commit, so that nothing is counted that was rolled back.
fn record(
    source: &str,
    claim: &Claim,
    outcomes: &[Outcome],
    claimed_in: Duration,
    publishing: Instant,
) {
    let confirmed_us = claim.now_us.saturating_add(
        i64::try_from((claimed_in / 2 + publishing.elapsed()).as_micros()).unwrap_or(i64::MAX),
    );
    let mut latencies = Vec::new();
    // One line for all that failed alike: a lost binding must not write a line for each message of a backlog.
    let mut alike: BTreeMap<Reason, usize> = BTreeMap::new();
    for outcome in outcomes {
        if let Outcome::Retry { reason, .. } = outcome {
            *alike.entry(*reason).or_default() += 1;
        }
    }
    for (candidate, outcome) in claim.candidates.iter().zip(outcomes) {
        let message = &candidate.message;
        let (id, position) = (message.message_id, message.position.id);
        match outcome {
            Outcome::Sent => {
                latencies.push((confirmed_us - message.created_at_us).max(0) as f64 / 1e6)
            }
            Outcome::Retry {
                reason,
                attempts,
                delay,
                error,
            } => {
                metrics::retried(source, reason.as_str());
                // Of the others, `outbox.waiting` holds the same.
                if let Some(messages) = alike.remove(reason) {
                    tracing::warn!(
                        source, message_id = %id, position, reason = reason.as_str(), attempts,
                        delay_ms = delay.as_millis() as u64, error = %error.escape_debug(), messages,
                        "not delivered; it is tried again"
                    );
                }
            }
            Outcome::Dead {
                reason,
                attempts,
                error,
            } => {
                metrics::dead_lettered(source, reason.as_str());
                tracing::error!(
                    source, message_id = %id, position, reason = reason.as_str(), attempts,
                    error = %error.escape_debug(),
                    "given up; see `outboxd dead show`"
                );
            }
            Outcome::Behind | Outcome::Untouched => {}
        }
    }
    metrics::published(source, &latencies);
}

async fn not_open(link: &mut watch::Receiver<LinkState>) -> LinkState {
    match link.wait_for(|state| *state != LinkState::Open).await {
        Ok(state) => state.clone(),
        Err(_) => LinkState::Closed("the connection ended".to_owned()),
    }
}

fn unusable(state: &LinkState) -> BrokerError {
    match state {
        LinkState::Blocked(why) => BrokerError::Blocked(why.clone()),
        LinkState::Closed(why) => BrokerError::Closed(why.clone()),
        LinkState::Open => BrokerError::Closed("the connection ended".to_owned()),
    }
}

fn report(state: &LinkState) -> LinkReport {
    match state {
        LinkState::Open => LinkReport::Connecting,
        LinkState::Blocked(why) => LinkReport::Blocked(why.clone()),
        LinkState::Closed(why) => LinkReport::Down(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_read_again_at_once_only_if_something_was_settled() {
        assert_eq!(found(Some(false), true, true), Found::Full);
        assert_eq!(found(Some(false), true, false), Found::Unread);
        assert_eq!(found(Some(true), true, true), Found::Some);
        assert_eq!(found(Some(true), true, false), Found::Nothing);
        assert_eq!(found(Some(false), false, true), Found::Nothing);
        assert_eq!(found(Some(true), false, true), Found::Nothing);
        assert_eq!(found(None, true, false), Found::Peer);
    }
}
