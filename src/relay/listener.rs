//! The listener: holds the lock that makes producers notify a relay that sleeps, and receives their notifications, on a
//! connection of its own (`outbox::wake`).
//!
//! It only makes an idle relay quick. Polling goes on without it: anybody who may connect can flood the listener, and the
//! server can refuse or close its connection.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    connections::Priority,
    context::{Context, reconnect_delay},
    outages::Failing,
};
use crate::outbox::{OutboxError, session::NotificationSink, wake};

/// The server answers the listener's statements in a moment, unless it floods the connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The time between two attempts to take the lock while another relay sleeps, or a producer is in its transaction.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// With more notifications a second, the relay stops listening for a while. Producers notify only until the relay that slept
/// has polled, so others send these.
const FLOOD: u64 = 2_000;
const FLOOD_PAUSE: Duration = Duration::from_secs(30);

enum Ended {
    Flooded,
    Preempted,
}

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let source = context.health.source();
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = Box::pin(listen(&context, &mut failures)) => ended,
        };
        // The end of the connection released the lock.
        context.sleep.asleep.send_replace(false);
        let pause = match ended {
            Ok(Ended::Preempted) => Duration::ZERO,
            Ok(Ended::Flooded) => {
                tracing::warn!(
                    source,
                    pause = ?FLOOD_PAUSE,
                    "the channel outbox_wake is flooded: somebody sends NOTIFY without end. Not listening for a while; the relay \
                     polls"
                );
                FLOOD_PAUSE
            }
            Err(error) if error.is_short_of_connections() => {
                context.refused(Priority::LISTENER, &error);
                context.works(Priority::LISTENER);
                Duration::ZERO
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                context.silence.note(&error);
                context.failed(Failing::PostgreSql, Priority::LISTENER, &error.to_string());
                reconnect_delay(failures)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn listen(context: &Context, failures: &mut u32) -> Result<Ended, OutboxError> {
    let database = &context.source.database;
    let (wake, mut woken) = mpsc::channel(1);
    let sink = NotificationSink {
        wake,
        received: Arc::new(AtomicU64::new(0)),
    };
    let received = Arc::clone(&sink.received);
    let name = format!("{}/listener", context.instance);
    let connecting = context
        .connections
        .connect(Priority::LISTENER, database, &name, Some(sink));
    let session = connecting.await?;
    wake::listen(&session).await?;
    *failures = 0;
    context.works(Priority::LISTENER);

    let sleep = &context.sleep;
    let mut wanted = sleep.wanted.subscribe();
    let mut flood = Flood::new(Instant::now());
    let mut asleep = false;
    // Outlives the turns of the loop: under steady traffic, each is shorter than the time between two checks.
    let mut unusable = std::pin::pin!(context.silence.watch(&session, database.connect_timeout));
    loop {
        let want = *wanted.borrow_and_update();
        if want != asleep {
            if want {
                asleep = in_time(wake::try_sleep(&session)).await?;
            } else {
                asleep = false;
                sleep.asleep.send_replace(false);
                in_time(wake::get_up(&session)).await?;
            }
            if asleep {
                sleep.asleep.send_replace(true);
            }
        }
        tokio::select! {
            biased;
            () = session.closed() => {
                let why = "the server closed the connection".to_owned();
                return Err(OutboxError::Unusable { action: "listen", why });
            }
            () = session.preempted() => return Ok(Ended::Preempted),
            Ok(()) = wanted.changed() => {}
            Some(()) = woken.recv() => {
                if flood.is_on(Instant::now(), received.load(Ordering::Relaxed)) {
                    return Ok(Ended::Flooded);
                }
                sleep.notification.notify_one();
            }
            () = tokio::time::sleep(RETRY_EVERY), if want && !asleep => {}
            error = &mut unusable => return Err(error),
        }
    }
}

/// In a flood of notifications an answer may come late. The listener does not wait for it.
async fn in_time<T>(
    asking: impl Future<Output = Result<T, OutboxError>>,
) -> Result<T, OutboxError> {
    match tokio::time::timeout(ANSWER_WITHIN, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(OutboxError::Unusable {
            action: "fall asleep or wake up",
            why: format!("no answer within {ANSWER_WITHIN:?}"),
        }),
    }
}

/// Counts the notifications of a second.
struct Flood {
    since: Instant,
    /// Notifications before `since`.
    before: u64,
}

impl Flood {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            before: 0,
        }
    }

    fn is_on(&mut self, now: Instant, received: u64) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.before) = (now, received.saturating_sub(1));
        }
        received - self.before > FLOOD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_notifications_are_a_flood_only_within_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut flood = Flood::new(start);
        assert!(!flood.is_on(at(1), FLOOD));
        assert!(
            !flood.is_on(at(1500), 2 * FLOOD),
            "most of them came before"
        );
        assert!(flood.is_on(at(1600), 3 * FLOOD));
    }
}
