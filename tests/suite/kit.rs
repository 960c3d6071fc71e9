//! What the tests share whose relay cannot mark or read messages, and tries again.

use test_support::{Daemon, eventually};

use crate::{
    seeing::{answers, until},
    world::{SOON, World},
};

pub const WORKERS: usize = 2;
pub const BATCH: usize = 50;

pub const SETTINGS: [(&str, &str); 2] = [
    ("OUTBOXD__RELAY__BATCH_SIZE", "50"),
    ("OUTBOXD__DATABASE__LOCK_TIMEOUT", "200ms"),
];

/// Eight more, from now on.
pub async fn several_attempts(relay: &Daemon) {
    let attempts = || {
        let lines = relay.lines();
        lines.iter().filter(|l| l.contains("backing off")).count()
    };
    let before = attempts();
    eventually("attempts", SOON, async || {
        (attempts() >= before + 8).then_some(())
    })
    .await;
}

/// The log names the obstacle, `/readyz` says 503 with these texts, and the metric says it.
pub async fn named(relay: &Daemon, port: u16, said: &str, ready: &[&str]) {
    relay.line(said, SOON).await;
    answers(port, 503, &[&["cannot_mark"], ready].concat()).await;
    until(port, "outbox_can_mark", |can| can == 0.0).await;
}

impl World {
    /// So many messages have records in outbox.waiting that are far from due.
    pub async fn scheduled(&self, n: i64) {
        for n in 0..n {
            let later = "available_at = clock_timestamp() + interval '1 hour'";
            self.insert(Some(&format!("later-{n}")), "created", "1", later)
                .await;
        }
        self.until("them to wait", "outbox.waiting", n).await;
    }

    pub async fn due(&self) {
        self.sql(
            "UPDATE outbox.message SET available_at = NULL; \
             UPDATE outbox.waiting SET due_at = clock_timestamp()",
        )
        .await;
    }
}
