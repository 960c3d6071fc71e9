//! Writes that a trigger, a rule or a missing privilege keeps from taking effect: the relay proves each of them, and commands do
//! not report what did not happen. See also row 66 of the fault matrix.

use lapin::types::AMQPValue;
use test_support::{Daemon, amqp, probe};

use crate::{
    kit::{self, BATCH, SETTINGS, WORKERS, several_attempts},
    world::{Consumer, SOON, World, world},
};

/// A trigger of a person on this table.
pub fn trigger(name: &str, event: &str, table: &str, body: &str) -> String {
    format!(
        "CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body} END'; \
         CREATE TRIGGER {name} BEFORE {event} ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION public.{name}()"
    )
}

pub async fn drop_trigger(world: &World, name: &str, table: &str) {
    world
        .sql(&format!(
            "DROP TRIGGER {name} ON outbox.{table}; DROP FUNCTION public.{name}()"
        ))
        .await;
}

/// `/readyz` names the obstacle, too.
pub async fn named(relay: &Daemon, port: u16, said: &str) {
    kit::named(relay, port, said, &[said]).await;
}

/// While the relay repeats its attempts it publishes nothing more.
pub async fn no_flood(world: &World, consumer: &Consumer, relay: &Daemon, bound: usize) {
    several_attempts(relay).await;
    let before = world.ledger.duplicates(consumer).await.unwrap();
    assert!(before <= bound, "{before} duplicates, {bound} are allowed");
    several_attempts(relay).await;
    let more = world.ledger.duplicates(consumer).await.unwrap() - before;
    assert!(more <= WORKERS, "{more} more deliveries in eight attempts");
}

#[tokio::test]
async fn a_mark_counts_only_if_the_row_has_it() {
    for body in [
        "RETURN OLD;",
        "NEW.sent_at := OLD.sent_at; RETURN NEW;",
        "NEW.sent_at := OLD.sent_at; NEW.tx := pg_current_xact_id(); RETURN NEW;",
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let (relay, port) = world.watched(&SETTINGS);
        world.commit_many(100, 20).await;
        consumer.until(100).await;
        world.drained().await;
        world
            .sql(&trigger("keeps", "UPDATE", "message", body))
            .await;
        world.commit_many(200, 40).await;
        named(&relay, port, "UPDATEs of sent_at").await;
        no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
        drop_trigger(&world, "keeps", "message").await;
        world.clean(&consumer, WORKERS * BATCH + 24).await;
        relay.line("messages are marked as sent again", SOON).await;
    }
}

#[tokio::test]
async fn a_sent_message_that_must_not_be_kept_counts_only_if_it_is_deleted() {
    for (body, said) in [
        ("RETURN NULL;", "let it pass DELETEs"),
        ("RAISE ''never deleted'';", "never deleted"),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        world
            .sql(&trigger("keeps", "DELETE", "message", body))
            .await;
        let (relay, port) =
            world.watched(&[&SETTINGS[..], &[("OUTBOXD__RETENTION__SENT", "0s")]].concat());
        world.commit_many(200, 40).await;
        named(&relay, port, said).await;
        no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
        drop_trigger(&world, "keeps", "message").await;
        world.clean(&consumer, WORKERS * BATCH + 24).await;
        assert_eq!(world.count("outbox.message").await, 0);
    }
}

#[tokio::test]
async fn a_replay_is_settled_only_if_its_record_is_removed() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, port) = world.watched(&SETTINGS);
    world.commit_many(10, 10).await;
    world.clean(&consumer, 0).await;
    world
        .sql(&trigger("keeps", "DELETE", "waiting", "RETURN NULL;"))
        .await;
    let replay = ["replay", "--aggregate-type", "order", "--why", "x"];
    world
        .outboxd(&replay, &[])
        .await
        .ends(0, &["10 messages are filed"]);
    named(&relay, port, "outbox.waiting keeps its rows as they are").await;
    relay.line("let it pass DELETEs", SOON).await;
    // Ten replays, and what each worker had on its way when the first settle failed.
    no_flood(&world, &consumer, &relay, 10 + 2 * WORKERS).await;
    drop_trigger(&world, "keeps", "waiting").await;
    world.until("nothing to wait", "outbox.waiting", 0).await;
    let copies = world.ledger.duplicates(&consumer).await.unwrap();
    assert!(copies <= 2 * 10 + 2 * WORKERS + 4, "{copies} copies");
}

/// Each attempt costs one more copy in the healthy queue.
#[tokio::test]
async fn a_message_that_cannot_be_filed_for_a_retry_is_not_published_again() {
    for (event, body, said) in [
        ("UPDATE", "RETURN OLD;", "let it pass INSERTs and UPDATEs"),
        ("UPDATE", "RETURN NULL;", "let it pass UPDATEs"),
        ("INSERT", "RETURN NULL;", "let it pass INSERTs"),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let full = [
            ("x-max-length", AMQPValue::LongLongInt(1)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        world.bind("full", "order.full", &full).await;
        let channel = world.channel().await;
        amqp::publish(&channel, "full", "", "mark", "")
            .await
            .unwrap();
        world.sql(&trigger("keeps", event, "waiting", body)).await;
        let (relay, port) = world.watched(&SETTINGS);
        // One message opens no circuit, so it is tried again itself.
        world.insert(Some("full"), "full", "1", "").await;
        named(&relay, port, said).await;
        // Others flow.
        world.commit_many(100, 20).await;
        let unsent = "outbox.message WHERE sent_at IS NULL AND event_type = 'created'";
        world.until("the others to be sent", unsent, 0).await;
        // Marks of others do not end a failure that goes on.
        let can = probe::metric(port, "outbox_can_mark").await;
        assert_eq!(can, Some(0.0));
        no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
        let full = world.ledger.duplicates(&consumer).await.unwrap();
        drop_trigger(&world, "keeps", "waiting").await;
        let _drain = world.consume("full").await;
        world.clean(&consumer, full + WORKERS * BATCH).await;
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_filed_as_dead_waits_and_its_neighbours_flow() {
    let world = world().await;
    let consumer = world.consumer().await;
    world
        .sql(&trigger("drops", "INSERT", "dead", "RETURN NULL;"))
        .await;
    let (relay, port) = world.watched(&SETTINGS);
    for n in 0..3 {
        let key = format!("bad-{n}");
        world
            .insert(Some(&key), "created", "1", "headers = '[]'")
            .await;
    }
    world.commit_many(200, 40).await;
    named(&relay, port, "outbox.dead keeps its rows as they are").await;
    let unsent = "outbox.message WHERE sent_at IS NULL AND headers IS NULL";
    world.until("the others to be sent", unsent, 0).await;
    let waits = "outbox.waiting WHERE reason = 'unmarkable'";
    world.until("the bad ones to wait", waits, 3).await;
    relay.never_said("given up");
    drop_trigger(&world, "drops", "dead").await;
    world.until("their end", "outbox.dead", 3).await;
    world.clean(&consumer, 2 * WORKERS * BATCH).await;
}

/// The privilege that PostgreSQL names is not always one of outboxd's own.
#[tokio::test]
async fn a_revoked_privilege_on_the_records_stops_no_message_that_is_delivered() {
    let audit = "CREATE TABLE public.history (id bigint); \
                 CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN INSERT INTO public.history VALUES (NEW.id); RETURN NEW; END'; \
                 CREATE TRIGGER audit BEFORE INSERT ON outbox.dead FOR EACH ROW EXECUTE FUNCTION public.audit()";
    for (obstacle, cure, said) in [
        (
            "REVOKE INSERT ON outbox.waiting FROM outbox_relay",
            "GRANT INSERT ON outbox.waiting TO outbox_relay",
            "roles.sql",
        ),
        (
            "REVOKE UPDATE ON outbox.waiting FROM outbox_relay",
            "GRANT UPDATE ON outbox.waiting TO outbox_relay",
            "roles.sql",
        ),
        (
            "REVOKE INSERT ON outbox.dead FROM outbox_relay",
            "GRANT INSERT ON outbox.dead TO outbox_relay",
            "roles.sql",
        ),
        (
            audit,
            "DROP TRIGGER audit ON outbox.dead",
            "SECURITY DEFINER",
        ),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let (relay, port) = world.watched(&SETTINGS);
        world.commit_many(10, 10).await;
        world.clean(&consumer, 0).await;
        world.sql(obstacle).await;
        for round in 0..5 {
            let key = format!("bad-{round}");
            world
                .insert(Some(&key), "created", "1", "headers = '[]'")
                .await;
            let nowhere = "exchange = 'nowhere'";
            world.insert(Some(&key), "created", "1", nowhere).await;
            world.commit_many(40, 20).await;
        }
        named(&relay, port, said).await;
        let good = "outbox.message WHERE sent_at IS NULL AND headers IS NULL AND exchange IS NULL";
        world.until("the others to be sent", good, 0).await;
        no_flood(&world, &consumer, &relay, 2 * WORKERS * BATCH).await;
        world.sql(cure).await;
        world.sql("UPDATE outbox.message SET exchange = NULL").await;
        world
            .until("the end of the bad ones", "outbox.dead", 5)
            .await;
        world.clean(&consumer, 3 * WORKERS * BATCH).await;
    }
}

/// Filed messages need it, new ones do not.
#[tokio::test]
async fn a_revoked_delete_on_the_waiting_stops_no_new_message() {
    let world = world().await;
    let consumer = world.consumer().await;
    // Those that fail are due at each claim.
    let backoff = [
        ("OUTBOXD__RELAY__BACKOFF_INITIAL", "1ms"),
        ("OUTBOXD__RELAY__BACKOFF_MAX", "1ms"),
    ];
    let (relay, port) = world.watched(&[SETTINGS[0], SETTINGS[1], backoff[0], backoff[1]]);
    world.scheduled(6).await;
    world
        .sql("REVOKE DELETE ON outbox.waiting FROM outbox_relay")
        .await;
    world.due().await;
    named(&relay, port, "permission denied for table waiting").await;
    for _ in 0..5 {
        world.commit_many(40, 20).await;
    }
    let good = "outbox.message WHERE sent_at IS NULL AND aggregate_id NOT LIKE 'later-%'";
    world.until("the others to be sent", good, 0).await;
    no_flood(&world, &consumer, &relay, 2 * WORKERS * BATCH).await;
    world
        .sql("GRANT DELETE ON outbox.waiting TO outbox_relay")
        .await;
    world.clean(&consumer, 3 * WORKERS * BATCH).await;
}

/// Their records are refused, and each claim meets them again. All other messages flow.
#[tokio::test]
async fn thirty_messages_that_cannot_be_filed_keep_no_other_message() {
    for obstacle in [
        "REVOKE INSERT ON outbox.waiting FROM outbox_relay",
        "ALTER TABLE outbox.waiting ALTER last_error TYPE varchar(20)",
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let (relay, port) = world.watched(&SETTINGS);
        world.commit_many(20, 20).await;
        consumer.until(20).await;
        world.sql(obstacle).await;
        let bad = "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, exchange) \
                   SELECT 'order', 'bad-' || i, 'x', '1', 'nowhere' FROM generate_series(1, 30) i";
        world.sql(bad).await;
        named(&relay, port, "waiting").await;
        for _ in 0..5 {
            world.commit_many(200, 20).await;
        }
        consumer.until(1020).await;
        no_flood(&world, &consumer, &relay, 2 * WORKERS * BATCH).await;
    }
}

#[tokio::test]
async fn held_messages_are_released_only_if_they_are_due() {
    let world = world().await;
    world.declare_exchange("events").await;
    let (relay, port) = world.watched(&SETTINGS);
    world.commit_many(50, 50).await;
    let held = "outbox.waiting WHERE cause IN ('held', 'probe', 'behind')";
    world.until("all to be held", held, 50).await;
    world
        .sql(&trigger("keeps", "UPDATE", "waiting", "RETURN OLD;"))
        .await;
    named(&relay, port, "UPDATEs").await;
    let consumer = world.consumer().await;
    drop_trigger(&world, "keeps", "waiting").await;
    world.clean(&consumer, WORKERS * BATCH).await;
}

/// Their releases are refused, and those of others are not.
#[tokio::test]
async fn a_refused_release_keeps_no_other_destination() {
    const DESTINATIONS: i64 = 8;
    let world = world().await;
    world.declare_exchange("events").await;
    let attempts = ("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000");
    let (relay, port) = world.watched(&[SETTINGS[0], SETTINGS[1], attempts]);
    for destination in 0..DESTINATIONS {
        let insert = format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', 'd{destination}-' || i, 'd{destination}', '1' FROM generate_series(1, 6) i"
        );
        let inserted = world.ledger.insert(&world.client, &insert, &[]).await;
        inserted.unwrap();
    }
    let held = "outbox.waiting WHERE cause IN ('held', 'probe')";
    world.until("all to be held", held, 6 * DESTINATIONS).await;
    // Half of the destinations, so some of them come before others in almost any order. A probe passes.
    let refuses = "IF NEW.cause = ''held'' AND NEW.due_at IS NOT NULL AND EXISTS ( \
                       SELECT FROM outbox.message m WHERE m.lane = NEW.lane AND m.id = NEW.id AND m.event_type < ''d4'') \
                   THEN RAISE ''kept back''; END IF; RETURN NEW;";
    world
        .sql(&trigger("refuses", "UPDATE", "waiting", refuses))
        .await;
    for destination in 0..DESTINATIONS / 2 {
        let key = format!("order.d{destination}");
        world.bind("all", &key, &[]).await;
    }
    named(&relay, port, "kept back").await;
    // The others need a probe, and only the maintenance makes it.
    let consumer = world.consumer().await;
    let others = "outbox.message WHERE sent_at IS NULL AND event_type >= 'd4'";
    world.until("the others to be sent", others, 0).await;
    relay.line("held messages cannot be released", SOON).await;
    drop_trigger(&world, "refuses", "waiting").await;
    world.clean(&consumer, 0).await;
}

/// The server is away in the middle of each settle. That is no obstacle to marks.
#[tokio::test]
async fn an_outage_during_a_settle_is_no_failed_mark() {
    let world = world().await;
    let consumer = world.consumer().await;
    let ends = "PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW;";
    world.sql(&trigger("ends", "UPDATE", "message", ends)).await;
    let (relay, port) = world.watched(&SETTINGS);
    world.commit_many(100, 20).await;
    several_attempts(&relay).await;
    relay.never_said("cannot be marked");
    let can = probe::metric(port, "outbox_can_mark").await;
    assert_eq!(can, Some(1.0));
    // It is cautious nevertheless.
    no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
    drop_trigger(&world, "ends", "message").await;
    world.clean(&consumer, WORKERS * BATCH + 24).await;
}

/// Each claim would publish its messages, fail at the mark of its lane, and leave no trace.
#[tokio::test]
async fn a_mark_of_a_lane_that_does_not_move_stops_the_publishes_and_is_named() {
    for (body, said) in [
        ("RAISE ''never moved'';", "never moved"),
        ("RETURN NULL;", "outbox.lane keeps its rows as they are"),
        ("RETURN OLD;", "outbox.lane keeps its rows as they are"),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        world.sql(&trigger("keeps", "UPDATE", "lane", body)).await;
        let (relay, port) = world.watched(&SETTINGS);
        world.commit_many(4000, 400).await;
        named(&relay, port, said).await;
        no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
        drop_trigger(&world, "keeps", "lane").await;
        world.clean(&consumer, WORKERS * BATCH + 24).await;
    }
}

/// The sequence starts again below the marks. A relay that believes that it took them back would see no new message.
#[tokio::test]
async fn a_mark_that_is_not_taken_back_is_named() {
    for body in ["RETURN NULL;", "RETURN OLD;"] {
        let world = world().await;
        let consumer = world.consumer().await;
        world
            .sql("UPDATE outbox.lane SET low_water = 1000000")
            .await;
        world.sql(&trigger("keeps", "UPDATE", "lane", body)).await;
        world.commit_many(10, 10).await;
        world
            .sql("INSERT INTO outbox.waiting (lane, id, message_id, cause, due_at, due_since) \
                  SELECT lane, id, message_id, 'retry', clock_timestamp(), clock_timestamp() FROM outbox.message WHERE id = 1")
            .await;
        let relay = world.relay(&SETTINGS);
        relay
            .line("outbox.lane keeps its rows as they are", SOON)
            .await;
        drop_trigger(&world, "keeps", "lane").await;
        consumer.until(10).await;
    }
}

/// The record of an earlier message at the same position stays, and looks like the right one.
#[tokio::test]
async fn the_record_of_an_earlier_message_does_not_count_as_filed() {
    for (table, record, event) in [
        (
            "dead",
            "(lane, id, message_id, reason, attempts, last_error) SELECT lane, id, gen_random_uuid(), 'x', 1, 'x'",
            "created",
        ),
        (
            "waiting",
            "(lane, id, message_id, cause, attempts, due_at, due_since) \
             SELECT lane, id, gen_random_uuid(), 'retry', 1, clock_timestamp() + interval '1 hour', clock_timestamp()",
            "nobody",
        ),
    ] {
        let world = world().await;
        world.bind("all", "order.good", &[]).await;
        let headers = match table {
            "dead" => "headers = '[]'",
            _ => "",
        };
        let id = world.insert(Some("1"), event, "1", headers).await;
        world
            .sql(&format!(
                "INSERT INTO outbox.{table} {record} FROM outbox.message"
            ))
            .await;
        world
            .sql(&trigger("keeps", "UPDATE", table, "RETURN OLD;"))
            .await;
        let (relay, port) = world.watched(&SETTINGS);
        named(
            &relay,
            port,
            &format!("outbox.{table} keeps its rows as they are"),
        )
        .await;
        drop_trigger(&world, "keeps", table).await;
        let own = format!("outbox.{table} WHERE message_id = '{id}'");
        world.until("its own record", &own, 1).await;
    }
}

#[tokio::test]
async fn a_rule_on_the_messages_is_named() {
    let world = world().await;
    let consumer = world.consumer().await;
    world
        .sql("CREATE RULE keeps AS ON UPDATE TO outbox.message DO INSTEAD NOTHING")
        .await;
    let (relay, port) = world.watched(&SETTINGS);
    world.commit_many(100, 20).await;
    named(&relay, port, "A rule on this table").await;
    no_flood(&world, &consumer, &relay, WORKERS * BATCH).await;
    world.sql("DROP RULE keeps ON outbox.message").await;
    world.clean(&consumer, WORKERS * BATCH + 24).await;
}

/// Five dead messages, and no relay.
async fn five_dead(world: &World) {
    let mut relay = world.relay(&SETTINGS);
    for n in 0..5 {
        world
            .insert(Some(&n.to_string()), "created", "1", "headers = '[]'")
            .await;
    }
    world.until("five dead ones", "outbox.dead", 5).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
}

#[tokio::test]
async fn a_command_fails_and_changes_nothing_if_its_writes_do_not_happen() {
    for (event, table, args, said) in [
        ("DELETE", "message", ["dead", "discard"], "outbox.message"),
        ("DELETE", "dead", ["dead", "discard"], "outbox.dead"),
        ("DELETE", "dead", ["dead", "redrive"], "outbox.dead"),
        ("INSERT", "waiting", ["dead", "redrive"], "outbox.waiting"),
    ] {
        let world = world().await;
        five_dead(&world).await;
        world
            .sql(&trigger("keeps", event, table, "RETURN NULL;"))
            .await;
        let command = [&args[..], &["--all", "--why", "x"]].concat();
        let told = format!("let it pass {event}s");
        world.outboxd(&command, &[]).await.ends(1, &[said, &told]);
        let counts = [
            world.count("outbox.dead").await,
            world.count("outbox.message").await,
            world.count("outbox.waiting").await,
            world.count("outbox.operation").await,
        ];
        assert_eq!(counts, [5, 5, 0, 0], "{event} on {table}");
        drop_trigger(&world, "keeps", table).await;
        let done = world.outboxd(&command, &[]).await;
        done.ends(0, &["5 messages"]);
        assert_eq!(world.count("outbox.dead").await, 0);
        assert_eq!(world.count("outbox.operation WHERE affected = 5").await, 1);
    }
}

#[tokio::test]
async fn a_replay_fails_and_reports_nothing_if_no_message_is_filed() {
    let world = world().await;
    let consumer = world.consumer().await;
    let _relay = world.relay(&SETTINGS);
    world.commit_many(10, 10).await;
    world.clean(&consumer, 0).await;
    world
        .sql(&trigger("drops", "INSERT", "waiting", "RETURN NULL;"))
        .await;
    let replay = ["replay", "--aggregate-type", "order", "--why", "x"];
    let told = ["outbox.waiting", "let it pass INSERTs"];
    world.outboxd(&replay, &[]).await.ends(1, &told);
    assert_eq!(world.count("outbox.operation").await, 0);
    drop_trigger(&world, "drops", "waiting").await;
    world.outboxd(&replay, &[]).await.ends(0, &["10 messages"]);
    consumer.until(20).await;
}

/// A trigger that keeps the row as it is, and a soft delete, which writes the row: it is no longer where it was.
#[tokio::test]
async fn retention_reports_only_what_it_deleted() {
    for body in [
        "RETURN NULL;",
        "UPDATE outbox.message SET deleted_at = now() WHERE lane = OLD.lane AND id = OLD.id; RETURN NULL;",
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let mut relay = world.relay(&SETTINGS);
        world.commit_many(100, 100).await;
        consumer.until(100).await;
        world.passed().await;
        relay.terminate().unwrap();
        relay.ended(SOON).await.unwrap();
        world
            .sql(
                "ALTER TABLE outbox.message ADD deleted_at timestamptz; \
                 GRANT UPDATE (deleted_at) ON outbox.message TO outbox_relay",
            )
            .await;
        world
            .sql(&trigger("keeps", "DELETE", "message", body))
            .await;
        let told = ["outbox.message", "let it pass DELETEs"];
        let prune = ["prune", "--older-than", "0s"];
        world.outboxd(&prune, &[]).await.ends(1, &told);
        let retention = [
            ("OUTBOXD__RETENTION__SENT", "1s"),
            ("OUTBOXD__RETENTION__INTERVAL", "1s"),
        ];
        let relay = world.relay(&retention);
        let line = relay.line("a maintenance job failed", SOON).await;
        assert!(line.contains(told[1]), "{line}");
        assert_eq!(world.count("outbox.message").await, 100);
        drop_trigger(&world, "keeps", "message").await;
        world.until("all to be deleted", "outbox.message", 0).await;
        relay.line("the maintenance job works again", SOON).await;
    }
}
