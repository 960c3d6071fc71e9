//! The periodic work of a relay, on a connection of its own: the gauges, retention, the audit, the checks of the schema,
//! probes of failing destinations, and the relay's row in `outbox.relay`.
//!
//! Each of these is a job ([`super::jobs`]). A job that fails by a fault of its own stops no other, and does not end the
//! session: only a session that does not answer any more is replaced.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    audit::Audit,
    circuits,
    connections::Priority,
    context::{Context, reconnect_delay},
    health::Obstacle,
    inspection::Inspection,
    jobs::{Job, Jobs},
    outages::Failing,
    pruning::Pruning,
    tally,
};
use crate::{
    config::Retention,
    outbox::{OutboxError, blockers, held, migrate, session::Session, status},
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
/// The time between two checks of the circuits: while a destination fails, and otherwise.
const CIRCUITS_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The time between two searches for messages that another process held.
const HELD_EVERY: Duration = Duration::from_secs(10);
/// Destinations that one search finds.
const HELD_AT_ONCE: i32 = 1000;
/// From this lag on, the relay asks whether another session's locks are the reason.
const SUSPICIOUS_LAG_S: f64 = 15.0;
const BEAT_EVERY: Duration = Duration::from_secs(10);

pub async fn run(
    context: Arc<Context>,
    retention: Retention,
    host: String,
    stop: CancellationToken,
) {
    let mut failures: u32 = 0;
    let mut maintenance = Maintenance::new(&context, &retention, &host);
    while !stop.is_cancelled() {
        match Box::pin(maintenance.session(&stop, &mut failures)).await {
            // After a stop, or when a task of higher priority needs the connection.
            Ok(()) => {}
            Err(error) if error.is_short_of_connections() => {
                metrics::outbox_unknown(context.health.source());
                context.refused(Priority::MAINTENANCE, &error);
                context.works(Priority::MAINTENANCE);
            }
            Err(error) => {
                context.silence.note(&error);
                failures = failures.saturating_add(1);
                metrics::outbox_unknown(context.health.source());
                let task = Priority::MAINTENANCE;
                context.failed(Failing::PostgreSql, task, &error.to_string());
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(reconnect_delay(failures)) => {}
                }
            }
        }
    }
}

/// It outlives a lost connection: an audit of a large table takes hours, and a job that fails keeps its back-off.
struct Maintenance<'a> {
    context: &'a Context,
    retention: &'a Retention,
    host: &'a str,
    jobs: Jobs,
    audit: Audit,
    inspection: Inspection,
    pruning: Pruning,
    /// The durations of the last two readings of the gauges.
    readings: [Duration; 2],
    lag_seconds: f64,
}

impl<'a> Maintenance<'a> {
    fn new(context: &'a Context, retention: &'a Retention, host: &'a str) -> Self {
        Self {
            jobs: Jobs::new(context.health.source()),
            context,
            retention,
            host,
            audit: Audit::new(),
            inspection: Inspection::new(),
            // A new relay prunes at once: relays that restart often must prune too.
            pruning: Pruning::new(),
            readings: [Duration::ZERO; 2],
            lag_seconds: 0.0,
        }
    }

    /// Connects, and runs the jobs until the connection is lost. `failures` counts sessions in which no job succeeded.
    async fn session(
        &mut self,
        stop: &CancellationToken,
        failures: &mut u32,
    ) -> Result<(), OutboxError> {
        let context = self.context;
        let name = format!("{}/maintenance", context.instance);
        let database = &context.source.database;
        let connecting = async {
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
        self.jobs.connected();
        context.works(Priority::MAINTENANCE);
        while !stop.is_cancelled() {
            if let Some(job) = self.jobs.due(Instant::now()) {
                match self.run(job, &session).await {
                    Ok(next) => {
                        *failures = 0;
                        self.jobs.succeeded(job, next);
                    }
                    Err(error) => {
                        if !is_of_the_job(&session, &error).await {
                            return Err(error);
                        }
                        session.forget_statements();
                        if job == Job::Gauges {
                            metrics::outbox_unknown(context.health.source());
                        }
                        self.jobs.failed(job, &error);
                    }
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = session.preempted() => {
                    metrics::outbox_unknown(context.health.source());
                    return Ok(());
                }
                () = tokio::time::sleep_until(self.jobs.next()) => {}
                error = context.silence.watch(&session, database.connect_timeout) => return Err(error),
            }
        }
        status::leave(&session, &context.instance).await
    }

    /// Returns when the job is due again.
    async fn run(&mut self, job: Job, session: &Session) -> Result<Instant, OutboxError> {
        let context = self.context;
        let after = |pause: Duration| Instant::now() + pause;
        match job {
            Job::Circuits => {
                circuits::work(context, session).await?;
                let (busy, idle) = CIRCUITS_EVERY;
                let open = !context.circuits().is_empty();
                Ok(after(if open { busy } else { idle }))
            }
            Job::Inspection => self.inspection.step(session, context).await,
            Job::Audit => self.audit.step(session, context).await,
            Job::Gauges => {
                let pause = self.read_gauges(session).await?;
                Ok(after(pause))
            }
            Job::Blockers => {
                if self.lag_seconds > SUSPICIOUS_LAG_S || context.health.lanes_are_locked() {
                    name_blockers(context, session).await?;
                }
                Ok(after(GAUGES_EVERY.0))
            }
            Job::Beat => {
                let (workers, word) = (context.relay.workers, context.health.word());
                status::beat(session, &context.instance, self.host, workers, word).await?;
                self.audit.report(session, context).await?;
                Ok(after(BEAT_EVERY))
            }
            Job::Retention => self.pruning.step(session, self.retention, context).await,
            Job::Held => {
                find_held(context, session).await?;
                Ok(after(HELD_EVERY))
            }
        }
    }

    /// Returns the pause until the next reading.
    async fn read_gauges(&mut self, session: &Session) -> Result<Duration, OutboxError> {
        let asked = Instant::now();
        let state = status::status(session).await?;
        self.readings = [self.readings[1], asked.elapsed()];
        self.lag_seconds = state.oldest_due_age_seconds;
        metrics::outbox(
            self.context.health.source(),
            state.pending,
            state.oldest_due_age_seconds,
            state.dead,
        );
        if let Some(done) = self.context.tally.due() {
            tally::log(self.context.health.source(), done, &state);
        }
        Ok(gauges_pause(self.readings))
    }
}

/// The session still answers, so the job failed by a fault of its own: a privilege, a trigger, a missing function, a damaged
/// table, a lock. A new connection would meet the same fault. A read-only server and a pooler's lost statements need one.
async fn is_of_the_job(session: &Session, error: &OutboxError) -> bool {
    !error.is_read_only() && !error.is_of_a_pooler() && session.rollback().await.is_ok()
}

/// A claim passes over lanes that another session locks, without an error. The operator must know which session.
async fn name_blockers(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let found = blockers::find(session, &[]).await?;
    if found.is_empty() {
        context.health.lanes_are_free();
    } else {
        let why = format!("locked by {}", blockers::text(&found));
        context.health.fails(Obstacle::Lanes, &why);
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

/// The pause after readings that took so long. One slow reading, by a server that stalled once, does not make the gauges old.
fn gauges_pause(readings: [Duration; 2]) -> Duration {
    let (shortest, longest) = GAUGES_EVERY;
    let took = readings[0].min(readings[1]);
    let slow = (took * SLOW_GAUGES).min(GAUGES_AT_LEAST_EVERY);
    (readings[1] * GAUGES).clamp(shortest, longest).max(slow)
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
}
