//! The scout: finds lanes with work for the workers, and sleeps when there is none.
//!
//! Polling is the truth. While there is traffic it polls every few milliseconds; when there is none, ever more
//! rarely up to `relay.poll_interval`, and asleep in a way that a producer's commit wakes it (`outbox::wake`).

use std::{sync::Arc, time::Duration};

use outbox_core::{
    claim::Limits,
    message::Lane,
    settlement::{self, Settlement},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    board::LANES,
    seats::Rank,
    shared::{Shared, reconnect_delay},
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

/// Between two polls while there is traffic.
const BUSY_POLL: Duration = Duration::from_millis(5);
/// Naps are so many times longer than looks at least: a sixth of one core. Where a transaction has written a million
/// messages and is still open, every look passes over them for seconds.
const LOOKING: u32 = 5;
/// But what is new waits no longer than this for the next look, and for as long as a look takes.
const LONGEST_NAP: Duration = Duration::from_secs(10);
/// Without a place to sleep (another relay has it), idle polls are no rarer than this.
const AWAKE_POLL: Duration = Duration::from_millis(250);
/// Idle for so long, it is worth an attempt to sleep.
const DROWSY: Duration = Duration::from_millis(20);
/// Idle for so long, the marks are tidied, step by step.
const TIDY_AFTER: Duration = Duration::from_secs(1);
const TIDY_STEP: Duration = Duration::from_millis(100);
/// Between two rounds of tidying, and while it is held up.
const TIDY_PAUSE: Duration = Duration::from_secs(10);

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
            shared.silence.note(&error);
            if error.is_short_of_connections() {
                shared.seats.refuse(Rank::SCOUT);
            }
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
    let name = format!("{}/scout", shared.instance);
    let connecting = shared.seats.connect(Rank::SCOUT, database, &name, None);
    let session = connecting.await?;
    migrate::require_usable(&session).await?;
    let mut up = false;

    let longest = shared.relay.poll_interval;
    let mut pause = BUSY_POLL;
    let mut idle_since = Instant::now();
    let mut sleeping = shared.sleep.asleep();
    let mut filling = false;
    let mut fell = shared.silence.subscribe();
    // What the last two took.
    let mut looks = [Duration::ZERO; 2];
    // When the next step of tidying is due; None when there is nothing to tidy.
    let mut tidy_due = Some(Instant::now() + TIDY_AFTER);
    let mut tidied_at: Option<Instant> = None;
    loop {
        // Before looking: what was committed before we fell asleep did not notify.
        let mut asleep = *sleeping.borrow_and_update();
        let looked_at = Instant::now();
        let lanes = shared.board.to_look_at();
        let shares = shared.board.has_working_peer();
        let work = if lanes.is_empty() {
            Work::default()
        } else {
            let within = database.connect_timeout;
            let work = tokio::select! {
                work = work::find(&session, &lanes) => work?,
                // Not a whole time-out after the others.
                () = silence::doubt(&mut fell, within) => {
                    let action = "look for work";
                    return Err(OutboxError::Timeout { action, after: within });
                }
            };
            fell.mark_unchanged();
            looks = [looks[1], looked_at.elapsed()];
            if !work.missing.is_empty() {
                put_back(&session, shared, &work.missing).await?;
            }
            work
        };
        if !up {
            // Only now: it may connect, and not read.
            shared.health.database_up();
            (up, *failures) = (true, 0);
        }
        let found = !work.lanes.is_empty();
        // Lanes that nobody takes, because the broker is away, are no reason to hurry.
        if shared.board.offer(work.lanes) || shared.board.is_worked() || shares {
            pause = BUSY_POLL.min(longest);
            idle_since = Instant::now();
            let earliest = tidied_at.map_or(idle_since, |at| at + TIDY_PAUSE);
            tidy_due = Some(earliest.max(idle_since + TIDY_AFTER));
        } else {
            pause = (pause * 2).min(longest);
        }

        let drowsy = idle_since.elapsed() >= DROWSY && shared.board.is_quiet();
        if database.listen && !found && (asleep || drowsy) {
            let was_filling = filling;
            filling = wake::is_queue_filling(&session).await?;
            if filling && !was_filling {
                tracing::warn!(
                    source = shared.health.source(),
                    "the server's notification queue is filling up: some session listens and does not read (query in \
                     docs/operating/security.md). The relay stays awake, so that producers need not notify"
                );
            }
        }
        asleep &= !found && !filling;
        shared
            .sleep
            .want(database.listen && !filling && !found && (asleep || drowsy));
        if tidy_due.is_some_and(|due| Instant::now() >= due) {
            tidy_due = match Box::pin(tidy(&session)).await? {
                Tidied::Partly => Some(Instant::now() + TIDY_STEP),
                Tidied::Held => Some(Instant::now() + TIDY_PAUSE),
                Tidied::Done => {
                    tidied_at = Some(Instant::now());
                    None
                }
            };
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
        let nap = tidy_due.map_or(nap, |due| {
            nap.min(due.saturating_duration_since(Instant::now()))
        });
        let least = least_nap(looks);
        let nap = nap.max(least);
        // Whoever may connect may notify: that does not make us look more often than work does.
        let earliest = looked_at + least.max(BUSY_POLL);
        tokio::select! {
            biased;
            () = session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "wait for work", why });
            }
            // Only a sleeper polls at once: while awake, a notification is for another relay that sleeps.
            () = async {
                shared.sleep.heard().await;
                tokio::time::sleep_until(earliest).await;
            } => pause = BUSY_POLL.min(longest),
            Ok(()) = sleeping.changed() => {}
            () = tokio::time::sleep(nap) => {}
        }
    }
}

/// Lanes that somebody has deleted, or truncated. Without them their messages would be nobody's.
async fn put_back(session: &Session, shared: &Shared, missing: &[Lane]) -> Result<(), OutboxError> {
    let source = shared.health.source();
    let lanes = audit::add_lanes(session, missing).await?;
    if lanes > 0 {
        metrics::lanes_restored(source, lanes);
        tracing::error!(
            source,
            lanes,
            "rows of outbox.lane were missing; they are put back, and their lanes are read from the beginning"
        );
        shared.hints.alarm();
    }
    Ok(())
}

/// After two looks that took so long. Whatever it costs, looking is a small part of the work; but a server that stood still
/// once, and is back, is looked at as soon as ever.
fn least_nap(looks: [Duration; 2]) -> Duration {
    let took = looks[0].min(looks[1]);
    (took * LOOKING).min(LONGEST_NAP)
}

/// After a burst, lets the marks catch up with what was settled, so that idle polls read nothing twice and retention
/// may delete. It takes two claims to move a mark (see `outbox_core::low_water`); this is one of them.
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
    let claim = match claim::claim(session, &lanes, limits).await {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(Tidied::Held),
        // Somebody has locked a table for a moment (a TRUNCATE, CREATE INDEX): marks can wait.
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

enum Tidied {
    Done,
    Partly,
    /// By a writing transaction that is still open, or a peer that works.
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_no_more_than_its_part_of_a_core() {
        for ms in [1, 10, 100, 1000, 2000] {
            let took = Duration::from_millis(ms);
            let part = took.as_secs_f64() / (took + least_nap([took; 2])).as_secs_f64();
            assert!(part <= 1.0 / 6.0 + 1e-9, "{part} of a core after {took:?}");
        }
        assert_eq!(least_nap([Duration::from_secs(30); 2]), LONGEST_NAP);
    }

    #[test]
    fn a_server_that_stood_still_once_is_looked_at_soon() {
        let (quick, stood_still) = (Duration::from_millis(1), Duration::from_secs(20));
        assert_eq!(least_nap([quick, stood_still]), quick * LOOKING);
        assert_eq!(least_nap([stood_still, quick]), quick * LOOKING);
    }
}
