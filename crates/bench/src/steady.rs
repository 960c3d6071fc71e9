//! A steady load: how late is a message?

use std::time::{Duration, Instant};

use lapin::{Channel, options::BasicPublishOptions};
use test_support::Result;
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_postgres::Client;

use crate::{
    curve::Curve,
    flow,
    outbox::{self, BODY, Batch, Outbox},
    raw,
    relay::DEFAULTS,
    report::{Findings, Measure, Target, Unit},
    stage::{Queue, SOON},
    statistics::{median_of, percentile},
    workload::Bench,
};

/// Percent of the drain rate.
const LEVELS: [u32; 3] = [20, TARGETED, 80];
const TARGETED: u32 = 50;
/// Connections that write, each in its turn.
const WRITERS: u32 = 4;
/// Between two transactions of a connection.
const TICK: Duration = Duration::from_millis(20);

/// Milliseconds.
#[derive(Default)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
    /// Messages a second that were really written.
    load: f64,
}

pub async fn run(bench: &Bench) -> Result<Findings> {
    let stage = &bench.stage;
    let outbox = Outbox::new(stage, "steady").await?;
    let drain_rate = match bench.drain_rate.get() {
        Some(rate) => rate,
        None => {
            bench.say("steady: the drain rate, of which the loads are parts");
            let batch = Batch::new(bench.sizes.drain, bench.sizes.keys);
            let filled = outbox.fill(&batch).await?;
            stage.queue(Queue::Quorum).await?;
            let drain = flow::drain(stage, &outbox, &filled, DEFAULTS).await?;
            drain.per_second
        }
    };
    let (round_trips, levels) = bench
        .in_turns(
            "steady",
            async || round_trip(bench, &outbox).await,
            async || {
                let mut levels = Vec::new();
                let mut broker = Latency::default();
                for percent in LEVELS {
                    bench.say(&format!("steady: {percent} %"));
                    let rate = drain_rate * f64::from(percent) / 100.0;
                    levels.push(level(bench, &outbox, rate).await?);
                    if percent == TARGETED {
                        bench.say(&format!("steady: {percent} %, without a relay"));
                        broker = without_relay(bench, &outbox, rate).await?;
                    }
                }
                Ok((levels, broker))
            },
        )
        .await?;
    let (levels, broker): (Vec<_>, Vec<_>) = levels.into_iter().unzip();
    let baseline = |pick: fn(&Latency) -> f64| median_of(&round_trips, pick);
    let mut findings = Findings::default();
    for (i, percent) in LEVELS.into_iter().enumerate() {
        let of = |pick: fn(&Latency) -> f64| median_of(&levels, |levels| pick(&levels[i]));
        let target = match percent {
            TARGETED => Target::AtMost(50.0),
            _ => Target::None,
        };
        findings.measures.push(
            Measure::new(
                format!("steady, {percent} % of the drain rate, p99"),
                Unit::Milliseconds,
                Some(baseline(|l| l.p99)),
                of(|l| l.p99),
                target,
            )
            .note(format!(
                "{:.0} messages/s for {} s: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; one round trip: p50 {:.1} ms, p99 {:.1} ms",
                of(|l| l.load),
                bench.sizes.steady.as_secs(),
                of(|l| l.p50),
                of(|l| l.p99),
                of(|l| l.p999),
                baseline(|l| l.p50),
                baseline(|l| l.p99),
            )),
        );
        if percent == TARGETED
            && let Some(measure) = findings.measures.last_mut()
        {
            let of = |pick: fn(&Latency) -> f64| median_of(&broker, pick);
            measure.notes.push(format!(
                "the same writers, and a publisher that needs no database, publish to confirm: p50 {:.1} ms, p99 {:.1} ms, \
                 p99.9 {:.1} ms",
                of(|l| l.p50),
                of(|l| l.p99),
                of(|l| l.p999),
            ));
        }
        findings.curves.push(Curve::new(
            "latency",
            format!("{percent} %"),
            vec![
                (50.0, of(|l| l.p50)),
                (99.0, of(|l| l.p99)),
                (99.9, of(|l| l.p999)),
            ],
        ));
    }
    if let Some(first) = findings.measures.first_mut() {
        first.notes.push(
            "from created_at to sent_at, both by the database's clock: the rest of the producer's transaction and the \
             marking are in it, so it is a little more than commit to confirm"
                .to_owned(),
        );
    }
    Ok(findings)
}

/// Without an outbox: insert and commit, then publish and wait for the confirm.
async fn round_trip(bench: &Bench, outbox: &Outbox) -> Result<Latency> {
    let stage = &bench.stage;
    outbox.clear().await?;
    stage.queue(Queue::Quorum).await?;
    let channel = stage.channel().await?;
    let body = outbox::body(BODY);
    let insert = prepare(&outbox.client).await?;
    let keys = bench.sizes.keys as f64;
    let mut took = Vec::new();
    for n in 0..bench.sizes.events * 2 {
        let began = Instant::now();
        outbox.client.execute(&insert, &[&1_i32, &keys]).await?;
        let publish = channel.basic_publish(
            "events".into(),
            "order.created".into(),
            BasicPublishOptions::default(),
            &body,
            raw::properties(n),
        );
        if !publish.await?.await?.is_ack() {
            return Err("a publish was not acked".into());
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Latency {
        p50: percentile(&mut took, 0.5),
        p99: percentile(&mut took, 0.99),
        ..Latency::default()
    })
}

async fn level(bench: &Bench, outbox: &Outbox, rate: f64) -> Result<Latency> {
    let stage = &bench.stage;
    outbox.clear().await?;
    stage.queue(Queue::Quorum).await?;
    let relay = stage.relay(outbox, DEFAULTS).await?;
    let mut writers = JoinSet::new();
    let began = Instant::now();
    for writer in 0..WRITERS {
        let client = stage.postgres.connect(outbox.database).await?;
        let rows = rate * TICK.as_secs_f64() / f64::from(WRITERS);
        let (late, length) = (TICK * writer / WRITERS, bench.sizes.steady);
        let keys = bench.sizes.keys as f64;
        writers.spawn(async move { write(client, rows, keys, late, length).await });
    }
    let mut written = 0;
    while let Some(done) = writers.join_next().await {
        written += done??;
    }
    let load = written as f64 / began.elapsed().as_secs_f64();
    let sent = "SELECT NOT EXISTS (SELECT FROM outbox.message WHERE sent_at IS NULL)";
    outbox.until("the load is sent", sent, SOON).await?;
    relay.stop().await?;
    outbox.none_failed().await?;
    stage.queued(written).await?;
    // Without the first tenth, in which everything is new to its caches.
    let sql = "WITH began AS (SELECT min(created_at) AS at FROM outbox.message) \
               SELECT percentile_cont(ARRAY[0.5, 0.99, 0.999]) \
                      WITHIN GROUP (ORDER BY extract(epoch FROM sent_at - created_at)::double precision * 1000) \
               FROM outbox.message, began WHERE created_at > began.at + $1 * interval '1 second'";
    let warm = bench.sizes.steady.as_secs_f64() / 10.0;
    let row = outbox.client.query_one(sql, &[&warm]).await?;
    let [p50, p99, p999] = row.get::<_, Vec<f64>>(0)[..] else {
        return Err("nothing was written".into());
    };
    Ok(Latency {
        p50,
        p99,
        p999,
        load,
    })
}

/// The load of a level, and beside it a publisher of as many messages that needs no database: what the broker and the
/// machine alone make of it.
async fn without_relay(bench: &Bench, outbox: &Outbox, rate: f64) -> Result<Latency> {
    let stage = &bench.stage;
    outbox.clear().await?;
    stage.queue(Queue::Quorum).await?;
    let (mut writers, mut publishers) = (JoinSet::new(), JoinSet::new());
    let rows = rate * TICK.as_secs_f64() / f64::from(WRITERS);
    let length = bench.sizes.steady;
    let warm = length / 10;
    for writer in 0..WRITERS {
        let late = TICK * writer / WRITERS;
        let client = stage.postgres.connect(outbox.database).await?;
        let keys = bench.sizes.keys as f64;
        writers.spawn(async move { write(client, rows, keys, late, length).await });
        let channel = stage.channel().await?;
        publishers.spawn(async move { publish(&channel, rows, late, length, warm).await });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let mut took = Vec::new();
    while let Some(done) = publishers.join_next().await {
        took.extend(done??);
    }
    Ok(Latency {
        p50: percentile(&mut took, 0.5),
        p99: percentile(&mut took, 0.99),
        p999: percentile(&mut took, 0.999),
        ..Latency::default()
    })
}

/// Milliseconds from the time at which a message should have been published to its confirm, but for the first ones.
async fn publish(
    channel: &Channel,
    rows: f64,
    late: Duration,
    length: Duration,
    warm: Duration,
) -> Result<Vec<f64>> {
    let body = outbox::body(BODY);
    let mut owed = 0.0;
    let mut took = Vec::new();
    tokio::time::sleep(late).await;
    let began = Instant::now();
    for n in 0_u32.. {
        let due = TICK * n;
        if due >= length {
            break;
        }
        tokio::time::sleep((began + due).saturating_duration_since(Instant::now())).await;
        owed += rows;
        let mut confirms = Vec::new();
        while owed >= 1.0 {
            owed -= 1.0;
            let publish = channel.basic_publish(
                "events".into(),
                "order.created".into(),
                BasicPublishOptions::default(),
                &body,
                raw::properties(confirms.len()),
            );
            confirms.push(publish.await?);
        }
        for confirm in confirms {
            if !confirm.await?.is_ack() {
                return Err("a publish was not acked".into());
            }
            if due >= warm {
                took.push((began.elapsed() - due).as_secs_f64() * 1e3);
            }
        }
    }
    Ok(took)
}

/// Transactions at fixed times, whatever the last one took. Returns how many messages.
async fn write(
    client: Client,
    rows: f64,
    keys: f64,
    late: Duration,
    length: Duration,
) -> Result<usize> {
    let insert = prepare(&client).await?;
    tokio::time::sleep(late).await;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let (mut owed, mut written) = (0.0, 0);
    while began.elapsed() < length {
        tick.tick().await;
        owed += rows;
        let now = owed as i32;
        if now > 0 {
            client.execute(&insert, &[&now, &keys]).await?;
            owed -= f64::from(now);
            written += now as usize;
        }
    }
    Ok(written)
}

/// $1 messages over $2 keys.
async fn prepare(client: &Client) -> Result<tokio_postgres::Statement> {
    let sql = format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
         SELECT 'order', floor(random() * $2::double precision)::text, 'created', \
                ('{{\"id\":' || lpad(i::text, 12) || ',\"pad\":\"{}\"}}')::json \
         FROM generate_series(1, $1::int) i",
        "x".repeat(BODY - 28)
    );
    Ok(client.prepare(&sql).await?)
}
