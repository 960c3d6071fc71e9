//! A steady load: how late is a message?

use std::time::{Duration, Instant};

use lapin::{Channel, options::BasicPublishOptions};
use test_support::Result;
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_postgres::Client;

use crate::{
    outbox::{self, BODY, Batch, Outbox},
    raw,
    relay::DEFAULTS,
    report::{Measure, Target, Unit},
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
struct Latency {
    p50: f64,
    p99: f64,
    /// Messages a second that were really written.
    load: f64,
}

impl Latency {
    fn of(took: &[f64]) -> Self {
        Self {
            p50: percentile(took, 0.5),
            p99: percentile(took, 0.99),
            load: 0.0,
        }
    }
}

fn medians(runs: &[&Latency]) -> String {
    format!(
        "p50 {:.1} ms, p99 {:.1} ms",
        median_of(runs, |l| l.p50),
        median_of(runs, |l| l.p99)
    )
}

pub async fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let outbox = Outbox::new(&bench.stage, "steady").await?;
    let drain_rate = match bench.drain_rate.get() {
        Some(rate) => rate,
        None => {
            bench.say("steady: the drain rate, of which the loads are parts");
            let batch = Batch::new(bench.sizes.drain, bench.sizes.keys);
            let drain = bench.drained(&outbox, &batch, Queue::Quorum, DEFAULTS);
            drain.await?.per_second
        }
    };
    let rate_of = |percent: u32| drain_rate * f64::from(percent) / 100.0;
    let (round_trips, turns) = bench
        .in_turns(
            "steady",
            async || round_trip(bench, &outbox).await,
            async || {
                let mut levels = Vec::new();
                for percent in LEVELS {
                    bench.say(&format!("steady: {percent} %"));
                    levels.push(level(bench, &outbox, rate_of(percent)).await?);
                }
                bench.say(&format!("steady: {TARGETED} %, without a relay"));
                Ok((
                    levels,
                    without_relay(bench, &outbox, rate_of(TARGETED)).await?,
                ))
            },
        )
        .await?;
    let one: Vec<&Latency> = round_trips.iter().collect();
    let mut measures = Vec::new();
    for (i, percent) in LEVELS.into_iter().enumerate() {
        let level: Vec<&Latency> = turns.iter().map(|(levels, _)| &levels[i]).collect();
        let what = format!("steady, {percent} % of the drain rate, p99");
        let (baseline, relay) = (median_of(&one, |l| l.p99), median_of(&level, |l| l.p99));
        let target = match percent {
            TARGETED => Target::AtMost(50.0),
            _ => Target::None,
        };
        let mut measure = Measure::new(what, Unit::Milliseconds, Some(baseline), relay, target)
            .note(format!(
                "{:.0} messages/s for {} s: {}; one round trip: {}",
                median_of(&level, |l| l.load),
                bench.sizes.steady.as_secs(),
                medians(&level),
                medians(&one)
            ));
        if percent == TARGETED {
            let broker: Vec<&Latency> = turns.iter().map(|(_, broker)| broker).collect();
            measure = measure.note(format!(
                "the same writers, and a publisher that needs no database, publish to confirm: {}",
                medians(&broker)
            ));
        }
        measures.push(measure);
    }
    Ok(measures)
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
    Ok(Latency::of(&took))
}

/// From created_at to sent_at, both by the database's clock: the rest of the producer's transaction and the marking are in
/// it, so it is a little more than commit to confirm.
async fn level(bench: &Bench, outbox: &Outbox, rate: f64) -> Result<Latency> {
    let stage = &bench.stage;
    outbox.clear().await?;
    stage.queue(Queue::Quorum).await?;
    let relay = stage.relay(outbox, DEFAULTS).await?;
    let began = Instant::now();
    let written = writers(bench, outbox, rate).await?.join_all().await;
    let took = began.elapsed().as_secs_f64();
    let written: usize = written.into_iter().sum::<Result<usize>>()?;
    let load = written as f64 / took;
    outbox.until_sent(SOON).await?;
    relay.stop().await?;
    outbox.none_failed().await?;
    stage.queued(written).await?;
    // Without the first tenth, in which everything is new to its caches.
    let sql = "WITH began AS (SELECT min(created_at) AS at FROM outbox.message) \
               SELECT percentile_cont(ARRAY[0.5, 0.99]) \
                      WITHIN GROUP (ORDER BY extract(epoch FROM sent_at - created_at)::double precision * 1000) \
               FROM outbox.message, began WHERE created_at > began.at + $1 * interval '1 second'";
    let warm = bench.sizes.steady.as_secs_f64() / 10.0;
    let row = outbox.client.query_one(sql, &[&warm]).await?;
    let [p50, p99] = row.get::<_, Vec<f64>>(0)[..] else {
        return Err("nothing was written".into());
    };
    Ok(Latency { p50, p99, load })
}

/// The load of a level, and beside it a publisher of as many messages that needs no database: what the broker and the
/// machine alone make of it.
async fn without_relay(bench: &Bench, outbox: &Outbox, rate: f64) -> Result<Latency> {
    let stage = &bench.stage;
    outbox.clear().await?;
    stage.queue(Queue::Quorum).await?;
    let writers = writers(bench, outbox, rate).await?;
    let mut publishers = JoinSet::new();
    for pace in paces(bench, rate) {
        let channel = stage.channel().await?;
        publishers.spawn(async move { publish(&channel, pace).await });
    }
    for written in writers.join_all().await {
        written?;
    }
    let mut took = Vec::new();
    for one in publishers.join_all().await {
        took.extend(one?);
    }
    Ok(Latency::of(&took))
}

/// The part of a load that one connection has.
#[derive(Clone, Copy)]
struct Pace {
    /// Messages of a tick.
    rows: f64,
    late: Duration,
    length: Duration,
}

fn paces(bench: &Bench, rate: f64) -> impl Iterator<Item = Pace> {
    let length = bench.sizes.steady;
    (0..WRITERS).map(move |writer| Pace {
        rows: rate * TICK.as_secs_f64() / f64::from(WRITERS),
        late: TICK * writer / WRITERS,
        length,
    })
}

async fn writers(bench: &Bench, outbox: &Outbox, rate: f64) -> Result<JoinSet<Result<usize>>> {
    let mut writers = JoinSet::new();
    let keys = bench.sizes.keys as f64;
    for pace in paces(bench, rate) {
        let client = bench.stage.postgres.connect(outbox.database).await?;
        writers.spawn(async move { write(client, keys, pace).await });
    }
    Ok(writers)
}

/// Milliseconds from the time at which a message should have been published to its confirm, but for the first ones.
async fn publish(channel: &Channel, pace: Pace) -> Result<Vec<f64>> {
    let Pace { rows, late, length } = pace;
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
            if due >= length / 10 {
                took.push((began.elapsed() - due).as_secs_f64() * 1e3);
            }
        }
    }
    Ok(took)
}

/// Transactions at fixed times, whatever the last one took. Returns how many messages.
async fn write(client: Client, keys: f64, pace: Pace) -> Result<usize> {
    let Pace { rows, late, length } = pace;
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
