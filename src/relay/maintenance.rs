//! The periodic work of a relay, on a connection of its own: the gauges, retention, the audit, the checks of the schema,
//! probes of failing destinations, and the relay's row in `outbox.relay`.

use std::{sync::Arc, time::Duration};

use outbox_core::{circuit::Task, message::Lane, scheduling::LANES};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    audit::Audit,
    connections::Priority,
    context::{Context, reconnect_delay},
    inspection::Inspection,
};
use crate::{
    config::Retention,
    outbox::{
        OutboxError, blockers, held, migrate,
        retention::{self, Reach},
        session::Session,
        status,
    },
    telemetry::metrics,
};

/// The pause between two readings of the gauges: the shortest, and the longest that the rule of a hundredth makes.
const GAUGES_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// A pause lasts at least a hundred times as long as the reading before it, so gauges use a hundredth of a core of the server.
const GAUGES: u32 = 100;
/// Where readings take seconds, one after the other, the pause is at least five times as long, so gauges use a sixth of a
/// core at most. That happens beside an open transaction that has written a million messages.
const SLOW_GAUGES: u32 = 5;
/// The limit of that rule: alerts depend on gauges that are no older than this, and a reading.
const GAUGES_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// The time between two checks of the circuits while a destination fails.
const CIRCUITS_EVERY: Duration = Duration::from_millis(100);
/// The time between two searches for messages that another process held.
const HELD_EVERY: Duration = Duration::from_secs(10);
/// Destinations that one search finds.
const HELD_AT_ONCE: i32 = 1000;
/// Messages that one statement gives up.
const GIVE_UP_AT_ONCE: i64 = 1000;
/// From this lag on, the relay asks whether another session's locks are the reason.
const SUSPICIOUS_LAG_S: f64 = 15.0;
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// How often pruning starts again with the first row: it passes over dead and waiting rows, which may be sent meanwhile.
const RESTART_PRUNING_EVERY: Duration = Duration::from_secs(3600);
/// While workers have lanes, a pause lasts twice as long as the step before it, so pruning uses a third of a core.
const PRUNING_BESIDE_WORK: u32 = 2;
/// While workers drain a backlog, pruning uses an eighth of a core: the backlog is more urgent than the old rows, whose number
/// does not grow meanwhile.
const PRUNING_BESIDE_BACKLOG: u32 = 7;

pub async fn run(
    context: Arc<Context>,
    retention: Retention,
    host: String,
    stop: CancellationToken,
) {
    let mut failures: u32 = 0;
    // An audit of a large table takes hours, so it outlives a lost connection.
    let mut audit = Audit::new();
    while !stop.is_cancelled() {
        let maintaining = maintain(
            &context,
            &retention,
            &host,
            &stop,
            &mut failures,
            &mut audit,
        );
        match Box::pin(maintaining).await {
            // After a stop, or when a task of higher priority needs the connection.
            Ok(()) => {}
            Err(error) if error.is_short_of_connections() => {
                metrics::outbox_unknown(context.health.source());
                context.refused(Priority::MAINTENANCE, &error);
            }
            Err(error) => {
                context.silence.note(&error);
                failures = failures.saturating_add(1);
                metrics::outbox_unknown(context.health.source());
                tracing::warn!(
                    source = context.health.source(),
                    failures,
                    error = %error,
                    "maintenance (metrics, retention) failed; backing off"
                );
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(reconnect_delay(failures)) => {}
                }
            }
        }
    }
}

async fn maintain(
    context: &Context,
    retention: &Retention,
    host: &str,
    stop: &CancellationToken,
    failures: &mut u32,
    audit: &mut Audit,
) -> Result<(), OutboxError> {
    let name = format!("{}/maintenance", context.instance);
    let connecting = async {
        let database = &context.source.database;
        let session = context
            .connections
            .connect(Priority::MAINTENANCE, database, &name, None)
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
    // The durations of the last two readings.
    let mut readings = [Duration::ZERO; 2];
    let mut beat_at = Instant::now();
    // A new relay prunes at once: relays that restart often must prune too.
    let mut prune_at = Instant::now();
    let mut pruning = Pruning::new();
    let mut held_at = Instant::now();
    let mut inspection = Inspection::new();
    while !stop.is_cancelled() {
        let source = context.health.source();
        // Before the gauges: if a part of the schema is missing, they cannot be read.
        let inspect_at = inspection.step(&session, context).await?;
        let audit_at = audit.step(&session, context).await?;
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
            context.health.expire_mark_failure();
            if state.oldest_due_age_seconds > SUSPICIOUS_LAG_S {
                name_blockers(context, &session).await?;
            }
        }
        if Instant::now() >= held_at {
            find_held(context, &session).await?;
            held_at = Instant::now() + HELD_EVERY;
        }
        work_circuits(context, &session).await?;
        if Instant::now() >= beat_at {
            status::beat(
                &session,
                &context.instance,
                host,
                context.relay.workers,
                context.health.word(),
            )
            .await?;
            audit.report(&session, context).await?;
            beat_at = Instant::now() + BEAT_EVERY;
        }
        if Instant::now() >= prune_at {
            let asked = Instant::now();
            let more = pruning.step(&session, retention, context).await?;
            let pause = if more {
                let lanes = &context.lanes;
                pruning_pause(asked.elapsed(), lanes.any_taken(), lanes.has_backlog())
            } else {
                retention.interval
            };
            prune_at = Instant::now() + pause;
        }
        let mut next = gauges_at.min(beat_at).min(prune_at).min(held_at);
        next = next.min(inspect_at).min(audit_at);
        if !context.circuits().is_empty() {
            next = next.min(Instant::now() + CIRCUITS_EVERY);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = session.preempted() => {
                metrics::outbox_unknown(source);
                return Ok(());
            }
            error = context.silence.watch(&session, context.source.database.connect_timeout) => return Err(error),
            () = tokio::time::sleep_until(next) => {}
        }
    }
    status::leave(&session, &context.instance).await
}

/// A claim passes over lanes that another session locks, without an error. The operator must know which session.
async fn name_blockers(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let found = blockers::find(session, &[]).await?;
    if !found.is_empty() {
        let why = format!("locked by {}", blockers::text(&found));
        context.health.cannot_mark(&why);
    }
    Ok(())
}

/// Finds messages that another relay held, or this relay before its restart.
async fn find_held(context: &Context, session: &Session) -> Result<(), OutboxError> {
    for held in held::destinations(session, HELD_AT_ONCE).await? {
        let mut circuits = context.circuits();
        circuits.found(held, Instant::now().into_std(), &mut rand::rng());
    }
    Ok(())
}

/// Does what is due for held messages. If that is refused, they wait although their destination works, so the operator must
/// know it.
async fn work_circuits(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let worked = circuit_tasks(context, session).await;
    if let Err(error) = &worked
        && error.is_statement_refused()
    {
        context.health.cannot_mark(&error.to_string());
    }
    worked
}

/// Probes, giving up, releases.
async fn circuit_tasks(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let now = Instant::now().into_std();
    let tasks = context.circuits().tasks(now, &mut rand::rng());
    for task in tasks {
        match task {
            Task::Probe(destination, after) => {
                let chosen = held::probe(session, destination, after).await?;
                context
                    .circuits()
                    .probed(destination, chosen, Instant::now().into_std());
            }
            Task::GiveUp(destination, failed_probes) => {
                let enough = context.policy.max_attempts;
                while held::give_up(session, destination, failed_probes, enough, GIVE_UP_AT_ONCE)
                    .await?
                    == GIVE_UP_AT_ONCE.unsigned_abs()
                {}
            }
            Task::ProbeNewest(destination) => {
                let chosen = held::probe_newest(session, destination).await?;
                let now = Instant::now().into_std();
                context.circuits().probed(destination, chosen, now);
            }
            Task::Release(destination, rows) => {
                let released = held::release(session, destination, rows).await?;
                context.circuits().released(destination, rows, released);
            }
            Task::ReleaseNewest(destination, rows) => {
                let released = held::release_newest(session, destination, rows).await?;
                context.circuits().released(destination, rows, released);
            }
        }
    }
    let open = context.circuits().open();
    metrics::failing_destinations(context.health.source(), open);
    Ok(())
}

/// The pause after readings that took so long. One slow reading, by a server that stalled once, does not make the gauges old.
fn gauges_pause(readings: [Duration; 2]) -> Duration {
    let (shortest, longest) = GAUGES_EVERY;
    let took = readings[0].min(readings[1]);
    let slow = (took * SLOW_GAUGES).min(GAUGES_AT_LEAST_EVERY);
    (readings[1] * GAUGES).clamp(shortest, longest).max(slow)
}

/// The pause after a step that took so long.
fn pruning_pause(took: Duration, worked: bool, backlog: bool) -> Duration {
    match (worked, backlog) {
        // The server has nothing else to do. While the broker is away, nobody drains the backlog either.
        (false, _) => Duration::ZERO,
        (true, true) => took * PRUNING_BESIDE_BACKLOG,
        (true, false) => took * PRUNING_BESIDE_WORK,
    }
}

struct Pruning {
    cursors: [i64; LANES],
    began: Instant,
    /// The lane of the next step.
    lane: usize,
    /// A lane of this round has more rows to delete.
    more: bool,
}

impl Pruning {
    fn new() -> Self {
        Self {
            cursors: [retention::FIRST; LANES],
            began: Instant::now(),
            lane: 0,
            more: false,
        }
    }

    /// One bounded step in one lane; the lanes take turns. True when the next step is due at once.
    async fn step(
        &mut self,
        session: &Session,
        retention: &Retention,
        context: &Context,
    ) -> Result<bool, OutboxError> {
        if self.lane == 0 {
            self.more = false;
            if self.began.elapsed() >= RESTART_PRUNING_EVERY {
                *self = Self::new();
            }
        }
        let cursor = &mut self.cursors[self.lane];
        let (lane, rows) = (self.lane as Lane, retention.step_rows);
        let step =
            retention::prune_step(session, lane, *cursor, rows, retention.sent, Reach::Young)
                .await?;
        *cursor = step.cursor;
        self.more |= step.more;
        if step.stranded {
            context.hints.alarm();
        }
        metrics::pruned(context.health.source(), step.deleted);
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
            "it stalled once"
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
