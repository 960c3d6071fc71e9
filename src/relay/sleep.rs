//! Whether the relay sleeps: a relay that sleeps is notified by a producer's commit (`outbox::wake`).

use tokio::sync::{Notify, watch};

/// The scout wants to sleep, the listener holds the lock that makes producers notify.
#[derive(Debug, Default)]
pub struct Sleep {
    pub(super) wanted: watch::Sender<bool>,
    /// True only while the listener holds the lock: it becomes false before the lock is released, and true after the lock
    /// is taken.
    pub(super) asleep: watch::Sender<bool>,
    pub(super) notification: Notify,
}

impl Sleep {
    pub fn want(&self, wanted: bool) {
        self.wanted
            .send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// What was committed before it became true did not notify: poll once more before you wait for a notification.
    pub fn asleep(&self) -> watch::Receiver<bool> {
        self.asleep.subscribe()
    }

    /// Resolves at the next notification.
    pub async fn notified(&self) {
        self.notification.notified().await;
    }
}
