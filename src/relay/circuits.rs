//! Held messages: carries out what `outbox_core::circuit` decides. The maintenance does all that is due, and each claim releases
//! some messages of destinations that work again, so they go as fast as the messages before them are published.
//!
//! A refusal concerns one destination (a trigger that refuses one record), or all (a lock on the table). So the tasks of other
//! destinations go on, for a bounded time; what was not done stays due.

use std::time::Duration;

use outbox_core::circuit::Task;
use rand::RngExt;
use tokio::time::Instant;

use super::{context::Context, health::Obstacle};
use crate::{
    outbox::{OutboxError, held, session::Session},
    telemetry::metrics,
};

/// After this time no further task begins: other jobs, other claims and a stop wait meanwhile.
const PASS: Duration = Duration::from_secs(1);
/// Destinations whose messages one claim releases. The maintenance releases those of the others.
const RELEASES: usize = 16;
/// When a task that was refused is due again, at the latest.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Messages that one statement gives up.
const GIVE_UP_AT_ONCE: i64 = 1000;

/// Probes, gives up and releases what is due. Returns the first refusal.
pub(super) async fn work(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let now = Instant::now().into_std();
    let mut tasks = context.circuits().tasks(now, &mut rand::rng());
    // If the time does not suffice, no destination is always among the last.
    let first = rand::rng().random_range(0..=tasks.len());
    tasks.rotate_left(first);
    let worked = run_all(context, session, tasks).await;
    // Under the lock: otherwise the older of two tasks' numbers could stay in the gauge.
    let circuits = context.circuits();
    metrics::failing_destinations(context.health.source(), circuits.open());
    drop(circuits);
    match worked? {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

/// After a claim that is settled. The next claims need no release, so a refusal does not stop them.
pub(super) async fn release(context: &Context, session: &Session) -> Result<(), OutboxError> {
    let tasks = context.circuits().releases(RELEASES);
    run_all(context, session, tasks).await.map(drop)
}

/// Returns the first refusal. If messages are not released, they wait although their destination works, so the operator must
/// know it.
async fn run_all(
    context: &Context,
    session: &Session,
    tasks: Vec<Task>,
) -> Result<Option<OutboxError>, OutboxError> {
    let deadline = Instant::now() + PASS;
    let mut refusal = None;
    let mut lost = None;
    for task in tasks {
        let now = Instant::now();
        if now >= deadline || lost.is_some() {
            context.circuits().put_back(&task, now.into_std());
            continue;
        }
        match run(context, session, &task).await {
            Ok(()) => {}
            Err(error) if error.is_statement_refused() => {
                context.health.fails(Obstacle::Held, &error.to_string());
                let again = Instant::now() + REFUSED_AGAIN;
                context.circuits().put_back(&task, again.into_std());
                refusal.get_or_insert(error);
            }
            Err(error) => {
                context.circuits().put_back(&task, now.into_std());
                lost = Some(error);
            }
        }
    }
    match lost {
        Some(error) => Err(error),
        None => Ok(refusal),
    }
}

/// One statement.
async fn run(context: &Context, session: &Session, task: &Task) -> Result<(), OutboxError> {
    match *task {
        Task::Probe(destination, after) => {
            let chosen = held::probe(session, destination, after).await?;
            let now = Instant::now().into_std();
            context.circuits().probed(destination, chosen, now);
        }
        Task::ProbeNewest(destination) => {
            let chosen = held::probe_newest(session, destination).await?;
            let now = Instant::now().into_std();
            context.circuits().probed(destination, chosen, now);
        }
        Task::GiveUp(destination, failed_probes) => {
            let (enough, rows) = (context.policy.max_attempts, GIVE_UP_AT_ONCE);
            let given_up = held::give_up(session, destination, failed_probes, enough, rows).await?;
            if given_up == GIVE_UP_AT_ONCE.unsigned_abs() {
                // There may be more.
                let now = Instant::now().into_std();
                context.circuits().put_back(task, now);
            }
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
    Ok(())
}
