//! Failed messages, waiting or dead: `outboxd waiting`, `outboxd failures` and the record of what people did with them.

mod costs;
mod groups;
mod history;
mod waiting;

use serde_json::Value;
use uuid::Uuid;

use crate::world::{FAR, FARTHER, World};

/// The relay's back-off is far away: only a person tries the messages again.
const SLOW: [(&str, &str); 2] = [
    ("OUTBOXD__RELAY__BACKOFF_INITIAL", FAR),
    ("OUTBOXD__RELAY__BACKOFF_MAX", FARTHER),
];

async fn json(world: &World, args: &[&str], code: i32) -> Value {
    let args = [args, &["--json"]].concat();
    let run = world.outboxd(&args, &[]).await;
    assert_eq!(run.code, code, "{args:?}: {}", run.said());
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.said()))
}

/// Messages that failed, each of a key and a destination of its own, and wait for long. No relay runs.
async fn failing(world: &World, n: usize) -> Vec<Uuid> {
    world.declare_exchange("events").await;
    let mut ids = Vec::new();
    for n in 0..n {
        let (key, kind) = (format!("k{n}"), format!("lost{n}"));
        ids.push(world.insert(Some(&key), &kind, "0", "").await);
    }
    let mut relay = world.relay(&SLOW);
    let waits = "outbox.waiting WHERE cause = 'retry'";
    let all = i64::try_from(n).unwrap();
    world.until("them to fail", waits, all).await;
    relay.kill().await.unwrap();
    // The back-off has a random part.
    let long = "UPDATE outbox.waiting SET attempts = 1, due_at = clock_timestamp() + interval '30 minutes'";
    world.sql(long).await;
    ids
}
