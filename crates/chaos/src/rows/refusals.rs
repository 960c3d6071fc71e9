//! What the broker refuses by permission or hands back, among what it takes. Rows 68 and 69.

use test_support::{amqp, commits::RECORDED, drained};

use crate::{
    arena::{Arena, QUEUE, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
};

pub const ROWS: &[Row] = rows! { setup;
    68, "a topic permission that refuses 1 %, 30 %, 99 % of the keys" => topic_permission(setup);
    69, "two rows with one message id in a wave, one routable" => twins(setup);
};

async fn topic_permission(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let broker = &arena.rabbitmq;
    broker.ctl(&["add_user", "relay", "relay"]).await?;
    let everything = ["set_permissions", "relay", "", ".*", ""];
    broker.ctl(&everything).await?;
    let no_bad = [
        "set_topic_permissions",
        "relay",
        "events",
        "^(?!row.bad)",
        ".*",
    ];
    broker.ctl(&no_bad).await?;
    let url = broker.url_for("relay", "relay", "/");
    arena.set("AMQP_URL", &url);
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "3");
    let (mut flow, _relay) = arena.flowing().await?;
    let client = arena.owner().await?;
    for percent in [1, 30, 99] {
        let type_ =
            format!("CASE WHEN i * 37 % 100 < {percent} THEN 'bad' || i ELSE 'good' || i % 5 END");
        // No key of the producers beside it: transactions that write one key at once have no order.
        let key = format!("'share-{percent}-' || i");
        let insert = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'row', {key}, {type_}, '{{}}' FROM generate_series(1, 300) i"
        );
        flow.commits(&client, &insert).await?;
        drained(&client).await;
    }
    let wrong = "outbox.message m LEFT JOIN outbox.dead d USING (lane, id) \
                 WHERE (m.event_type LIKE 'bad%') <> (d.id IS NOT NULL) OR d.reason <> 'access_refused'";
    let wrong = arena.count(wrong).await?;
    expect(wrong == 0, || {
        format!("{wrong} messages were taken for what they are not")
    })?;
    flow.note("each of the 390 forbidden is dead, and nothing else");
    flow.lets_die(390);
    // Each worker learns of it once, by the channel of a wave.
    flow.finish(WINDOW).await
}

/// A producer's fan-out: one id, two exchanges.
async fn twins(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "1");
    let channel = amqp::channel(&arena.broker_url()).await?;
    for exchange in ["unbound", "bound"] {
        amqp::exchange(&channel, exchange).await?;
    }
    amqp::bind(&channel, "bound", QUEUE).await?;
    let flow = arena.flow().await?;
    flow.traffic.pause(true);
    let client = arena.owner().await?;
    let sql = "INSERT INTO outbox.message (aggregate_type, event_type, payload, exchange, message_id) \
               SELECT 'row', 'twin', '{}', e, md5(i::text)::uuid \
               FROM generate_series(1, 1000) i, unnest(ARRAY['unbound', 'bound']) e";
    client.batch_execute(sql).await?;
    let _relay = arena.relay()?;
    drained(&client).await;
    let wrong = "outbox.message m LEFT JOIN outbox.dead d USING (lane, id) \
                 WHERE m.event_type = 'twin' AND (m.exchange = 'unbound') <> (d.id IS NOT NULL)";
    let wrong = arena.count(wrong).await?;
    expect(wrong == 0, || {
        format!("{wrong} of 2,000 were taken for their twin")
    })?;
    // The ledger goes by id: the half that is bound, each once. Its dead twins would excuse a loss.
    let delivered = flow.deliveries.seen().len();
    expect(delivered >= 1000, || {
        format!("{delivered} of 1,000 arrived")
    })?;
    client
        .batch_execute(
            "DELETE FROM outbox.dead; DELETE FROM outbox.message WHERE exchange = 'unbound'",
        )
        .await?;
    let twins = format!("SELECT {RECORDED} FROM outbox.message WHERE event_type = 'twin'");
    flow.records(&client, &twins).await?;
    flow.finish(0).await
}
