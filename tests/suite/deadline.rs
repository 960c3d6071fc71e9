//! How long a claim publishes: PostgreSQL ends a claim that is idle for too long.

use std::time::Duration;

use test_support::{Mode, Proxy};

use crate::world::{Gate, SOON, world};

/// The time for publishing counts from the claim's last statement. Counted from its begin, a claim with slow reads would never
/// publish anything, and say nothing.
#[tokio::test]
async fn a_claim_whose_reads_take_longer_than_the_idle_limit_publishes() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (proxy, url) = Proxy::before(&world.database_url()).await.unwrap();
    let relay = world.relay(&[
        ("DATABASE_URL", &url),
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "2s"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "4s"),
    ]);
    relay.line("connected to both servers", SOON).await;
    // Each statement takes two seconds: less than the idle limit, and two of them take longer than the time for publishing.
    proxy.set(Mode::Delay(Duration::from_secs(1)));
    world.commit(&[(Some("1"), "created", "{}")]).await;
    consumer.until(1).await;
    world.drained().await;
}

#[tokio::test]
async fn a_claim_that_stood_still_until_its_deadline_publishes_nothing_and_says_so() {
    let world = world().await;
    let consumer = world.consumer().await;
    let gate = Gate::new();
    let relay = world.relay(&[
        ("OUTBOXD__RELAY__WORKERS", "1"),
        ("OUTBOXD__RELAY__CONFIRM_TIMEOUT", "500ms"),
        ("OUTBOXD__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT", "1s"),
        ("OUTBOXD_FAILPOINT", &gate.at("claim.after")),
    ]);
    world.commit(&[(Some("1"), "created", "{}")]).await;
    relay.line("failpoint reached", SOON).await;
    let claims = "pg_stat_activity WHERE datname = current_database() AND usename = 'relay' \
                  AND state = 'idle in transaction'";
    world.until("the server to end the claim", claims, 0).await;
    gate.open();
    let said = "nothing of a claim was published: the relay stood still";
    relay.line(said, SOON).await;
    consumer.until(1).await;
    world.clean(&consumer, 0).await;
}
