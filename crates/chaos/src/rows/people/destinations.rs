//! A destination that fails for all that goes there. Row 67.

use std::time::{Duration, Instant};

use lapin::{Channel, types::AMQPValue};
use test_support::{amqp, eventually, probe};

use crate::{
    arena::{Arena, QUEUE, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    67, "one of several queues bound for a message is full; thousands of messages, or of destinations, that fail in the same way" => full_beside_healthy(setup);
};

/// Exchange, routing key of a message, and what the log says.
const DESTINATIONS: [(&str, &str, &str); 2] = [
    ("both", "NULL", "everything to this destination fails"),
    // Each message has its own destination.
    (
        "each",
        "'key-' || i",
        "many destinations of this exchange fail in the same way",
    ),
];

async fn full_beside_healthy(setup: &Setup) -> Result<Outcome> {
    let messages = if setup.long { 100_000 } else { 5_000 };
    let mut arena = Arena::start(setup).await?;
    arena.set("OUTBOXD__RELAY__MAX_ATTEMPTS", "100000");
    let channel = amqp::channel(&arena.broker_url()).await?;
    for (exchange, _, _) in DESTINATIONS {
        amqp::bind(&channel, exchange, QUEUE).await?;
    }
    let mut scene = Scene::of(arena).await?;
    for destinations in DESTINATIONS {
        one_full(&mut scene, &channel, messages, destinations).await?;
    }
    scene.end().await
}

async fn one_full(
    scene: &mut Scene<'_>,
    channel: &Channel,
    messages: usize,
    (exchange, routing_key, said): (&str, &str, &str),
) -> Result<()> {
    let refusing = AMQPValue::LongString("reject-publish".into());
    let full = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", refusing),
    ];
    amqp::queue_with(channel, "full", &full).await?;
    // So that not one of them is taken: a destination that takes one does not fail.
    amqp::publish(channel, "full", "first", "x", "").await?;
    amqp::bind(channel, exchange, "full").await?;
    let again = "the destination takes messages again";
    let before = scene.said(again);
    let began = Instant::now();
    let insert = format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange, routing_key) \
         SELECT 'row', '{exchange}-' || i, 'x', '{{}}', '{exchange}', {routing_key} FROM generate_series(1, {messages}) i"
    );
    let ids = scene.flow.commits(&scene.owner, &insert).await?;
    scene.logs(said).await?;
    eventually("the gauge", SOON, async || {
        let failing = probe::metric(scene.port, "outbox_failing_destinations").await?;
        (failing >= 1.0).then_some(())
    })
    .await;
    let unfiled = format!(
        "outbox.message m LEFT JOIN outbox.waiting w USING (lane, id) \
         WHERE m.exchange = '{exchange}' AND m.sent_at IS NULL AND w.id IS NULL"
    );
    scene.until("all of them to be held", &unfiled, 0).await;
    let probes = "outbox.waiting WHERE failed_probes >= 3";
    scene
        .arena
        .until_count("some probes to fail", probes, |n| n > 0)
        .await;
    // Everybody else flows.
    scene.flow.steady(200).await?;
    let copies = copies(scene, &ids);
    // Two workers' batches until the first answers; then a probe a back-off, which doubles to a second and has its luck with
    // the jitter, and one new message a second.
    let probes = 40 + 4 * usize::try_from(began.elapsed().as_secs())?;
    expect(copies <= WINDOW + probes, || {
        format!(
            "{copies} copies in the healthy queue; {} are allowed",
            WINDOW + probes
        )
    })?;
    scene.flow.note(format!(
        "{copies} copies of {messages} in the healthy queue within {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    // Somebody makes room.
    amqp::delete(channel, "full").await?;
    let allowed = copies + WINDOW + probes;
    scene.endured(Duration::from_secs(60), allowed).await?;
    scene.logs_again(again, before).await?;
    let failing = "outbox_failing_destinations";
    scene.shows(failing, |failing| failing == 0.0).await
}

/// Deliveries of these so far.
fn copies(scene: &Scene<'_>, ids: &[uuid::Uuid]) -> usize {
    let ids: std::collections::HashSet<_> = ids.iter().collect();
    let seen = scene.flow.deliveries.seen();
    seen.iter()
        .filter(|seen| ids.contains(&seen.message_id))
        .count()
}
