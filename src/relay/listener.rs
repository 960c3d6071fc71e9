//! The listener: sleeps for the relay, on a connection of its own, and hears the producer's commit that wakes it
//! (`outbox::wake`).
//!
//! It only makes an idle relay quick. Polling goes on without it: it may be flooded by anybody who may connect, refused a
//! connection, or cut off.

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
    seats::Rank,
    shared::{Shared, reconnect_delay},
};
use crate::outbox::{OutboxError, session::Ear, wake};

/// What it asks the server takes a moment, unless it is flooded.
const PATIENCE: Duration = Duration::from_secs(2);
/// Another relay sleeps, or a producer is in its transaction: asked again after this.
const AGAIN: Duration = Duration::from_millis(250);
/// More notifications than this in a second, and nobody listens for a while. Producers notify only until a relay that was
/// asleep has looked.
const FLOOD: u64 = 2_000;
const FLOOD_PAUSE: Duration = Duration::from_secs(30);

enum Ended {
    Flooded,
    GaveWay,
}

pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let source = shared.health.source();
    let mut failures: u32 = 0;
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = Box::pin(listen(&shared, &mut failures)) => ended,
        };
        // The lock went with the connection.
        shared.sleep.asleep.send_replace(false);
        let pause = match ended {
            Ok(Ended::GaveWay) => Duration::ZERO,
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
                shared.refused(Rank::LISTENER, &error);
                Duration::ZERO
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                shared.silence.note(&error);
                tracing::warn!(source, failures, error = %error, "listening for producers failed; the relay polls");
                reconnect_delay(failures)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn listen(shared: &Shared, failures: &mut u32) -> Result<Ended, OutboxError> {
    let database = &shared.source.database;
    let (wake, mut woken) = mpsc::channel(1);
    let ear = Ear {
        wake,
        heard: Arc::new(AtomicU64::new(0)),
    };
    let heard = Arc::clone(&ear.heard);
    let name = format!("{}/listener", shared.instance);
    let connecting = shared
        .seats
        .connect(Rank::LISTENER, database, &name, Some(ear));
    let session = connecting.await?;
    wake::listen(&session).await?;
    *failures = 0;

    let sleep = &shared.sleep;
    let mut wanted = sleep.wanted.subscribe();
    let mut flood = Flood::new(Instant::now());
    let mut asleep = false;
    loop {
        let want = *wanted.borrow_and_update();
        if want != asleep {
            if want {
                asleep = soon(wake::try_sleep(&session)).await?;
            } else {
                asleep = false;
                sleep.asleep.send_replace(false);
                soon(wake::get_up(&session)).await?;
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
            () = session.wanted() => return Ok(Ended::GaveWay),
            Ok(()) = wanted.changed() => {}
            Some(()) = woken.recv() => {
                if flood.is_on(Instant::now(), heard.load(Ordering::Relaxed)) {
                    return Ok(Ended::Flooded);
                }
                sleep.heard.notify_one();
            }
            () = tokio::time::sleep(AGAIN), if want && !asleep => {}
            error = shared.silence.watch(&session, database.connect_timeout) => return Err(error),
        }
    }
}

/// Behind a flood of notifications an answer may come late. Nobody waits for it.
async fn soon<T>(asking: impl Future<Output = Result<T, OutboxError>>) -> Result<T, OutboxError> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(OutboxError::Unusable {
            action: "fall asleep or wake up",
            why: format!("no answer within {PATIENCE:?}"),
        }),
    }
}

/// How many notifications came within a second.
struct Flood {
    since: Instant,
    /// By then.
    heard: u64,
}

impl Flood {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            heard: 0,
        }
    }

    fn is_on(&mut self, now: Instant, heard: u64) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.heard) = (now, heard.saturating_sub(1));
        }
        heard - self.heard > FLOOD
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
