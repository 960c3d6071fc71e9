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
    let mut beat_at = Instant::now();
    // A new relay prunes soon: a fleet that restarts often must prune as well.
    let mut prune_at = Instant::now();
    let mut pruning = Pruning::new();
    while !stop.is_cancelled() {
        let source = shared.health.source();
        if Instant::now() >= gauges_at {
            let asked = Instant::now();
            let state = status::status(&session).await?;
            let (shortest, longest) = GAUGES_EVERY;
            let pause = (asked.elapsed() * GAUGES).clamp(shortest, longest);
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
            let pause = match more {
                false => retention.interval,
                true if !shared.board.is_worked() => Duration::ZERO,
                true if shared.board.has_backlog() => asked.elapsed() * PRUNING_BESIDE_BACKLOG,
                true => asked.elapsed() * PRUNING_BESIDE_WORK,
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
