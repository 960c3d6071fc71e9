//! What must happen now and then, on a connection of its own: the gauges, the sign of life in `outbox.relay`, and
//! retention.

use std::{sync::Arc, time::Duration};

use outbox_core::{circuit::Task, message::Lane};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    audit::Audit,
    board::LANES,
    inspection::Inspection,
    seats::Rank,
    shared::{Shared, reconnect_delay},
};
use crate::{
    config::Retention,
    outbox::{OutboxError, blockers, held, migrate, retention, session::Session, status},
    telemetry::metrics,
};

/// Between two readings of the gauges, and when the server is slow.
const GAUGES_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// A reading takes so many times less than the pause after it: a hundredth of a core of the server.
const GAUGES: u32 = 100;
/// A sixth of a core at most where readings take seconds, one after the other: beside a transaction that has written a
/// million messages and is still open.
const SLOW_GAUGES: u32 = 5;
/// But they are no older than this and a reading: alerts depend on them.
const GAUGES_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// Between two looks at the circuits, while some destination fails.
const CIRCUITS_EVERY: Duration = Duration::from_millis(100);
/// Between two looks for messages that another process held.
const HELD_EVERY: Duration = Duration::from_secs(10);
/// Destinations found in one look.
const HELD_AT_ONCE: i32 = 1000;
/// Messages that one step gives up.
const GIVE_UP_AT_ONCE: i64 = 1000;
/// From this lag on it is asked whether somebody's locks are the reason.
const SUSPICIOUS_LAG_S: f64 = 15.0;
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// Rows passed over because they were dead or waiting are looked at again after this long.
const RESTART_PRUNING_EVERY: Duration = Duration::from_secs(3600);
/// While workers have lanes, pruning pauses for so many times the length of its steps: a third of one core.
const PRUNING_BESIDE_WORK: u32 = 2;
/// And an eighth of one while a backlog is drained, which is more urgent than rows that are old: they get no more by it.
const PRUNING_BESIDE_BACKLOG: u32 = 7;

pub async fn run(shared: Arc<Shared>, retention: Retention, host: String, stop: CancellationToken) {
    let mut failures: u32 = 0;
    // It survives a lost connection: an audit of a large table takes hours.
    let mut audit = Audit::new();
    while !stop.is_cancelled() {
        let kept = keep_house(&shared, &retention, &host, &stop, &mut failures, &mut audit);
        match Box::pin(kept).await {
            // It was asked to stop, or gave its connection to somebody who is more important.
            Ok(()) => {}
            Err(error) if error.is_short_of_connections() => {
                metrics::outbox_unknown(shared.health.source());
                shared.refused(Rank::HOUSEKEEPER, &error);
            }
            Err(error) => {
                shared.silence.note(&error);
                failures = failures.saturating_add(1);
                metrics::outbox_unknown(shared.health.source());
                tracing::warn!(
                    source = shared.health.source(),
                    failures,
                    error = %error,
                    "housekeeping (metrics, retention) failed; backing off"
                );
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(reconnect_delay(failures)) => {}
                }
            }
        }
    }
}

async fn keep_house(
    shared: &Shared,
    retention: &Retention,
    host: &str,
    stop: &CancellationToken,
    failures: &mut u32,
    audit: &mut Audit,
) -> Result<(), OutboxError> {
    let name = format!("{}/housekeeper", shared.instance);
    let connecting = async {
        let database = &shared.source.database;
        let session = shared
            .seats
            .connect(Rank::HOUSEKEEPER, database, &name, None)
            .await?;
        migrate::require_usable(&session).await?;
        Ok::<_, OutboxError>(session)
    };
    let session = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        session = connecting => session?,
    };
    *failures = 0;
    let mut gauges_at = Instant::now();
    // What the last two took.
    let mut readings = [Duration::ZERO; 2];
    let mut beat_at = Instant::now();
    // A new relay prunes soon: a fleet that restarts often must prune as well.
    let mut prune_at = Instant::now();
    let mut pruning = Pruning::new();
    let mut held_at = Instant::now();
    let mut inspection = Inspection::new();
    while !stop.is_cancelled() {
        let source = shared.health.source();
        // Before the gauges: they can't be read where something is missing.
        let inspect_at = inspection.step(&session, shared).await?;
        let audit_at = audit.step(&session, shared).await?;
        if Instant::now() >= gauges_at {
            let asked = Instant::now();
            let state = status::status(&session).await?;
            readings = [readings[1], asked.elapsed()];
            let pause = gauges_pause(readings);
            metrics::outbox(
                source,
                state.pending,
                state.oldest_due_age_seconds,
                state.dead,
            );
            gauges_at = Instant::now() + pause;
            shared.health.forget_old_trouble();
            if state.oldest_due_age_seconds > SUSPICIOUS_LAG_S {
                name_blockers(shared, &session).await?;
            }
        }
        if Instant::now() >= held_at {
            find_held(shared, &session).await?;
            held_at = Instant::now() + HELD_EVERY;
        }
        work_circuits(shared, &session).await?;
        if Instant::now() >= beat_at {
            status::beat(
                &session,
                &shared.instance,
                host,
                shared.relay.workers,
                shared.health.word(),
            )
            .await?;
            audit.report(&session, shared).await?;
            beat_at = Instant::now() + BEAT_EVERY;
        }
        if Instant::now() >= prune_at {
            let asked = Instant::now();
            let more = pruning.step(&session, retention, shared).await?;
            let pause = if more {
                let board = &shared.board;
                pruning_pause(asked.elapsed(), board.is_worked(), board.has_backlog())
            } else {
                retention.interval
            };
            prune_at = Instant::now() + pause;
        }
        let mut next = gauges_at.min(beat_at).min(prune_at).min(held_at);
        next = next.min(inspect_at).min(audit_at);
        if !shared.circuits().is_empty() {
            next = next.min(Instant::now() + CIRCUITS_EVERY);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = session.wanted() => {
                metrics::outbox_unknown(source);
                return Ok(());
            }
            error = shared.silence.watch(&session, shared.source.database.connect_timeout) => return Err(error),
            () = tokio::time::sleep_until(next) => {}
        }
    }
    status::leave(&session, &shared.instance).await
}

/// Lanes and tables that somebody else holds are no error to a claim: it finds nothing free.
async fn name_blockers(shared: &Shared, session: &Session) -> Result<(), OutboxError> {
    let found = blockers::find(session, &[]).await?;
    if !found.is_empty() {
        let why = format!("locked by {}", blockers::text(&found));
        shared.health.cannot_mark(&why);
    }
    Ok(())
}

/// Messages that another relay held, or this one before it was started again.
async fn find_held(shared: &Shared, session: &Session) -> Result<(), OutboxError> {
    for held in held::destinations(session, HELD_AT_ONCE).await? {
        let mut circuits = shared.circuits();
        circuits.found(held, Instant::now().into_std(), &mut rand::rng());
    }
    Ok(())
}

/// What is due of held messages: probes, last attempts, releases.
async fn work_circuits(shared: &Shared, session: &Session) -> Result<(), OutboxError> {
    let now = Instant::now().into_std();
    let tasks = shared.circuits().tasks(now, &mut rand::rng());
    for task in tasks {
        match task {
            Task::Probe(destination, after) => {
                let chosen = held::probe(session, destination, after).await?;
                shared
                    .circuits()
                    .probed(destination, chosen, Instant::now().into_std());
            }
            Task::GiveUp(destination, failed_probes) => {
                let enough = shared.policy.max_attempts;
                while held::give_up(session, destination, failed_probes, enough, GIVE_UP_AT_ONCE)
                    .await?
                    == GIVE_UP_AT_ONCE.unsigned_abs()
                {}
            }
            Task::Release(destination, rows) => {
                let released = held::release(session, destination, rows).await?;
                shared.circuits().released(destination, rows, released);
            }
        }
    }
    let open = shared.circuits().open();
    metrics::failing_destinations(shared.health.source(), open);
    Ok(())
}

/// After two readings that took so long. A server that stood still once does not make the gauges old.
fn gauges_pause(readings: [Duration; 2]) -> Duration {
    let (shortest, longest) = GAUGES_EVERY;
    let took = readings[0].min(readings[1]);
    let slow = (took * SLOW_GAUGES).min(GAUGES_AT_LEAST_EVERY);
    (readings[1] * GAUGES).clamp(shortest, longest).max(slow)
}

/// Between two steps, the first of which took so long.
fn pruning_pause(took: Duration, worked: bool, backlog: bool) -> Duration {
    match (worked, backlog) {
        // With the broker away a backlog is not drained either, and the server has nothing else to do.
        (false, _) => Duration::ZERO,
        (true, true) => took * PRUNING_BESIDE_BACKLOG,
        (true, false) => took * PRUNING_BESIDE_WORK,
    }
}

struct Pruning {
    cursors: [i64; LANES],
    began: Instant,
    /// Whose turn it is.
    lane: usize,
    /// Some lane of this round had more.
    more: bool,
}

impl Pruning {
    fn new() -> Self {
        Self {
            cursors: [0; LANES],
            began: Instant::now(),
            lane: 0,
            more: false,
        }
    }

    /// One bounded step in one lane, each in its turn. True when there is more to do at once.
    async fn step(
        &mut self,
        session: &Session,
        retention: &Retention,
        shared: &Shared,
    ) -> Result<bool, OutboxError> {
        if self.lane == 0 {
            self.more = false;
            if self.began.elapsed() >= RESTART_PRUNING_EVERY {
                *self = Self::new();
            }
        }
        let cursor = &mut self.cursors[self.lane];
        let (lane, rows) = (self.lane as Lane, retention.step_rows);
        let step = retention::prune_step(session, lane, *cursor, rows, retention.sent).await?;
        *cursor = step.cursor;
        self.more |= step.more;
        if step.stranded {
            shared.hints.alarm();
        }
        metrics::pruned(shared.health.source(), step.deleted);
        self.lane = (self.lane + 1) % LANES;
        Ok(self.lane != 0 || self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn gauges_are_read_by_what_they_cost() {
        assert_eq!(gauges_pause([MS(3); 2]), MS(2_000));
        assert_eq!(gauges_pause([MS(50); 2]), MS(5_000));
        assert_eq!(gauges_pause([MS(700); 2]), MS(10_000));
        assert_eq!(gauges_pause([MS(7_000); 2]), MS(35_000));
        assert_eq!(gauges_pause([MS(30_000); 2]), MS(60_000));
        assert_eq!(
            gauges_pause([MS(3), MS(20_000)]),
            MS(10_000),
            "it stood still"
        );
    }

    #[test]
    fn pruning_makes_way_for_work_and_more_for_a_backlog() {
        assert_eq!(pruning_pause(MS(10), false, false), MS(0));
        assert_eq!(pruning_pause(MS(10), false, true), MS(0));
        assert_eq!(pruning_pause(MS(10), true, false), MS(20));
        assert_eq!(pruning_pause(MS(10), true, true), MS(70));
    }
}
