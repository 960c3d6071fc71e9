//! Finds the connections that died silently, all together.
//!
//! A NAT or a firewall forgets idle connections: it closes none of them, and drops every packet. The relay would notice each
//! of them only at its next statement, a time-out later, one after the other. So each idle session is checked now and then,
//! while no message waits for it. When one session does not answer, all others are checked at once.

use std::time::Duration;

use tokio::sync::watch;

use crate::outbox::{OutboxError, session::Session};

/// The time between two checks of an idle session.
const CHECK_EVERY: Duration = Duration::from_secs(15);

/// The number of sessions that fell silent so far.
#[derive(Debug, Default)]
pub struct Silence(watch::Sender<u64>);

impl Silence {
    /// The relay gave up a session because of this error.
    pub fn note(&self, error: &OutboxError) {
        if matches!(
            error,
            OutboxError::Timeout { .. } | OutboxError::ConnectTimeout { .. }
        ) {
            self.0.send_modify(|n| *n += 1);
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    /// Checks an idle session again and again. Returns when it does not answer.
    pub async fn watch(&self, session: &Session, within: Duration) -> OutboxError {
        let mut silent = self.0.subscribe();
        loop {
            check_due(&mut silent).await;
            if let Err(error) = session.probe(within).await {
                return error;
            }
        }
    }
}

/// Resolves when an idle session must be checked: another session has fallen silent, or it is time.
pub async fn check_due(silent: &mut watch::Receiver<u64>) {
    tokio::select! {
        _ = silent.changed() => {}
        () = tokio::time::sleep(CHECK_EVERY) => {}
    }
}

/// Resolves `within` after another session has fallen silent: a session without an answer by then will get none.
pub async fn overdue(silent: &mut watch::Receiver<u64>, within: Duration) {
    if silent.changed().await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(within).await;
}
