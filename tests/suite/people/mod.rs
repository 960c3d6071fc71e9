//! Changes by people and their tools: the relay finds every committed, unsent message.

mod audited;
mod copied;
mod corrected;
mod emptied;
mod inherited;
mod kept;
mod numbered;
mod records;
mod said;
mod times;
mod values;

use tokio_postgres::{Client, types::ToSql};

use crate::world::{Consumer, World};

/// Writes `n` events over 97 keys of this name, in most lanes, and records them in the ledger. It runs in the transaction that
/// `client` has open, if any.
pub async fn write(world: &World, client: &Client, name: &str, n: i32) {
    let insert = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
                  SELECT 'order', $1 || i % 97, 'created', json_build_object('i', i) FROM generate_series(1, $2) i";
    let parameters: [&(dyn ToSql + Sync); 2] = [&name, &n];
    let written = world.ledger.insert(client, insert, &parameters);
    written.await.unwrap();
}

impl World {
    /// Waits until every message is sent and below the marks: after that no claim reads it.
    pub async fn passed(&self) {
        self.drained().await;
        self.until(
            "the marks to pass what was sent",
            "outbox.message m LEFT JOIN outbox.lane l USING (lane) WHERE m.id > coalesce(l.low_water, -1)",
            0,
        )
        .await;
    }

    /// A hidden message is sent when it is found, perhaps after later messages of its key: no order is promised.
    pub async fn none_lost(&self, consumer: &Consumer) {
        let report = self.judge(consumer).await;
        assert!(
            report.lost.is_empty() && report.unknown.is_empty() && report.dead == 0,
            "{report}"
        );
        self.drained().await;
    }

    pub async fn all_arrived(&self, consumer: &Consumer) {
        let report = self.judge(consumer).await;
        assert!(report.is_clean(), "{report}");
        self.drained().await;
    }
}
