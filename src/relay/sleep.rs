//! Whether the relay sleeps.

use tokio::sync::{Notify, watch};

/// What the scout and the listener say to each other.
#[derive(Debug, Default)]
pub struct Sleep {
    pub(super) wanted: watch::Sender<bool>,
    /// Said to be over before the lock is given back, and to have begun once the lock is ours.
    pub(super) asleep: watch::Sender<bool>,
    pub(super) heard: Notify,
}

impl Sleep {
    pub fn want(&self, wanted: bool) {
        self.wanted
            .send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// What was committed before it became true did not notify: look once more before resting on it.
    pub fn asleep(&self) -> watch::Receiver<bool> {
        self.asleep.subscribe()
    }

    pub async fn heard(&self) {
        self.heard.notified().await;
    }
}
