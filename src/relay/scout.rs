//! The scout: polls the database for lanes with work, offers them to the workers, puts the relay to sleep when there is no
//! work, and tidies marks.
//!
//! `outbox_core::scheduling` decides which lanes it polls, and when.

use std::sync::Arc;

use outbox_core::{
    caution::PassedOver,
    claim::Limits,
    message::Lane,
    scheduling::{LANES, Pause, Polling, Tidied},
    settlement::{self, Settlement},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    connections::{PermittedSession, Priority},
    context::{Context, reconnect_delay},
    outages::Failing,
    silence,
};
use crate::{
    outbox::{
        OutboxError, audit, claim, migrate,
        session::Session,
        settle, wake,
        work::{self, Work},
    },
    telemetry::metrics,
};

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = watch(&context, &mut failures) => result,
        };
        if let Err(error) = result {
            failures = failures.saturating_add(1);
            context.silence.note(&error);
            if error.is_short_of_connections() {
                context.connections.refused(Priority::SCOUT);
            }
            context.health.database_down(error.to_string());
            context.failed(Failing::PostgreSql, Priority::SCOUT, &error.to_string());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(reconnect_delay(failures)) => {}
            }
        }
    }
}

/// Polls on one connection until that fails.
async fn watch(context: &Context, failures: &mut u32) -> Result<(), OutboxError> {
    let mut scout = Scout::connect(context).await?;
    let mut up = false;
    loop {
        // Before the poll: what was committed before the relay fell asleep did not notify.
        let asleep = *scout.sleeping.borrow_and_update();
        scout.polling.begin(now());
        let lanes = context.lanes.to_poll();
        let another_relay_works = context.lanes.another_relay_works();
        let work = scout.query(&lanes).await?;
        if !up {
            // Not before the first query: the server may accept a connection, and refuse to read.
            context.health.database_up();
            (up, *failures) = (true, 0);
            context.works(Priority::SCOUT);
        }
        let found = !work.lanes.is_empty();
        let news = context.lanes.offer(work.lanes);
        let traffic = news || context.lanes.any_taken() || another_relay_works;
        scout.polling.polled(traffic, now());
        let asleep = scout.sleep_when_idle(asleep, found).await?;
        scout.tidy_when_due().await?;
        let pause = scout.polling.pause(asleep, work.next_due, now());
        scout.wait(pause).await?;
    }
}

/// The scout on one connection.
struct Scout<'c> {
    context: &'c Context,
    session: PermittedSession,
    polling: Polling,
    /// Whether the relay sleeps.
    sleeping: watch::Receiver<bool>,
    /// Sessions of this relay that fell silent.
    silent: watch::Receiver<u64>,
    notifications_pile_up: bool,
}

impl<'c> Scout<'c> {
    async fn connect(context: &'c Context) -> Result<Self, OutboxError> {
        let database = &context.source.database;
        let name = format!("{}/scout", context.instance);
        let connecting = context
            .connections
            .connect(Priority::SCOUT, database, &name, None);
        let session = connecting.await?;
        migrate::require_usable(&session).await?;
        let poll_interval = context.relay.poll_interval;
        Ok(Self {
            context,
            session,
            polling: Polling::new(context.tuning, poll_interval, database.listen, now()),
            sleeping: context.sleep.asleep(),
            silent: context.silence.subscribe(),
            notifications_pile_up: false,
        })
    }

    async fn query(&mut self, lanes: &[Lane]) -> Result<Work, OutboxError> {
        if lanes.is_empty() {
            return Ok(Work::default());
        }
        let asked = Instant::now();
        let within = self.context.source.database.connect_timeout;
        let work = tokio::select! {
            work = work::find(&self.session, lanes) => work?,
            // When another session has fallen silent, the scout does not wait for a whole time-out of its own.
            () = silence::overdue(&mut self.silent, within) => {
                let action = "look for work";
                return Err(OutboxError::Timeout { action, after: within });
            }
        };
        self.silent.mark_unchanged();
        self.polling.queried(asked.elapsed());
        if !work.missing.is_empty() {
            put_back(&self.session, self.context, &work.missing).await?;
        }
        Ok(work)
    }

    /// Tells the listener whether the relay is to sleep. True while it sleeps, and may go on.
    async fn sleep_when_idle(&mut self, asleep: bool, found: bool) -> Result<bool, OutboxError> {
        let quiet = self.context.lanes.is_quiet();
        let may_sleep = self.polling.may_sleep(asleep, found, quiet, now());
        if may_sleep {
            let piled_up = self.notifications_pile_up;
            self.notifications_pile_up = wake::is_queue_filling(&self.session).await?;
            if self.notifications_pile_up && !piled_up {
                tracing::warn!(
                    source = self.context.health.source(),
                    "the server's notification queue is filling up: some session listens and does not read (query in \
                     docs/operating/security.md). The relay stays awake, so that producers need not notify"
                );
            }
        }
        let wanted = may_sleep && !self.notifications_pile_up;
        self.context.sleep.want(wanted);
        Ok(asleep && wanted)
    }

    async fn tidy_when_due(&mut self) -> Result<(), OutboxError> {
        if self.polling.is_tidy_due(now()) {
            let step = Box::pin(tidy(&self.session)).await?;
            self.polling.tidied(step, now());
        }
        Ok(())
    }

    async fn wait(&mut self, pause: Pause) -> Result<(), OutboxError> {
        let sleep = &self.context.sleep;
        tokio::select! {
            biased;
            () = self.session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "wait for work", why });
            }
            // Only a relay that sleeps polls at once: while it is awake, a notification is for another relay that sleeps.
            () = async {
                sleep.notified().await;
                tokio::time::sleep_until(Instant::from_std(pause.not_before)).await;
            } => self.polling.notified(),
            Ok(()) = self.sleeping.changed() => {}
            () = tokio::time::sleep(pause.length) => {}
        }
        Ok(())
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Somebody deleted or truncated rows of `outbox.lane`. Without its row, no relay reads a lane.
async fn put_back(
    session: &Session,
    context: &Context,
    missing: &[Lane],
) -> Result<(), OutboxError> {
    let source = context.health.source();
    let lanes = audit::add_lanes(session, missing).await?;
    if lanes > 0 {
        metrics::lanes_restored(source, lanes);
        tracing::error!(
            source,
            lanes,
            "rows of outbox.lane were missing; they are put back, and their lanes are read from the beginning"
        );
        context.hints.alarm();
    }
    Ok(())
}

/// After a burst, moves the marks up to what was settled: then idle polls read nothing twice, and retention may delete. It
/// takes two claims to move a mark (see `outbox_core::low_water`); this is one of them.
async fn tidy(session: &Session) -> Result<Tidied, OutboxError> {
    let untidy = work::untidy(session).await?;
    if untidy.is_empty() {
        return Ok(Tidied::Done);
    }
    let lanes: Vec<Lane> = untidy.keys().copied().collect();
    let limits = Limits {
        fresh: lanes.len(),
        batch_size: 4 * LANES,
        batch_bytes: u64::MAX,
        max_payload_bytes: 0,
    };
    let claim = match claim::claim(session, &lanes, limits, &PassedOver::default()).await {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(Tidied::Held),
        // A person or a migration locks a table (TRUNCATE, CREATE INDEX). Marks can wait.
        Err(error) if error.is_lock() => {
            session.rollback().await?;
            return Ok(Tidied::Held);
        }
        Err(error) => return Err(error),
    };
    let settlement = Settlement {
        marks: settlement::tidied(&claim, &untidy),
        ..Settlement::default()
    };
    if settlement.is_empty() {
        session.rollback().await?;
        return Ok(Tidied::Held);
    }
    settle::settle(session, &settlement, settle::Keep::Marked, 0).await?;
    Ok(Tidied::Partly)
}
