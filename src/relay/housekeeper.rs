//! What must happen now and then, on a connection of its own: the gauges, the sign of life in `outbox.relay`, and
//! retention.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    board::LANES,
    worker::{Shared, reconnect_delay},
};
use crate::{
    config::Retention,
    message::Lane,
    outbox::{OutboxError, migrate, retention, session::Session, status},
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
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// Rows passed over because they were dead or waiting are looked at again after this long.
const RESTART_PRUNING_EVERY: Duration = Duration::from_secs(3600);
/// While workers have lanes, pruning pauses for so many times the length of its steps: a third of one core.
const PRUNING_BESIDE_WORK: u32 = 2;
/// And an eighth of one while a backlog is drained, which is more urgent than rows that are old: they get no more by it.
const PRUNING_BESIDE_BACKLOG: u32 = 7;

pub async fn run(shared: Arc<Shared>, retention: Retention, host: String, stop: CancellationToken) {
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        match keep_house(&shared, &retention, &host, &stop, &mut failures).await {
            Ok(()) => return,
            Err(error) => {
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
) -> Result<(), OutboxError> {
    let name = format!("{}/housekeeper", shared.instance);
    let connecting = async {
        let session = Session::connect(&shared.source.database, &name).await?;
        migrate::require_known(&session).await?;
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
    while !stop.is_cancelled() {
        let source = shared.health.source();
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
        }
        if Instant::now() >= beat_at {
            status::beat(
                &session,
                &shared.instance,
                host,
                shared.relay.workers,
                shared.health.word(),
            )
            .await?;
            beat_at = Instant::now() + BEAT_EVERY;
        }
        if Instant::now() >= prune_at {
            let asked = Instant::now();
            let more = pruning.step(&session, retention, source).await?;
            let pause = if more {
                let board = &shared.board;
                pruning_pause(asked.elapsed(), board.is_worked(), board.has_backlog())
            } else {
                retention.interval
            };
            prune_at = Instant::now() + pause;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep_until(gauges_at.min(beat_at).min(prune_at)) => {}
        }
    }
    status::leave(&session, &shared.instance).await
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
        source: &str,
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
        metrics::pruned(source, step.deleted);
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
