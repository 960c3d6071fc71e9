//! The periodic jobs of a relay, and the faults that are nobody's message.

use std::{
    collections::HashMap,
    io::{Seek, SeekFrom, Write},
};

use test_support::{Daemon, eventually};

use crate::{
    seeing::{answers, scrape, until},
    world::{FAR, SOON, World, own_world, world},
};

const FAILED: &str = "a maintenance job failed";

fn failures(job: &str) -> String {
    format!("outbox_maintenance_failures_total{{task=\"{job}\"}}")
}

fn said(relay: &Daemon, text: &str) -> usize {
    relay
        .lines()
        .iter()
        .filter(|line| line.contains(text))
        .count()
}

const RETENTION: [(&str, &str); 2] = [
    ("OUTBOXD__RETENTION__SENT", "1s"),
    ("OUTBOXD__RETENTION__INTERVAL", "1s"),
];

/// A trigger `keep` that runs `body` for each row that retention deletes.
async fn before_delete(world: &World, body: &str) {
    let trigger = format!(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
         CREATE TRIGGER keep BEFORE DELETE ON outbox.message FOR EACH ROW EXECUTE FUNCTION keep()"
    );
    world.sql(&trigger).await;
}

/// Nobody may read the gauges, and the destination recovers: its held messages go out all the same.
#[tokio::test]
async fn gauges_that_cannot_be_read_hold_no_message() {
    let world = world().await;
    world.declare_exchange("events").await;
    let (relay, port) = world.watched(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000")]);
    world.commit_many(50, 50).await;
    let held = "outbox.waiting WHERE cause IN ('held', 'probe')";
    world.until("held messages", held, 50).await;
    until(port, "outbox_pending_messages", |v| v == 50.0).await;
    let sql = "REVOKE EXECUTE ON FUNCTION outbox.measure() FROM outbox_relay";
    world.sql(sql).await;
    relay.line(FAILED, SOON).await;
    until(port, "outbox_pending_messages", f64::is_nan).await;

    let consumer = world.consumer().await;
    consumer.until(50).await;
    world.drained().await;
    until(port, &failures("gauges"), |v| v >= 1.0).await;
    assert_eq!(scrape(port).await.unwrap()[&failures("circuits")], 0.0);
    assert_eq!(said(&relay, FAILED), 1, "once");
    let sql = "GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_relay";
    world.sql(sql).await;
    until(port, "outbox_pending_messages", |v| v == 0.0).await;
    relay.line("the maintenance job works again", SOON).await;
}

/// A trigger that refuses deletes fails retention, and nothing else: no new connection, no line a second, no gauge that
/// comes and goes.
#[tokio::test]
async fn retention_that_is_refused_ends_no_session_and_disturbs_no_gauge() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, port) = world.watched(&RETENTION);
    before_delete(&world, "RAISE 'we keep it';").await;
    world.commit_many(200, 200).await;
    consumer.until(200).await;
    relay.line(FAILED, SOON).await;
    let sessions = "SELECT string_agg(pid::text, ',') FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name LIKE '%/maintenance'";
    let session = async || -> Option<String> { world.one(sessions).await };
    let before = session().await;
    let seen = async || -> Option<HashMap<String, f64>> { scrape(port).await };
    eventually("several failures", SOON, async || {
        let metrics = seen().await?;
        assert!(!metrics["outbox_pending_messages"].is_nan());
        (metrics[&failures("retention")] >= 3.0).then_some(())
    })
    .await;
    assert_eq!(session().await, before, "the same session");
    assert_eq!(said(&relay, FAILED), 1, "once");
    assert_eq!(said(&relay, "has no connection"), 0);
    answers(port, 200, &[]).await;
    world.sql("DROP TRIGGER keep ON outbox.message").await;
    relay.line("the maintenance job works again", SOON).await;
    until(port, "outbox_pruned_total", |v| v >= 200.0).await;
}

/// One row that cannot be deleted keeps the rows of no other lane.
#[tokio::test]
async fn a_row_that_cannot_be_pruned_keeps_no_other_lane() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, port) = world.watched(&RETENTION);
    let body = "IF OLD.aggregate_id = '7' THEN RAISE 'we keep it'; END IF; RETURN OLD;";
    before_delete(&world, body).await;
    world.commit_many(640, 640).await;
    consumer.until(640).await;
    let line = relay
        .line("sent messages of a lane cannot be deleted", SOON)
        .await;
    assert!(line.contains("we keep it"), "{line}");
    relay.line(FAILED, SOON).await;
    world
        .until(
            "the other lanes",
            "outbox.message m WHERE lane <> (SELECT lane FROM outbox.message WHERE aggregate_id = '7')",
            0,
        )
        .await;
    assert!(world.count("outbox.message").await > 0);
    answers(port, 200, &[]).await;
}

/// What `check --connect` names, a relay that runs names too: with its cure, and not ready where an event can be lost.
#[tokio::test]
async fn a_running_relay_notices_a_missing_trigger_and_an_added_rule_and_warns_of_less() {
    let world = world().await;
    let _consumer = world.consumer().await;
    let (relay, port) = world.watched(&[]);
    answers(port, 200, &[]).await;
    // The view is made again, with one more column; nobody thinks of its trigger.
    let grants = "GRANT INSERT, SELECT, DELETE ON outbox.debezium TO outbox_producer";
    let view = |columns: &str| {
        format!(
            "DROP VIEW outbox.debezium; CREATE VIEW outbox.debezium AS \
             SELECT message_id AS id, aggregate_type AS aggregatetype, aggregate_id AS aggregateid, \
                    event_type AS type, payload{columns} FROM outbox.message; {grants};"
        )
    };
    world.sql(&view(", created_at")).await;
    let rule = "CREATE RULE silent AS ON UPDATE TO outbox.dead DO INSTEAD NOTHING";
    world.sql(rule).await;
    let cures = [
        "trigger kept on outbox.debezium",
        "outboxd sql",
        "DROP RULE silent ON outbox.dead",
    ];
    answers(port, 503, &cures).await;
    until(port, "outbox_schema_ok", |v| v == 0.0).await;
    let doubt = relay
        .line("parts that producers use or that speed needs differ", SOON)
        .await;
    assert!(doubt.contains("view outbox.debezium"), "{doubt}");
    let checked = world.outboxd(&["check", "--connect"], &[]).await;
    checked.ends(78, &cures);

    world
        .sql(
            "DROP RULE silent ON outbox.dead; DROP TRIGGER wake ON outbox.message; \
             CREATE TRIGGER kept INSTEAD OF DELETE ON outbox.debezium FOR EACH ROW EXECUTE FUNCTION outbox.kept()",
        )
        .await;
    answers(port, 200, &[]).await;
    eventually("a warning", SOON, async || {
        let lines = relay.lines();
        lines
            .iter()
            .find(|line| line.contains("trigger wake on outbox.message"))
            .map(|_| ())
    })
    .await;
}

/// A copy of the table that took its name, as people make it against bloat: everything is there, and the positions come from
/// the copy's own sequence. The relay's statements name the other one, so the marks would stand still.
#[tokio::test]
async fn a_copy_that_took_the_name_of_the_messages_is_named_with_its_cure() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (_relay, port) = world.watched(&[]);
    answers(port, 200, &[]).await;
    world
        .sql(
            "SET ROLE owner; BEGIN; CREATE TABLE outbox.message2 (LIKE outbox.message INCLUDING ALL); \
             ALTER TABLE outbox.message RENAME TO message_old; \
             ALTER TABLE outbox.message_old RENAME CONSTRAINT message_pkey TO message_old_pkey; \
             ALTER TABLE outbox.message2 RENAME TO message; \
             ALTER TABLE outbox.message RENAME CONSTRAINT message2_pkey TO message_pkey; \
             DO $$ DECLARE makes text; BEGIN \
                 FOR makes IN SELECT replace(pg_get_triggerdef(oid), 'message_old', 'message') FROM pg_trigger \
                              WHERE tgrelid = 'outbox.message_old'::regclass \
                 LOOP EXECUTE makes; END LOOP; END $$; \
             GRANT SELECT, DELETE, UPDATE (sent_at) ON outbox.message TO outbox_relay; COMMIT; RESET ROLE",
        )
        .await;
    let told =
        "outbox.message.id: draws from outbox.message2_id_seq, and not from outbox.message_id_seq";
    answers(port, 503, &[told]).await;
    let checked = world.outboxd(&["check", "--connect"], &[]).await;
    checked.ends(78, &[told, "ALTER SEQUENCE"]);
    world
        .sql(
            "ALTER SEQUENCE outbox.message_id_seq RENAME TO message_old_id_seq; \
             ALTER SEQUENCE outbox.message2_id_seq RENAME TO message_id_seq; \
             GRANT SELECT ON SEQUENCE outbox.message_id_seq TO outbox_relay",
        )
        .await;
    answers(port, 200, &[]).await;
    world.commit_many(100, 100).await;
    consumer.until(100).await;
    let above = "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.id > l.low_water";
    world.until("the marks to pass them", above, 0).await;
    // The old table still has its triggers.
    let marks = "SELECT sum(low_water)::bigint FROM outbox.lane";
    let before: i64 = world.one(marks).await;
    world.sql("TRUNCATE outbox.message_old").await;
    assert_eq!(world.one::<i64>(marks).await, before);
}

/// A message that a trigger marks as sent is never published. The relay cannot know it, so it names the trigger; a trigger can
/// also be meant so, and is no fault.
#[tokio::test]
async fn a_trigger_of_ones_own_on_the_messages_is_named_and_is_no_fault() {
    let world = world().await;
    let _consumer = world.consumer().await;
    world
        .sql(
            "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN NEW.sent_at := now(); RETURN NEW; END'; \
             CREATE TRIGGER stamps BEFORE INSERT ON outbox.message FOR EACH ROW EXECUTE FUNCTION stamp()",
        )
        .await;
    let (relay, port) = world.watched(&[]);
    let told = "triggers that are not the outbox's: stamps. ";
    relay.line(told, SOON).await;
    answers(port, 200, &[]).await;
    let checked = world.outboxd(&["check", "--connect"], &[]).await;
    checked.ends(0, &["warning: outbox.message has", told]);
}

/// Overwrites all pages of a relation but the first, beneath a server that is stopped meanwhile.
async fn damage(world: &mut World, relation: &str) {
    let sql = format!(
        "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('{relation}'::regclass)"
    );
    world.sql("CHECKPOINT").await;
    let path: String = world.one(&sql).await;
    world.own().postgres.stop().await.unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    assert!(size >= 2 * 8192, "{relation} has {size} bytes");
    file.seek(SeekFrom::Start(8192)).unwrap();
    file.write_all(&vec![0xAA; usize::try_from(size).unwrap() - 8192])
        .unwrap();
    drop(file);
    world.own().postgres.restart().await.unwrap();
    let database = world.database.clone();
    world.client = world.postgres().connect(&database).await.unwrap();
}

/// An index that claims use, and the index of the long values: each fails the read of every message.
#[tokio::test]
async fn a_damaged_index_kills_no_message_and_is_named_with_its_cure() {
    let mut world = own_world().await;
    let consumer = world.consumer().await;
    // Others wait for hours.
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, due_at, due_since) \
             SELECT i % 64, 1000000 + i, gen_random_uuid(), i, 'retry', now() + interval '10 min', now() \
             FROM generate_series(1, 6000) i; ANALYZE outbox.waiting",
        )
        .await;
    let toast = "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.reltoastrelid = i.indrelid \
                 WHERE c.oid = 'outbox.message'::regclass";
    let toast: String = world.one(toast).await;
    let long = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, binary_payload) \
                SELECT 'order', k::text, 'long', \
                       (SELECT string_agg(sha256((k * 1000 + i)::text::bytea), '') FROM generate_series(1, 300) i) \
                FROM generate_series(1, 300) k";
    let mut expected = 0;
    for (index, insert) in [("outbox.waiting_key", None), (&toast, Some(long))] {
        match insert {
            Some(sql) => world.sql(sql).await,
            None => world.commit_many(300, 300).await,
        }
        expected += 300;
        damage(&mut world, index).await;
        let (relay, port) = world.watched(&[("OUTBOXD__RELAY__BACKOFF_MAX", FAR)]);
        let line = relay.line("messages cannot be read", SOON).await;
        assert!(line.contains(&format!("REINDEX INDEX {index}")), "{line}");
        answers(
            port,
            503,
            &["cannot_read", &format!("REINDEX INDEX {index}")],
        )
        .await;
        until(port, "outbox_can_read", |v| v == 0.0).await;
        // Several attempts, by both workers.
        eventually("several attempts", SOON, async || {
            (said(&relay, "PostgreSQL failed") >= 8).then_some(())
        })
        .await;
        assert_eq!(world.count("outbox.dead").await, 0, "{index}");
        world.sql(&format!("REINDEX INDEX {index}")).await;
        consumer.until(expected).await;
        let unsent = "outbox.message WHERE sent_at IS NULL";
        world.until("the marks", unsent, 0).await;
        assert_eq!(world.count("outbox.dead").await, 0, "{index}");
        relay.line("no longer seen to fail", SOON).await;
        until(port, "outbox_can_read", |v| v == 1.0).await;
        answers(port, 200, &[]).await;
    }
    assert_eq!(consumer.len(), 600, "no duplicate");
}

/// A redrive must replay it: without `replay` its record would only be removed, because the message has its mark.
#[tokio::test]
async fn a_replay_that_cannot_be_read_is_filed_as_a_replay() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&[]);
    world.sql(&long("7, 7")).await;
    consumer.until(1).await;
    world.drained().await;
    world.sql(DAMAGE).await;
    let replay = ["replay", "--aggregate-type", "order", "--why", "x"];
    world.outboxd(&replay, &[]).await.ends(0, &["1 message"]);
    let dead = "outbox.dead WHERE reason = 'unreadable' AND replay";
    world.until("its end", dead, 1).await;
    assert_eq!(world.count("outbox.waiting").await, 0);
    assert_eq!(consumer.len(), 1);
}

/// One message of a key each, with a value that is stored outside of its row.
fn long(keys: &str) -> String {
    format!(
        "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, binary_payload) \
         SELECT 'order', k::text, 'long', \
                (SELECT string_agg(sha256((k * 1000 + i)::text::bytea), '') FROM generate_series(1, 300) i) \
         FROM generate_series({keys}) k;"
    )
}

/// Removes all such values, and leaves their rows.
const DAMAGE: &str = "CREATE EXTENSION pg_surgery; \
                      DO $$ DECLARE stored regclass; places tid[]; BEGIN \
                          SELECT reltoastrelid INTO stored FROM pg_class WHERE oid = 'outbox.message'::regclass; \
                          EXECUTE format('SELECT array_agg(ctid) FROM %s', stored) INTO places; \
                          PERFORM heap_force_kill(stored, places); END $$;";

/// Its long value is gone; those of its neighbours are not.
#[tokio::test]
async fn a_row_with_a_damaged_body_is_given_up_alone() {
    let world = world().await;
    let consumer = world.consumer().await;
    world.sql(&long("7, 7")).await;
    world.sql(DAMAGE).await;
    world.sql(&long("8, 67")).await;
    let (_relay, port) = world.watched(&[]);
    consumer.until(60).await;
    world.dead("reason = 'unreadable'", 1).await;
    world.drained().await;
    assert_eq!(consumer.len(), 60);
    assert_eq!(world.count("outbox.dead").await, 1);
    answers(port, 200, &[]).await;
}
