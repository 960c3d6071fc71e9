//! A worker: one PostgreSQL connection and one AMQP connection, and the only place where both meet.
//!
//! It claims, publishes, awaits the confirms and settles, again and again. A crash anywhere rolls the claim back: there is no
//! lease and no clock. What was published before the crash is published again: at most a batch of duplicates.

use std::{collections::HashSet, sync::Arc, time::Duration};

use outbox_core::{
    backoff,
    claim::{Claim, Limits},
    message::{Lane, Position},
    scheduling::{BatchLimit, LaneResult},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::{
    circuits,
    connections::{PermittedSession, Priority},
    context::{Context, FIRST_PAUSE, reconnect_delay},
    health::LinkReport,
    lanes::TakenLanes,
    outages::Failing,
    publishing::{Decided, publish_claim},
    reading,
    settling::{NotSettled, is_decided, is_sent, settle},
    silence,
};
use crate::{
    broker::{BrokerError, LinkState, Publisher, provoked},
    failpoint,
    outbox::{OutboxError, blockers, claim, migrate, session::Session},
    telemetry::{metrics, relaying},
};

/// Messages that a cautious claim reads at least, even if it may publish one: those whose rehearsal fails are due again and
/// again, and must not be all that it reads.
const CAUTIOUS_READ: usize = 16;

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    NotSettled(#[from] NotSettled),
    /// Both servers work; a retry at once would fail in the same way.
    #[error("{0}")]
    CannotMark(String),
    #[error("a more important task of this relay needs the connection to PostgreSQL")]
    Preempted,
}

struct Worker {
    context: Arc<Context>,
    number: usize,
    stop: CancellationToken,
    session: Option<PermittedSession>,
    publisher: Option<Publisher>,
    /// Sessions of this relay that fell silent.
    silent: watch::Receiver<u64>,
    limit: BatchLimit,
    /// The broker closed the last connection because of something that this worker published on it.
    cautious: bool,
    failures: u32,
}

/// Works until `stop`. No failure of a server ends it.
pub async fn run(context: Arc<Context>, number: usize, stop: CancellationToken) {
    let limit = BatchLimit::new(context.tuning, context.relay.batch_size);
    // A worker that panicked may have failed before.
    context.works(Priority::worker(number));
    let mut worker = Worker {
        silent: context.silence.subscribe(),
        context,
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
            Ok(()) => worker.works(),
            Err(error) => worker.fail(error).await,
        }
    }
    worker.close().await;
}

impl Worker {
    fn works(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.context.works(Priority::worker(self.number));
        }
    }

    /// Makes the connections that are missing, waits for lanes, and works them once.
    async fn work(&mut self) -> Result<(), WorkError> {
        if !self.connect().await? {
            return Ok(());
        }
        let (Some(session), Some(publisher)) = (&self.session, &mut self.publisher) else {
            return Ok(());
        };
        let context = Arc::clone(&self.context);
        let mut link = publisher.state();
        let taken = tokio::select! {
            biased;
            // 1. After a stop, nothing new is claimed.
            () = self.stop.cancelled() => return Ok(()),
            // 2. Without both servers, nothing is claimed.
            state = not_open(&mut link) => return Err(unusable(&state).into()),
            () = session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "wait for work", why }.into());
            }
            () = session.preempted() => return Err(WorkError::Preempted),
            // 3. On a session that may be dead, nothing is claimed.
            () = silence::check_due(&mut self.silent) => {
                session.probe(context.source.database.connect_timeout).await?;
                return Ok(());
            }
            taken = context.lanes.take() => taken,
        };
        let result = Box::pin(cycle(&context, session, publisher, &mut self.limit, taken)).await;
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
        let context = &self.context;
        let name = format!("{}/{}", context.instance, self.number);
        let connects = self.session.is_none() || self.publisher.is_none();
        if self.session.is_none() {
            let connecting = async {
                let (priority, database) =
                    (Priority::worker(self.number), &context.source.database);
                let connecting = context.connections.connect(priority, database, &name, None);
                let session = connecting.await?;
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
                let confirm_timeout = context.relay.confirm_timeout;
                let mut publisher = Publisher::connect(
                    &context.source.broker,
                    &name,
                    confirm_timeout,
                    self.cautious,
                )
                .await?;
                if context.source.broker.declare {
                    publisher.declare(&context.exchanges).await?;
                }
                publisher
                    .probe(|state| context.health.link(self.number, report(state)))
                    .await?;
                Ok::<_, BrokerError>(publisher)
            };
            let publisher = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                () = preempted(self.session.as_ref()) => return Err(WorkError::Preempted),
                publisher = connecting => publisher?,
            };
            if self.failures == 0 {
                relaying::connected(context.health.source(), self.number);
            }
            context.health.link(self.number, LinkReport::Up);
            self.publisher = Some(publisher);
        }
        // An idle worker proves no more than this.
        if connects {
            context.connected(Priority::worker(self.number));
        }
        Ok(true)
    }

    /// Drops the connections that may be broken, logs the failure once, and backs off.
    async fn fail(&mut self, error: WorkError) {
        if self.lacks_connection(&error) {
            self.context.works(Priority::worker(self.number));
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let task = Priority::worker(self.number);
        match &error {
            WorkError::Preempted => return,
            WorkError::Outbox(e) | WorkError::NotSettled(NotSettled { error: e, .. }) => {
                // The server refused a statement (a lock time-out, a deadlock): the connection itself still works.
                let usable = e.is_statement_refused()
                    && match &self.session {
                        Some(session) => session.rollback().await.is_ok(),
                        None => false,
                    };
                if !usable {
                    self.session = None;
                }
                let rows = match &error {
                    WorkError::NotSettled(NotSettled { rows, .. }) => rows.as_slice(),
                    _ => &[],
                };
                self.name_blockers(e, rows).await;
                self.context
                    .failed(Failing::PostgreSql, task, &e.to_string());
            }
            WorkError::CannotMark(why) => {
                self.context.failed(Failing::Publishing, task, why);
            }
            WorkError::Broker(e) => {
                self.cautious = provoked(e);
                self.publisher = None;
                let report = match e {
                    BrokerError::Blocked(why) => LinkReport::Blocked(why.clone()),
                    other => LinkReport::Down(other.to_string()),
                };
                self.context.health.link(self.number, report);
                self.context.failed(Failing::RabbitMq, task, &e.to_string());
            }
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = preempted(self.session.as_ref()) => {}
            () = tokio::time::sleep(self.pause(&error)) => {}
        }
    }

    /// Each refused COMMIT costs a duplicate, which no rehearsal shows beforehand. So while no mark is committed, all workers
    /// try less and less often.
    fn pause(&self, error: &WorkError) -> Duration {
        match error {
            WorkError::NotSettled(NotSettled { error, .. }) if error.is_refused_commit() => {
                let refused = self.context.caution().refused_commits();
                let longest = self.context.relay.backoff_max;
                backoff::delay(refused, FIRST_PAUSE, longest, &mut rand::rng())
            }
            _ => reconnect_delay(self.failures),
        }
    }

    /// Another session holds a lock that the claim needs. The operator must know which session.
    async fn name_blockers(&self, error: &OutboxError, rows: &[Position]) {
        let Some(session) = self.session.as_ref().filter(|_| error.is_lock()) else {
            return;
        };
        let lock_timeout = self.context.source.database.yielding().lock_timeout;
        let why = match blockers::find_yielding(session, lock_timeout, rows).await {
            Ok(found) if !found.is_empty() => format!("locked by {}", blockers::text(&found)),
            Ok(_) | Err(_) => error.to_string(),
        };
        let rows = rows.iter().copied();
        self.context.cannot_mark(rows, &why, Duration::ZERO);
    }

    /// The server has too few connections, and this worker goes without one. True when `fail` need not log the error nor
    /// back off.
    fn lacks_connection(&mut self, error: &WorkError) -> bool {
        let priority = Priority::worker(self.number);
        let report = match error {
            WorkError::Preempted => LinkReport::Connecting,
            WorkError::Outbox(e) if e.is_short_of_connections() && priority.is_needed() => {
                self.context.connections.refused(priority);
                LinkReport::Down(e.to_string())
            }
            WorkError::Outbox(e) if e.is_short_of_connections() => {
                self.context.refused(priority, e);
                LinkReport::Connecting
            }
            WorkError::Outbox(e) | WorkError::NotSettled(NotSettled { error: e, .. }) => {
                self.context.silence.note(e);
                return false;
            }
            WorkError::Broker(_) | WorkError::CannotMark(_) => return false,
        };
        // The connection to the broker is given up too: the broker may be short of connections, and another worker may have
        // a session and need one.
        (self.session, self.publisher) = (None, None);
        let handled = matches!(report, LinkReport::Connecting);
        self.context.health.link(self.number, report);
        handled
    }

    async fn close(self) {
        if let Some(publisher) = self.publisher {
            publisher.close(Duration::from_secs(2)).await;
        }
    }
}

/// Resolves when a task of higher priority needs this worker's connection to PostgreSQL. Awaited while the broker is away as
/// well: it can be away for long.
async fn preempted(session: Option<&PermittedSession>) {
    match session {
        Some(session) => session.preempted().await,
        None => std::future::pending().await,
    }
}

/// One claim, from its lanes to its commit. `Some` when the connection to the broker was lost meanwhile: what was confirmed
/// before is settled nevertheless.
async fn cycle(
    context: &Context,
    session: &Session,
    publisher: &mut Publisher,
    limit: &mut BatchLimit,
    taken: TakenLanes<'_>,
) -> Result<Option<BrokerError>, WorkError> {
    let source = context.health.source();
    let began = Instant::now();
    // Some of the messages that are set aside are read again, and must not keep the claim from reading others.
    let (allowed, aside) = {
        let mut caution = context.caution();
        caution.forget(began.into_std());
        (caution.limit(), caution.aside())
    };
    let messages = allowed.map_or(limit.get(), |n| {
        n.max(CAUTIOUS_READ).saturating_add(aside).min(limit.get())
    });
    // A read failed. The next claim reads one message, to find the one that cannot be read.
    let lanes = match (limit.is_collapsed(), taken.lanes()) {
        (true, [first, ..]) => std::slice::from_ref(first),
        (_, all) => all,
    };
    let span = info_span!("claim", source, lanes = lanes.len());
    let now = began.into_std();
    let passed_over = context
        .caution()
        .passed_over(lanes, messages, now, &mut rand::rng());
    let claimed = claim::claim(session, lanes, limits(context, messages), &passed_over)
        .instrument(span)
        .await;
    let read_at = Instant::now();
    let claimed = match claimed {
        Err(error) if error.is_statement_refused() => {
            let judged = reading::refused(context, session, limit, taken, &passed_over, error);
            return Ok(Box::pin(judged).await.map(|()| None)?);
        }
        claimed => claimed?,
    };
    let Some(claim) = claimed else {
        taken.release(|_| LaneResult::HeldElsewhere);
        return Ok(None);
    };
    limit.learn(claim.items.len(), claim.cut_short);
    context.timed_out.cleared(claim.positions(|_| true));
    failpoint::reach("claim.after").await;
    if !claim.items.is_empty() {
        metrics::claimed(source, began.elapsed(), claim.items.len());
    }

    let publishing = Instant::now();
    let span = info_span!("publish", source, messages = claim.items.len());
    let Decided {
        mut claim,
        lost,
        refused,
        set_aside,
    } = publish_claim(context, session, publisher, claim, allowed, read_at)
        .instrument(span)
        .await?;
    let published_in = publishing.elapsed();
    if claim.positions(is_sent).next().is_some() {
        metrics::confirmed(source, published_in);
    }
    failpoint::reach("confirm.before_settle").await;

    // The claim read the database's clock at about half of its time.
    let confirmed_after = publishing.duration_since(began) / 2 + published_in;
    settle(context, session, &mut claim, confirmed_after).await?;
    circuits::release(context, session).await?;

    // After a message was set aside, the next claim reads others: thousands may stand before one that can be sent.
    let settled = lost.is_none() && (set_aside || claim.positions(is_decided).next().is_some());
    let asked = lanes.iter().copied().collect();
    release(taken, &asked, &claim, settled);
    let sent = claim.positions(is_sent).count();
    if refused && sent == 0 && !set_aside {
        let why = "none of the claim's messages can be settled".to_owned();
        return Err(WorkError::CannotMark(why));
    }
    Ok(lost)
}

/// `asked`: the lanes that the claim asked for. `settled`: it achieved something.
fn release(taken: TakenLanes<'_>, asked: &HashSet<Lane>, claim: &Claim, settled: bool) {
    let worked: HashSet<Lane> = claim.positions(|_| true).map(|p| p.lane).collect();
    // A lane is read again until it is empty. After a lost connection to the broker, it waits for the scout.
    let left = claim.items.iter().filter(|item| item.is_left());
    let left: HashSet<Lane> = left.map(|item| item.position().lane).collect();
    taken.release(|lane| {
        if !asked.contains(&lane) {
            return LaneResult::Unread;
        }
        let read = claim.lanes.iter().find(|read| read.lane == lane);
        let exhausted = read.map(|read| read.exhausted && !left.contains(&lane));
        lane_result(exhausted, settled, worked.contains(&lane))
    });
}

fn limits(context: &Context, messages: usize) -> Limits {
    Limits {
        fresh: messages,
        batch_size: messages,
        batch_bytes: context.relay.batch_bytes,
        max_payload_bytes: context.relay.max_payload_bytes,
    }
}

/// The result of a lane that the claim asked for. `exhausted`: the claim read all of it; `None`: the claim did not hold it.
fn lane_result(exhausted: Option<bool>, settled: bool, worked: bool) -> LaneResult {
    match exhausted {
        Some(false) if settled && worked => LaneResult::Backlog,
        Some(false) if settled => LaneResult::Unread,
        Some(true) if settled && worked => LaneResult::Drained,
        Some(_) => LaneResult::Empty,
        None => LaneResult::HeldElsewhere,
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
        assert_eq!(lane_result(Some(false), true, true), LaneResult::Backlog);
        assert_eq!(lane_result(Some(false), true, false), LaneResult::Unread);
        assert_eq!(lane_result(Some(true), true, true), LaneResult::Drained);
        assert_eq!(lane_result(Some(true), true, false), LaneResult::Empty);
        assert_eq!(lane_result(Some(false), false, true), LaneResult::Empty);
        assert_eq!(lane_result(Some(true), false, true), LaneResult::Empty);
        assert_eq!(lane_result(None, true, false), LaneResult::HeldElsewhere);
    }
}
