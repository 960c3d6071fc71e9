//! Rows that cannot be read. Row 70.

use std::time::{Duration, Instant};

use crate::{
    arena::{self, Arena, Setup, WINDOW},
    flow::connect,
    pace,
    row::{Outcome, Result, Row, expect, rows, within},
    traffic::Rate,
};

pub const ROWS: &[Row] = rows! { setup;
    70, "rows that cannot be read within the time-out, or at all (encoding, damage)" => unreadable(setup);
};

/// The four ways.
const BAD: [&str; 4] = [
    // Bytes that have no equivalent in the encoding that the relay reads.
    "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
     VALUES ('bad', '1', convert_from('\\x81'::bytea, 'WIN1252'), '{}')",
    "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
     VALUES ('bad', '2', 'x', to_json(convert_from('\\x81'::bytea, 'WIN1252')))",
    // Stored outside of its row, and gone from there below.
    "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, binary_payload) \
     SELECT 'bad', '3', 'x', string_agg(sha256(i::text::bytea), '') FROM generate_series(1, 300) i",
    // Its key's hash never comes to an end, see below.
    "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) VALUES ('bad', 'endless', 'x', '{}')",
];

async fn unreadable(setup: &Setup) -> Result<Outcome> {
    let mut arena = Arena::start(setup).await?;
    let latin =
        "CREATE DATABASE latin ENCODING 'WIN1252' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'";
    arena.postgres.execute("postgres", latin).await?;
    setup.plan().install(&arena.postgres, "latin").await?;
    let url = arena.postgres.url_for("relay", "relay", "latin");
    arena.set("DATABASE_URL", &url);
    arena.set("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "1s");
    let owner = connect(&arena.postgres.url("latin")).await?;
    let endless = "CREATE OR REPLACE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint \
                   LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$ BEGIN \
                       IF aggregate_id = 'endless' THEN PERFORM pg_sleep(30); END IF; \
                       RETURN hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0)); \
                   END $$";
    owner.batch_execute(endless).await?;
    let url = arena.postgres.url("latin");
    let mut flow = arena.flow_over(&url, &arena.broker_url(), Rate::default());
    let _relay = arena.relay()?;
    flow.steady(200).await?;
    let damage = "CREATE EXTENSION pg_surgery; \
                  DO $$ DECLARE stored regclass; places tid[]; BEGIN \
                      SELECT reltoastrelid INTO stored FROM pg_class WHERE oid = 'outbox.message'::regclass; \
                      EXECUTE format('SELECT array_agg(ctid) FROM %s', stored) INTO places; \
                      PERFORM heap_force_kill(stored, places); END $$";
    owner.batch_execute("BEGIN").await?;
    for insert in BAD {
        owner
            .batch_execute(insert)
            .await
            .map_err(|error| format!("{insert}: {error:?}"))?;
    }
    owner
        .batch_execute(damage)
        .await
        .map_err(|error| format!("{error:?}"))?;
    owner.batch_execute("COMMIT").await?;
    let neighbours = flow.writes(&owner, "neighbour-", 300).await?;
    let began = Instant::now();
    let missing = flow.deliveries.missing(neighbours).await;
    let took = began.elapsed();
    expect(missing == 0, || {
        format!("{missing} neighbours did not arrive")
    })?;
    test_support::eventually("the four to be dead", arena::SOON, async || {
        let dead = "SELECT count(*) FROM outbox.dead WHERE reason = 'unreadable'";
        let dead: i64 = owner.query_one(dead, &[]).await.ok()?.get(0);
        (dead == 4).then_some(())
    })
    .await;
    let over = Instant::now();
    within(took, NEIGHBOURS, pace::slowness(began), || {
        "the neighbours arrived late".to_owned()
    })?;
    flow.endured(over, Duration::from_secs(15), WINDOW).await?;
    let healthy = "SELECT count(*) FROM outbox.dead WHERE reason <> 'unreadable'";
    let healthy: i64 = owner.query_one(healthy, &[]).await?.get(0);
    expect(healthy == 0, || format!("{healthy} others are dead"))?;
    // What they were is not known to the ledger.
    let gone = "DELETE FROM outbox.dead; DELETE FROM outbox.message WHERE aggregate_type = 'bad'";
    owner.batch_execute(gone).await?;
    flow.note("4 dead (unreadable), and nobody else");
    flow.end().await
}

/// Two time-outs of a second for whoever is read beside the endless one, and a busy machine.
const NEIGHBOURS: Duration = Duration::from_secs(20);
