//! Connections that died without a word, found together.
//!
//! A NAT or a firewall forgets idle connections: nothing is closed, and nothing comes through any more. Each would be found
//! by its next statement, a time-out later, one after the other. So a session that is idle is asked now and then, off the
//! way of any message, and when one of them does not answer, all others are asked at once.

use std::time::Duration;

use tokio::sync::watch;

use crate::outbox::{OutboxError, session::Session};

/// Between two questions to an idle session.
const ASK_EVERY: Duration = Duration::from_secs(15);

/// How many sessions fell silent so far.
#[derive(Debug, Default)]
pub struct Silence(watch::Sender<u64>);

impl Silence {
    /// A session was given up with this error.
    pub fn note(&self, error: &OutboxError) {
        if matches!(error, OutboxError::Timeout { .. }) {
            self.0.send_modify(|n| *n += 1);
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    /// Asks an idle session again and again, as long as it answers.
    pub async fn watch(&self, session: &Session, within: Duration) -> OutboxError {
        let mut fell = self.0.subscribe();
        loop {
            suspicion(&mut fell).await;
            if let Err(error) = session.probe(within).await {
                return error;
            }
        }
    }
}

/// Resolves when an idle session is to be asked: another one has fallen silent, or it is time.
pub async fn suspicion(fell: &mut watch::Receiver<u64>) {
    tokio::select! {
        _ = fell.changed() => {}
        () = tokio::time::sleep(ASK_EVERY) => {}
    }
}

/// Resolves when another session has fallen silent, and this much later: whoever has no answer by then will get none.
pub async fn doubt(fell: &mut watch::Receiver<u64>, within: Duration) {
    if fell.changed().await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(within).await;
}
