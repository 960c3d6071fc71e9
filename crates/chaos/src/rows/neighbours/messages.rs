//! Messages and servers that nobody wrote in good faith. H5, H6.

use std::{net::SocketAddr, time::Duration};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use test_support::{
    Proxy,
    amqp::{self, short},
    eventually,
    liar::{self, Liar},
    probe,
    raw::{HEADERS, MESSAGE_ID, Publisher, TYPE, long, nested, short as text},
};

use super::bounds::{MEMORY_KIB, bounded};
use crate::{
    arena::{Arena, SOON, Setup, WINDOW},
    row::{Outcome, Result, Row, expect, rows},
    rows::{
        consumer::{Stage, WORK, dead_letters},
        scene::Scene,
    },
};

pub const ROWS: &[Row] = rows! { setup;
    5, "a publisher at a consumer: headers nested 500 deep, headers that fill the frame, no id, foreign outbox-* headers" => publisher(setup);
    6, "a broker or a PostgreSQL that lies: frame_max 0 and 2^32-1, nested server-properties, rows of 2 GB" => liars(setup);
};

/// What a consumer's guard writes in place of headers that it left out.
const REMOVED: &str = "outbox-headers-removed";

/// The entries fill the frame to its last byte, with the delivery mode and the type beside them.
fn filling(type_: &str) -> AMQPValue {
    let frame = 8 + 14;
    let properties = 1 + 1 + type_.len();
    let table = 4 + 1 + "large".len() + 1 + 4;
    AMQPValue::LongString("x".repeat(131_072 - frame - properties - table).into())
}

/// The consumer's channel, as the broker knows it. Another connection has another one.
async fn connected(stage: &Stage<'_>) -> Result<String> {
    let consumers = ["list_consumers", "-q", "queue_name", "channel_pid"];
    let listed = stage.arena.rabbitmq.ctl(&consumers).await?;
    let of = format!("{WORK}\t");
    let line = listed.lines().find_map(|line| line.strip_prefix(&of));
    Ok(line.ok_or("nobody consumes")?.to_owned())
}

async fn publisher(setup: &Setup) -> Result<Outcome> {
    let stage = Stage::set(setup).await?;
    let consumer = stage.consumer(stage.direct())?;
    stage.publish("first", "x", "{}").await?;
    let first = "public.applied WHERE message_id = 'first'";
    stage
        .arena
        .until_count("it to work", first, |n| n == 1)
        .await;
    let connected = connected(&stage).await?;
    let mut bad = Vec::new();
    // By the byte: what no library writes.
    let with = |headers: &[u8]| [long(headers), text("id"), text("x")].concat();
    let all = HEADERS | MESSAGE_ID | TYPE;
    let mut publisher = Publisher::connect(stage.direct(), "/").await?;
    for (flags, properties) in [
        (all, with(&nested(500))),
        (all, with(&nested(20_000))),
        (all, with(b"\x02\xff\xfet\x01")),
        (MESSAGE_ID | TYPE, b"\x02id\x02\xff\xfe".to_vec()),
        (MESSAGE_ID | TYPE, b"\x02\xff\xfe\x01x".to_vec()),
    ] {
        publisher.publish(WORK, flags, &properties, b"{}").await?;
        bad.push(("headers_unreadable", None));
    }
    publisher.done().await?;
    // With a library: no id, a full frame, headers that only a relay writes.
    let string = |text: &str| AMQPValue::LongString(text.into());
    for (header, id, reason) in [
        (None, None, "message_id_invalid"),
        (Some(("large", filling("x"))), None, "message_id_invalid"),
        // What a dead letter says of itself, and what says that something was left out.
        (
            Some(("outbox-dead-reason", string("forged"))),
            None,
            "message_id_invalid",
        ),
        (
            Some(("outbox-dead-removed", string("forged"))),
            None,
            "message_id_invalid",
        ),
        (
            Some((REMOVED, string("forged"))),
            Some("forged-4"),
            "headers_unreadable",
        ),
        (
            Some(("outbox-position", string("7"))),
            Some("forged-1"),
            "headers_invalid",
        ),
        (
            Some(("outbox-key", AMQPValue::LongLongInt(7))),
            Some("forged-2"),
            "headers_invalid",
        ),
        (
            Some(("outbox-replay", string("true"))),
            Some("forged-3"),
            "headers_invalid",
        ),
    ] {
        let mut properties = BasicProperties::default().with_type(short("x"));
        // A frame that is full has no room for what a dead letter says.
        let full = header.as_ref().is_some_and(|(name, _)| *name == "large");
        bad.push((reason, full.then(|| "1: large".to_owned())));
        if let Some((name, value)) = header {
            let mut headers = FieldTable::default();
            headers.insert(short(name), value);
            properties = properties.with_headers(headers);
        }
        if let Some(id) = id {
            properties = properties.with_message_id(short(id));
        }
        amqp::publish_with(&stage.channel, WORK, properties, "{}").await?;
    }
    let came = dead_letters(&stage, bad.len()).await?;
    let altered = came.iter().filter(|letter| letter.body != b"{}").count();
    expect(altered == 0, || {
        format!("{altered} dead letters have another body")
    })?;
    let forged = came.iter().find(|letter| letter.error.contains("forged"));
    expect(forged.is_none(), || {
        format!("a publisher's words are passed on as the guard's: {forged:?}")
    })?;
    let mut letters: Vec<(&str, Option<String>)> = came
        .iter()
        .map(|letter| (letter.reason.as_str(), letter.left_out.clone()))
        .collect();
    letters.sort();
    bad.sort();
    expect(letters == bad, || {
        format!("the dead letters say {letters:?}, not {bad:?}")
    })?;
    stage.publish("last", "x", "{}").await?;
    let last = "public.applied WHERE message_id = 'last'";
    stage
        .arena
        .until_count("it to go on", last, |n| n == 1)
        .await;
    // None of them cost the others their connection.
    let still = self::connected(&stage).await?;
    expect(still == connected, || {
        format!("the consumer had to connect again: {connected}, then {still}")
    })?;
    let foreign = "public.applied WHERE message_id = 'id' OR message_id LIKE 'forged-%'";
    let foreign = stage.count(foreign).await?;
    expect(foreign == 0, || format!("{foreign} of them were applied"))?;
    let memory = probe::peak_kib(consumer.pid())?;
    expect(memory < MEMORY_KIB, || {
        format!("the consumer took {memory} KiB")
    })?;
    let mut outcome = stage.applied_once().await?;
    outcome.notes.push(format!(
        "{} dead letters with their reasons; the consumer took at most {} MiB",
        bad.len(),
        memory / 1024
    ));
    Ok(outcome)
}

async fn liars(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let honest: [SocketAddr; 2] =
        [arena.postgres.port(), arena.rabbitmq.port()].map(|port| ([127, 0, 0, 1], port).into());
    let (database, broker) = (arena.database_proxy().await?, arena.broker_proxy().await?);
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    let mut scene = Scene::of(arena).await?;
    for limit in [0, u32::MAX] {
        let liar = Liar::start(liar::start(), liar::tune(limit)).await?;
        instead(&broker, liar.address()).await;
        let agreed = eventually("an agreement", SOON, async || {
            liar.agreed().first().copied()
        })
        .await;
        expect(agreed == 131_072, || {
            format!("{limit} was offered, and {agreed} agreed on")
        })?;
        instead(&broker, honest[1]).await;
        scene.endured(AGAIN, WINDOW).await?;
    }
    let mut endless = vec![1, 0, 0, 0xff, 0xff, 0xff, 0xff];
    endless.extend([0, 10, 0, 10]);
    for (start, said) in [
        (liar::nested_start(20_000), "nested deeper than 32 levels"),
        (endless, "131072 were agreed on"),
    ] {
        let liar = Liar::start(start, liar::tune(131_072)).await?;
        instead(&broker, liar.address()).await;
        scene.logs(said).await?;
        instead(&broker, honest[1]).await;
        scene.endured(AGAIN, WINDOW).await?;
    }
    let (liar, serving) = liar::endless_postgres(ENDLESS).await?;
    instead(&database, liar).await;
    // So that whatever it takes is taken.
    eventually("a few attempts", SOON, async || {
        let lines = scene.relay.lines();
        let failed = lines
            .iter()
            .filter(|line| line.contains("PostgreSQL failed"));
        (failed.count() >= 4).then_some(())
    })
    .await;
    serving.abort();
    instead(&database, honest[0]).await;
    scene.endured(AGAIN, WINDOW).await?;
    scene.flow.note(bounded(&scene.relay)?);
    scene.end().await
}

const AGAIN: Duration = Duration::from_secs(20);
/// Of a row that is announced to be of 2 GB, on each of five sessions. What a server sends within a statement's time-out is
/// kept until then, however much it is: the driver has no bound of its own.
const ENDLESS: usize = 16 << 20;

/// Whoever connects gets there; nobody stays where he is.
async fn instead(proxy: &Proxy, address: SocketAddr) {
    proxy.retarget(address);
    proxy.sever(SOON).await;
}
