//! Regular upkeep of an inbox: deletes old operations, and measures effects in doubt.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, SystemTime},
};

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::{inbox::Inbox, metrics};

const EVERY: Duration = Duration::from_secs(30);
/// Time limit for the database's answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Rows that one step of pruning deletes.
const PRUNE: u32 = 1000;
/// Largest number of operations in doubt that the metric shows.
const DOUBTS: i64 = 10_000;

impl Inbox {
    /// Deletes operations older than `retention`, and measures effects in doubt (`inbox_in_doubt`,
    /// `inbox_oldest_in_doubt_age_seconds`), every 30 s for as long as it is polled, through every failure of the database.
    /// `consumer::run` does this for its inbox, and `IdempotencyLayer::forget_expired` for the layer's inbox. Spawn this for
    /// any other inbox, such as an inbox of a handler's external effects.
    ///
    /// - `retention` must be longer than any redelivery or replay can take, see [`Inbox::prune`].
    /// - `connect` opens a connection and drives it, or takes one from a pool, and `client` shows it as a client. It is
    ///   dropped after each round.
    pub async fn forget_expired<F, C, E>(
        &self,
        retention: Duration,
        connect: impl Fn() -> F,
        client: fn(&C) -> &Client,
    ) where
        F: Future<Output = Result<C, E>>,
        E: Display,
    {
        loop {
            match timeout(ANSWER, connect()).await {
                Ok(Ok(connection)) => steps(self, retention, client(&connection)).await,
                // The consumer or the requests report this too, and louder.
                Ok(Err(error)) => failed(self, &error),
                Err(_) => failed(self, &"no connection in time"),
            }
            sleep(EVERY).await;
        }
    }
}

/// Deletes in steps until nothing old is left.
async fn steps(inbox: &Inbox, retention: Duration, client: &Client) {
    loop {
        let step = async {
            let doubts = inbox.in_doubt(client, Duration::ZERO, DOUBTS).await?;
            // If this clock is behind the database's clock, the age is smaller, but never negative.
            let oldest = doubts
                .first()
                .and_then(|doubt| SystemTime::now().duration_since(doubt.begun_at).ok());
            let reading = (doubts.len(), oldest.unwrap_or_default());
            metrics::in_doubt(inbox.consumer(), Some(reading));
            inbox.prune(client, retention, PRUNE).await
        };
        match timeout(ANSWER, step).await {
            Ok(Ok(PRUNE)) => {}
            Ok(Ok(_)) => return,
            Ok(Err(error)) => return failed(inbox, &error),
            Err(_) => return failed(inbox, &"no answer in time"),
        }
    }
}

fn failed(inbox: &Inbox, error: &dyn Display) {
    metrics::in_doubt(inbox.consumer(), None);
    tracing::warn!(consumer = inbox.consumer(), error = %error, "upkeep of the inbox failed");
}
