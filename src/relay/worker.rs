//! A worker: one PostgreSQL connection and one AMQP connection, and the only place where both meet.
//!
//! Claim, publish, confirm, settle; then again. A crash anywhere rolls the claim back: no lease and no clock. What
//! was published by then is published again: duplicates, at most a batch.

use std::{collections::HashSet, sync::Arc, time::Duration};

use outbox_core::{
    batch::BatchLimit,
    circuit::Task,
    claim::{Claim, Item, Limits},
    low_water,
    message::{Lane, Position},
    outcome::Outcome,
    settlement,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::{
    board::{Found, Taken},
    health::LinkReport,
    publishing::{Decided, publish_claim},
    seats::{Rank, Seated},
    shared::{Shared, reconnect_delay},
    silence,
};
use crate::{
    broker::{BrokerError, LinkState, Publisher, provoked},
    failpoint,
    outbox::{OutboxError, blockers, claim, held, migrate, session::Session, settle, unreadable},
    telemetry::{metrics, relaying},
};

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// `rows`: the messages of the claim.
    #[error("{error}")]
    NotSettled {
        error: OutboxError,
        rows: Vec<Position>,
    },
    /// Both servers are well, and trying again at once would help nobody.
    #[error("{0}")]
    CannotMark(String),
    #[error("a more important task of this relay needs the connection to PostgreSQL")]
    GaveWay,
}

struct Worker {
    shared: Arc<Shared>,
    number: usize,
    stop: CancellationToken,
    session: Option<Seated>,
    publisher: Option<Publisher>,
    /// Sessions of this relay that died without a word.
    fell: watch::Receiver<u64>,
    limit: BatchLimit,
    /// The last connection was closed by something that this worker published on it.
    cautious: bool,
    failures: u32,
}

/// Works until `stop`, through every failure of either server.
pub async fn run(shared: Arc<Shared>, number: usize, stop: CancellationToken) {
    let limit = BatchLimit::new(shared.relay.batch_size);
    let mut worker = Worker {
        fell: shared.silence.subscribe(),
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
            () = session.wanted() => return Err(WorkError::GaveWay),
            // 3. Nor on a session that may be dead.
            () = silence::suspicion(&mut self.fell) => {
                session.probe(shared.source.database.connect_timeout).await?;
                return Ok(());
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
                let (rank, database) = (Rank::worker(self.number), &shared.source.database);
                let session = shared.seats.connect(rank, database, &name, None).await?;
                migrate::require_usable(&session).await?;
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
                    .probe(|state| shared.health.link(self.number, report(state)))
                    .await?;
                Ok::<_, BrokerError>(publisher)
            };
            let publisher = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                () = wanted(self.session.as_ref()) => return Err(WorkError::GaveWay),
                publisher = connecting => publisher?,
            };
            relaying::connected(shared.health.source(), self.number);
            shared.health.link(self.number, LinkReport::Up);
            self.publisher = Some(publisher);
        }
        Ok(true)
    }

    /// Drops what can no longer be trusted, says so once, and backs off.
    async fn fail(&mut self, error: WorkError) {
        if self.gives_way(&error) {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let source = self.shared.health.source();
        match &error {
            WorkError::GaveWay => return,
            WorkError::Outbox(e) | WorkError::NotSettled { error: e, .. } => {
                // The server refused a statement (a lock time-out, a deadlock): the connection itself is good.
                let mended = e.is_statement_refused()
                    && match &self.session {
                        Some(session) => session.rollback().await.is_ok(),
                        None => false,
                    };
                if !mended {
                    self.session = None;
                }
                let rows = match &error {
                    WorkError::NotSettled { rows, .. } => rows.as_slice(),
                    _ => &[],
                };
                self.name_blockers(e, rows).await;
                relaying::postgresql_failed(source, self.number, self.failures, e);
            }
            WorkError::CannotMark(why) => {
                relaying::nothing_published(source, self.number, self.failures, why);
            }
            WorkError::Broker(e) => {
                self.cautious = provoked(e);
                self.publisher = None;
                let report = match e {
                    BrokerError::Blocked(why) => LinkReport::Blocked(why.clone()),
                    other => LinkReport::Down(other.to_string()),
                };
                self.shared.health.link(self.number, report);
                relaying::rabbitmq_failed(source, self.number, self.failures, e);
            }
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = wanted(self.session.as_ref()) => {}
            () = tokio::time::sleep(reconnect_delay(self.failures)) => {}
        }
    }

    /// Somebody holds a lock that the claim needs: who, for the person who must act.
    async fn name_blockers(&self, error: &OutboxError, rows: &[Position]) {
        let Some(session) = self.session.as_ref().filter(|_| error.is_lock()) else {
            return;
        };
        let patience = self.shared.source.database.yielding().lock_timeout;
        let why = match blockers::find_yielding(session, patience, rows).await {
            Ok(found) if !found.is_empty() => format!("locked by {}", blockers::text(&found)),
            Ok(_) | Err(_) => error.to_string(),
        };
        self.shared.health.cannot_mark(&why);
    }

    /// With fewer connections than wanted this worker may have to do without. True when there is no more to say.
    fn gives_way(&mut self, error: &WorkError) -> bool {
        let rank = Rank::worker(self.number);
        let report = match error {
            WorkError::GaveWay => LinkReport::Connecting,
            WorkError::Outbox(e) if e.is_short_of_connections() && rank.is_needed() => {
                self.shared.seats.refuse(rank);
                LinkReport::Down(e.to_string())
            }
            WorkError::Outbox(e) if e.is_short_of_connections() => {
                self.shared.refused(rank, e);
                LinkReport::Connecting
            }
            WorkError::Outbox(e) | WorkError::NotSettled { error: e, .. } => {
                self.shared.silence.note(e);
                return false;
            }
            WorkError::Broker(_) | WorkError::CannotMark(_) => return false,
        };
        // The broker's, too: it may be short of them as well, and another worker have one here.
        (self.session, self.publisher) = (None, None);
        let said = matches!(report, LinkReport::Connecting);
        self.shared.health.link(self.number, report);
        said
    }

    async fn close(self) {
        if let Some(publisher) = self.publisher {
            publisher.close(Duration::from_secs(2)).await;
        }
    }
}

/// A more important task needs this worker's connection to PostgreSQL. Also while the broker is away: that can be long.
async fn wanted(session: Option<&Seated>) {
    match session {
        Some(session) => session.wanted().await,
        None => std::future::pending().await,
    }
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
    let allowed = shared.caution().limit();
    // Messages that are set aside are read again, and must not keep others from being read.
    let aside = shared.caution().aside();
    let messages = allowed.map_or(limit.get(), |n| n.saturating_add(aside).min(limit.get()));
    // One message alone: a read failed, and this may be the one to blame.
    let lanes = match (limit.is_collapsed(), taken.lanes()) {
        (true, [first, ..]) => std::slice::from_ref(first),
        (_, all) => all,
    };
    let span = info_span!("claim", source, lanes = lanes.len());
    let claimed = claim::claim(session, lanes, limits(shared, messages))
        .instrument(span)
        .await;
    let claimed = match claimed {
        Err(error) if error.is_about_a_row() => {
            session.rollback().await?;
            return Box::pin(unreadable(shared, session, limit, taken, error)).await;
        }
        claimed => claimed?,
    };
    let Some(claim) = claimed else {
        taken.give_back(|_| Found::Peer);
        return Ok(None);
    };
    limit.learn(claim.items.len(), claim.cut_short);
    shared.timed_out.cleared(claim.positions(|_| true));
    failpoint::reach("claim.after").await;
    if !claim.items.is_empty() {
        metrics::claimed(source, began.elapsed(), claim.items.len());
    }

    let publishing = Instant::now();
    let span = info_span!("publish", source, messages = claim.items.len());
    let idle_limit = shared.source.database.idle_in_transaction_timeout;
    let deadline = began + idle_limit.mul_f64(0.8);
    let Decided {
        claim,
        lost,
        refused,
    } = publish_claim(shared, session, publisher, claim, allowed, deadline)
        .instrument(span)
        .await?;
    let sent = claim.positions(is_sent).count();
    let published_in = publishing.elapsed();
    if sent > 0 {
        metrics::confirmed(source, published_in);
    }
    failpoint::reach("confirm.before_settle").await;

    let settling = Instant::now();
    let written = settlement::settlement(&claim, low_water::STRIDE);
    if written.is_empty() {
        session.rollback().await?;
    } else {
        let span = info_span!("settle", source, sent = written.sent.len());
        let settled = settle::settle(session, &written, shared.keep, shared.relay.batch_size);
        let settled = Box::pin(settled.instrument(span)).await;
        let corrected = match settled {
            Ok(corrected) => corrected,
            Err(error) => {
                // They were published, and are pending as before.
                if sent > 0 || error.is_statement_refused() {
                    let sent = claim.positions(is_sent);
                    shared.cannot_mark(sent, to_file(&claim), &error.to_string());
                }
                let rows = claim.positions(|_| true).collect();
                return Err(WorkError::NotSettled { error, rows });
            }
        };
        // A message that was corrected proves nothing: it is not marked.
        let marked = sent.saturating_sub(corrected);
        if marked > 0 {
            shared.caution().marked(marked, shared.relay.batch_size);
        }
        let mut caution = shared.caution();
        caution.settled(claim.positions(is_decided));
        caution.settled(claim.orphans.iter().map(|orphan| orphan.position));
        // Not while others are set aside: each claim would say that all is well, and then that it is not.
        let all_well = marked > 0 && caution.aside() == 0;
        drop(caution);
        if all_well {
            shared.health.marked();
        }
        metrics::settled(source, settling.elapsed());
        // The database's clock was read in the middle of the claim, about.
        let confirmed_after = publishing.duration_since(began) / 2 + published_in;
        relaying::settled(source, &claim, confirmed_after);
        shared
            .hints
            .moved(claim.orphans.iter().map(|o| o.position.id));
    }
    release_held(shared, session).await?;

    let worked: HashSet<Lane> = claim.positions(|_| true).map(|p| p.lane).collect();
    let settled = lost.is_none() && claim.positions(is_decided).next().is_some();
    // A lane that had something is read until it has nothing; one that a broken link left alone waits for the scout.
    let asked: HashSet<Lane> = lanes.iter().copied().collect();
    let left = claim.items.iter().filter(|item| item.is_left());
    let left: HashSet<Lane> = left.map(|item| item.position().lane).collect();
    taken.give_back(|lane| {
        if !asked.contains(&lane) {
            return Found::Unread;
        }
        let read = claim.lanes.iter().find(|read| read.lane == lane);
        let exhausted = read.map(|read| read.exhausted && !left.contains(&lane));
        found(exhausted, settled, worked.contains(&lane))
    });
    if refused && sent == 0 {
        let why = "none of the claim's messages can be settled".to_owned();
        return Err(WorkError::CannotMark(why));
    }
    Ok(lost)
}

fn is_sent(outcome: &Outcome) -> bool {
    *outcome == Outcome::Sent
}

fn is_decided(outcome: &Outcome) -> bool {
    *outcome != Outcome::Untouched
}

fn limits(shared: &Shared, messages: usize) -> Limits {
    Limits {
        fresh: messages,
        batch_size: messages,
        batch_bytes: shared.relay.batch_bytes,
        max_payload_bytes: shared.relay.max_payload_bytes,
    }
}

/// Messages that the settle files as waiting or dead, or whose record it removes because they were deleted.
fn to_file(claim: &Claim) -> impl Iterator<Item = Position> {
    let items = claim.items.iter().filter(|item| {
        let waits = item.candidate.scheduled && !item.is_left();
        waits || is_decided(item.outcome()) && !is_sent(item.outcome())
    });
    let orphans = claim.orphans.iter().map(|orphan| orphan.position);
    items.map(Item::position).chain(orphans)
}

/// A claim's read failed, and not for want of a server: from now on one message at a time, until one fails alone. That one
/// is given up. A time-out must happen twice to the same message: a server that stood still once is not its fault.
async fn unreadable(
    shared: &Shared,
    session: &Session,
    limit: &mut BatchLimit,
    taken: Taken<'_>,
    error: OutboxError,
) -> Result<Option<BrokerError>, WorkError> {
    let source = shared.health.source();
    let alone = limit.is_collapsed();
    limit.collapse();
    let Some(lane) = taken.lanes().first().copied().filter(|_| alone) else {
        relaying::unreadable_claim(source, &error);
        taken.give_back(|_| Found::Unread);
        return Ok(None);
    };
    let Some(position) = unreadable::first(session, lane).await? else {
        // Nothing is there to blame, or another relay has the lane: no reason to hurry.
        return Err(error.into());
    };
    if error.may_be_the_servers() && !shared.timed_out.again(position) {
        return Err(error.into());
    }
    if Box::pin(unreadable::mark_dead(session, position, &error.to_string())).await? {
        relaying::unreadable_message(source, position, &error);
    }
    taken.give_back(|_| Found::Unread);
    Ok(None)
}

/// Destinations that work again get their held messages back, as fast as those before them go out.
async fn release_held(shared: &Shared, session: &Session) -> Result<(), OutboxError> {
    let releases = shared.circuits().releases();
    for task in releases {
        let Task::Release(destination, rows) = task else {
            continue;
        };
        match held::release(session, destination, rows).await {
            // The claim is settled, and so will the next one be: its messages need no release.
            Err(error) if error.is_statement_refused() => {
                shared.health.cannot_mark(&error.to_string());
            }
            released => shared
                .circuits()
                .released(destination, rows, released?),
        }
    }
    Ok(())
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
