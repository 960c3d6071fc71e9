//! The scout: finds lanes with work for the workers, and sleeps when there is none.
//!
//! Polling is the truth. While there is traffic it polls every few milliseconds; when there is none, ever more
//! rarely up to `relay.poll_interval`, and asleep in a way that a producer's commit wakes it (`outbox::wake`).

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    board::LANES,
    worker::{Shared, reconnect_delay},
};
use crate::{
    message::Lane,
    outbox::{
        OutboxError,
        claim::{self, Limits},
        migrate,
        session::Session,
        settle, wake, work,
    },
    settlement,
};

/// Between two polls while there is traffic.
const BUSY_POLL: Duration = Duration::from_millis(5);
/// Without a place to sleep (another relay has it), idle polls are no rarer than this.
const AWAKE_POLL: Duration = Duration::from_millis(250);
/// Idle for so long, it is worth an attempt to sleep.
const DROWSY: Duration = Duration::from_millis(20);
/// The marks are tidied no more often than this: it locks every lane for a moment.
const TIDY: Duration = Duration::from_secs(30);

pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = watch(&shared, &mut failures) => result,
        };
        if let Err(error) = result {
            failures = failures.saturating_add(1);
            let source = shared.health.source();
            shared.health.database_down(error.to_string());
            if error.is_schema() {
                tracing::error!(source, failures, error = %error, "the outbox cannot be read; backing off");
            } else {
                tracing::warn!(source, failures, error = %error, "PostgreSQL failed; backing off");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(reconnect_delay(failures)) => {}
            }
        }
    }
}

async fn watch(shared: &Shared, failures: &mut u32) -> Result<(), OutboxError> {
    let database = &shared.source.database;
    let (sender, mut notified) = mpsc::channel(1);
    let name = format!("{}/scout", shared.instance);
    let session = Session::connect_with_notifications(database, &name, Some(sender)).await?;
    migrate::require_known(&session).await?;
    if database.listen {
        wake::listen(&session).await?;
    }
    shared.health.database_up();
    *failures = 0;

    let longest = shared.relay.poll_interval;
    let mut pause = BUSY_POLL;
    let mut idle_since = Instant::now();
    let mut asleep = false;
    let mut untidy = true;
    let mut tidied_at: Option<Instant> = None;
    loop {
        let work = work::find(&session).await?;
        if asleep && !work.lanes.is_empty() {
            wake::get_up(&session).await?;
            asleep = false;
        }
        // Lanes that nobody takes, because the broker is away, are no reason to hurry.
        if shared.board.offer(work.lanes) || shared.board.is_worked() {
            pause = BUSY_POLL.min(longest);
            idle_since = Instant::now();
            untidy = true;
        } else {
            pause = (pause * 2).min(longest);
        }

        if !asleep && database.listen && idle_since.elapsed() >= DROWSY && shared.board.is_quiet() {
            asleep = wake::try_sleep(&session).await?;
            if asleep {
                // What was committed before the lock was ours did not notify: look again before sleeping.
                continue;
            }
        }
        if untidy && pause >= longest && tidied_at.is_none_or(|at| at.elapsed() >= TIDY) {
            Box::pin(tidy_marks(&session)).await?;
            tidied_at = Some(Instant::now());
            untidy = false;
        }

        let cap = if asleep || !database.listen {
            longest
        } else {
            AWAKE_POLL.min(longest)
        };
        let nap = if asleep { cap } else { pause.min(cap) };
        let nap = work
            .next_due
            .map_or(nap, |due| nap.min(due.max(Duration::from_millis(1))));
        tokio::select! {
            biased;
            () = session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "wait for work", why });
            }
            // Only a sleeper polls at once: while awake, a notification is for another relay that sleeps.
            Some(()) = notified.recv() => pause = BUSY_POLL.min(longest),
            () = tokio::time::sleep(nap) => {}
        }
    }
}

/// After a burst, lets the marks catch up with what was settled, so that idle polls read nothing twice. It takes
/// three claims to move a mark (see `outbox::low_water`).
async fn tidy_marks(session: &Session) -> Result<(), OutboxError> {
    let limits = Limits {
        per_lane: 1,
        batch_size: LANES,
        batch_bytes: 1,
        max_payload_bytes: 0,
    };
    let lanes: Vec<Lane> = (0..).take(LANES).collect();
    for _ in 0..3 {
        let Some(claim) = claim::claim(session, &lanes, limits).await? else {
            return Ok(());
        };
        let outcomes = vec![crate::outcome::Outcome::Untouched; claim.candidates.len()];
        let mut marks = settlement::settlement(&claim, &outcomes, 1);
        marks.unfile.clear();
        if marks.is_empty() {
            return session.rollback().await;
        }
        settle::settle(session, &marks, settle::Keep::Marked, 0).await?;
    }
    Ok(())
}
