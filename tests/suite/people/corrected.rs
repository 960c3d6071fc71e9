//! Messages that people correct in place, or delete, while they are dead or waiting.

use serde_json::Value;

use crate::{
    commands::ok,
    people::write,
    rows::row,
    world::{FAR, FARTHER, Gate, SOON, Seen, World, words, world},
};

async fn json(world: &World, args: &[&str]) -> (i32, Value, String) {
    let run = world.outboxd(args, &[]).await;
    (
        run.code,
        serde_json::from_str(&run.stdout).unwrap_or(Value::Null),
        run.stderr,
    )
}

/// Three dead messages with a control character in their key, below the marks.
async fn three_dead(world: &World) {
    for n in 0..3 {
        world
            .insert(Some(&format!("bad\u{1}{n}")), "created", "1", "")
            .await;
    }
    world.until("three dead ones", "outbox.dead", 3).await;
    write(world, &world.client, "passes", 100).await;
    world.passed_by_marks().await;
}

const MEND: &str = "UPDATE outbox.message SET aggregate_id = translate(aggregate_id, E'\\x01', '-') WHERE aggregate_id LIKE 'bad%'";

fn correct_the_ledger(world: &World) {
    world.ledger.correct(|event| {
        event.key = event.key.as_ref().map(|key| key.replace('\u{1}', "-"));
    });
}

/// With the trigger off, or in a race with it, the record stays behind in the old lane.
#[tokio::test]
async fn a_redrive_finds_a_dead_message_in_whatever_lane_it_is_now() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    three_dead(&world).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    world
        .sql(&format!("SET session_replication_role = replica; {MEND}"))
        .await;
    correct_the_ledger(&world);
    let homeless = "outbox.dead d LEFT JOIN outbox.message m USING (lane, id) WHERE m.id IS NULL";
    assert!(world.count(homeless).await > 0, "nothing moved");
    let (code, report, stderr) =
        json(&world, &words("dead redrive --all --why mended --json")).await;
    assert_eq!((code, &report["messages"]), (0, &3.into()), "{stderr}");
    let _relay = world.relay(&[]);
    world.all_arrived(&consumer).await;
    assert_eq!(world.count("outbox.dead").await, 0);
}

#[tokio::test]
async fn a_redrive_that_only_removes_records_is_recorded_too() {
    let world = world().await;
    let id = world.insert(Some("1"), "created", "1", "").await;
    world
        .sql(
            "INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
             SELECT lane, id, message_id, 'unroutable', 9, 'x' FROM outbox.message; \
             UPDATE outbox.message SET sent_at = clock_timestamp()",
        )
        .await;
    let (_, report, _) = json(&world, &words("dead redrive --all --why x --json")).await;
    assert_eq!(report["sent_meanwhile"], 1);
    assert_eq!(world.count("outbox.dead").await, 0);
    let recorded =
        format!("outbox.operation WHERE affected = 1 AND message_ids = ARRAY['{id}'::uuid]");
    assert_eq!(world.count(&recorded).await, 1);
}

#[tokio::test]
async fn a_command_never_reports_what_it_did_not_do() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(
            world
                .insert(Some(&n.to_string()), "created", "1", "headers = '[]'")
                .await,
        );
    }
    world.until("five dead ones", "outbox.dead", 5).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    // Two messages are deleted, one is marked as sent, and two have their headers corrected.
    world
        .sql(&format!(
            "UPDATE outbox.message SET headers = NULL; \
             DELETE FROM outbox.message WHERE message_id IN ('{}', '{}'); \
             UPDATE outbox.message SET sent_at = clock_timestamp() WHERE message_id = '{}'",
            ids[0], ids[1], ids[2]
        ))
        .await;
    let dry = json(&world, &["dead", "redrive", "--all", "--dry-run", "--json"]).await;
    assert_eq!(
        (
            &dry.1["messages"],
            &dry.1["sent_meanwhile"],
            &dry.1["without_message"]
        ),
        (&2.into(), &1.into(), &2.into()),
        "a dry run says what the run does"
    );
    let (code, report, stderr) = json(&world, &words("dead redrive --all --why x --json")).await;
    assert_eq!(
        (
            code,
            &report["messages"],
            &report["sent_meanwhile"],
            &report["without_message"]
        ),
        (0, &2.into(), &1.into(), &2.into())
    );
    assert!(
        stderr.contains("2 of 5 have no message any more"),
        "{stderr}"
    );
    assert_eq!(
        (
            world.count("outbox.dead").await,
            world.count("outbox.waiting").await
        ),
        (2, 2)
    );
    let recorded = "outbox.operation WHERE action = 'redrive' AND affected = 3 AND cardinality(message_ids) = 3";
    assert_eq!(world.count(recorded).await, 1);
    // No message is left to redrive: the command fails and names the remedy.
    let (code, report, stderr) = json(&world, &words("dead redrive --all --why x --json")).await;
    assert_eq!((code, &report["messages"]), (1, &0.into()));
    assert!(stderr.contains("outboxd dead discard"), "{stderr}");
    let (code, report, _) = json(&world, &words("dead discard --all --why x --json")).await;
    assert_eq!(
        (code, &report["messages"], &report["without_message"]),
        (0, &2.into(), &2.into())
    );
    assert_eq!(world.count("outbox.dead").await, 0);
    let _relay = world.relay(&[]);
    consumer.until_all(&ids[3..]).await;
    world.drained().await;
    assert_eq!(consumer.len(), 2);
}

/// A due message, a scheduled message, and a message behind a waiting one: under another key each is sent independently.
#[tokio::test]
async fn a_message_whose_key_is_corrected_while_it_waits_is_sent_under_its_new_key() {
    for trigger in ["origin", "replica"] {
        let world = world().await;
        world.bind("all", "order.good", &[]).await;
        let consumer = world.consume("all").await;
        let _relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000")]);
        world.insert(Some("old"), "nobody", "0", "").await;
        world.until("the head to wait", "outbox.waiting", 1).await;
        for n in 1..20 {
            world.insert(Some("old"), "good", &n.to_string(), "").await;
        }
        let soon = "available_at = clock_timestamp() + interval '5 s'";
        world.insert(Some("later"), "good", "20", soon).await;
        world.until("all to be filed", "outbox.waiting", 21).await;
        world
            .sql(&format!(
                "SET session_replication_role = {trigger}; \
                 UPDATE outbox.message SET aggregate_id = 'new' || id % 7, event_type = 'good'"
            ))
            .await;
        world.ledger.correct(|event| {
            event.key = Some(format!("new{}", event.position % 7));
        });
        // Between the old key's messages and the new one's no order is promised.
        let report = world.judge(&consumer).await;
        assert!(
            report.lost.is_empty() && report.dead == 0 && report.duplicates == 0,
            "{report}"
        );
        world.drained().await;
        world.until("nothing to wait", "outbox.waiting", 0).await;
    }
}

/// What is wrong with a message and how a person corrects it, in SQL; and whether it came as it is now.
type Correction = (&'static str, &'static str, fn(&Seen) -> bool);

const NOBODY: &str = "event_type = 'nobody'";

/// The first of one destination wait for their back-off, and the others are held.
const WAITING: [Correction; 5] = [
    (NOBODY, "event_type = 'x'", |m| m.routing_key == "order.x"),
    (NOBODY, "routing_key = 'order.x'", |m| {
        m.routing_key == "order.x"
    }),
    (
        NOBODY,
        "event_type = 'x', aggregate_id = 'new'",
        has_new_key,
    ),
    (
        NOBODY,
        "event_type = 'x', headers = '{\"a\":1}'",
        has_header,
    ),
    (NOBODY, "event_type = 'x', payload = '1'", has_body),
];
const DEAD: [Correction; 3] = [
    (
        r"aggregate_id = E'a\x01'",
        "aggregate_id = 'new'",
        has_new_key,
    ),
    ("headers = '[]'", "headers = '{\"a\":1}'", has_header),
    (
        "payload = to_json(repeat('x', 2000))",
        "payload = '1'",
        has_body,
    ),
];

fn has_new_key(message: &Seen) -> bool {
    message.text_header("outbox-key").as_deref() == Some("order:new")
}

fn has_header(message: &Seen) -> bool {
    message.header("a").is_some()
}

fn has_body(message: &Seen) -> bool {
    message.body == b"1"
}

/// An audit that began from here on has ended. The first that ends may have begun before.
async fn audited(world: &World) {
    for _ in 0..2 {
        let now = "SELECT clock_timestamp()::text";
        let now: String = world.one(now).await;
        // What nobody has written to is audited once a minute only. The server counts the writes of a session that ends.
        let write = "UPDATE outbox.lane SET low_water = low_water WHERE lane = 0";
        let written = world.postgres().execute(&world.database, write).await;
        written.unwrap();
        let ended = format!("outbox.relay WHERE audited_at > '{now}'");
        world.until("an audit to end", &ended, 1).await;
    }
}

#[tokio::test]
async fn what_waits_or_is_dead_goes_out_as_a_person_corrected_it_and_not_if_it_was_deleted() {
    for (corrections, filed) in [(&WAITING[..], "waiting"), (&DEAD, "dead")] {
        let world = world().await;
        world.bind("all", "order.x", &[]).await;
        let consumer = world.consume("all").await;
        let _relay = world.relay(&[
            NEVER_AGAIN[0],
            NEVER_AGAIN[1],
            ("OUTBOXD__RELAY__MAX_PAYLOAD_BYTES", "1000"),
        ]);
        world.sql("BEGIN").await;
        let mut ids = Vec::new();
        for (wrong, ..) in corrections {
            ids.push(row(&world, wrong).await);
        }
        let deleted = row(&world, corrections[0].0).await;
        world.sql("COMMIT").await;
        let all = ids.len() as i64 + 1;
        let table = format!("outbox.{filed}");
        world.until("all to be filed", &table, all).await;
        // The back-off is drawn anew each time: here it is long.
        let long = "UPDATE outbox.waiting SET due_at = clock_timestamp() + interval '1 hour' WHERE cause = 'retry'";
        world.sql(long).await;
        for (id, (_, correction, _)) in ids.iter().zip(corrections) {
            let sql = format!("UPDATE outbox.message SET {correction} WHERE message_id = '{id}'");
            world.sql(&sql).await;
        }
        let delete = format!("DELETE FROM outbox.message WHERE message_id = '{deleted}'");
        world.sql(&delete).await;
        if filed == "dead" {
            // An audit files what is stranded below the marks, just after it has counted it.
            world.passed_by_marks().await;
            audited(&world).await;
            let dead = "outbox.dead JOIN outbox.message m USING (lane, id, message_id) \
                        LEFT JOIN outbox.waiting w USING (lane, id, message_id) CROSS JOIN outbox.relay r \
                        WHERE m.sent_at IS NULL AND w.cause IS NULL AND r.stranded = 0";
            assert_eq!(world.count(dead).await, 3, "until they are redriven");
            ok(&world, &["dead", "redrive", "--all", "--why", "x"]).await;
        }
        consumer.until_all(&ids).await;
        world.drained().await;
        world.until("nothing to wait", "outbox.waiting", 0).await;
        let seen = consumer.seen();
        assert_eq!(seen.len(), ids.len());
        for (id, (wrong, correction, came)) in ids.iter().zip(corrections) {
            let message = seen.iter().find(|m| m.message_id == id.to_string());
            let message = message.unwrap();
            assert!(came(message), "{wrong}, {correction}: {message:?}");
            assert_eq!(message.header("outbox-replay"), None, "{correction}");
        }
    }
}

/// Somebody marks a message as sent to skip it. The messages behind it go on.
#[tokio::test]
async fn a_waiting_message_that_is_marked_as_sent_or_deleted_by_hand_is_not_published_and_frees_its_key()
 {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let _relay = world.relay(&[("OUTBOXD__RELAY__MAX_ATTEMPTS", "1000000")]);
    for key in ["skip", "delete"] {
        world.insert(Some(key), "nobody", "0", "").await;
    }
    world.until("the heads to wait", "outbox.waiting", 2).await;
    for n in 1..10 {
        for key in ["skip", "delete"] {
            world.insert(Some(key), "good", &n.to_string(), "").await;
        }
    }
    world
        .sql(
            "UPDATE outbox.message SET sent_at = clock_timestamp() WHERE event_type = 'nobody' AND aggregate_id = 'skip'; \
             DELETE FROM outbox.message WHERE event_type = 'nobody' AND aggregate_id = 'delete'",
        )
        .await;
    // From here on the messages would arrive.
    world.bind("all", "order.nobody", &[]).await;
    consumer.until(18).await;
    world.until("nothing to wait", "outbox.waiting", 0).await;
    assert_eq!(consumer.len(), 18);
}

const NEVER_AGAIN: [(&str, &str); 2] = [
    ("OUTBOXD__RELAY__BACKOFF_INITIAL", FAR),
    ("OUTBOXD__RELAY__BACKOFF_MAX", FARTHER),
];

/// The relay has tried the old version, and is about to file its outcome.
#[tokio::test]
async fn a_message_that_is_corrected_while_a_claim_holds_it_does_not_get_the_outcome_of_its_old_version()
 {
    for (attempts, filed) in [("20", "waiting"), ("1", "dead")] {
        let world = world().await;
        world.bind("all", "order.good", &[]).await;
        let consumer = world.consume("all").await;
        let gate = Gate::new();
        let failpoint = gate.at("confirm.before_settle");
        let settings = [
            NEVER_AGAIN[0],
            NEVER_AGAIN[1],
            ("OUTBOXD__RELAY__MAX_ATTEMPTS", attempts),
            ("OUTBOXD_FAILPOINT", failpoint.as_str()),
        ];
        let relay = world.relay(&settings);
        world.insert(Some("1"), "nobody", "1", "").await;
        relay.line("failpoint reached", SOON).await;
        world
            .sql("UPDATE outbox.message SET event_type = 'good'")
            .await;
        gate.open();
        consumer.until(1).await;
        world.drained().await;
        relay.line("they are published again", SOON).await;
        relay.never_said("given up");
        assert_eq!(world.count(&format!("outbox.{filed}")).await, 0, "{filed}");
    }
}

/// The correction has changed the record too, and the write of the outcome waits for it.
#[tokio::test]
async fn a_correction_for_which_the_settle_waits_is_not_overwritten() {
    let world = world().await;
    world.bind("all", "order.good", &[]).await;
    let consumer = world.consume("all").await;
    let gate = Gate::new();
    let failpoint = gate.at("confirm.before_settle@2");
    let settings = [
        NEVER_AGAIN[0],
        NEVER_AGAIN[1],
        ("OUTBOXD_FAILPOINT", failpoint.as_str()),
        ("OUTBOXD__DATABASE__LOCK_TIMEOUT", "4m"),
        ("OUTBOXD__DATABASE__STATEMENT_TIMEOUT", "5m"),
    ];
    let relay = world.relay(&settings);
    world.insert(Some("1"), "nobody", "1", "").await;
    world.until("it to wait", "outbox.waiting", 1).await;
    world
        .sql("UPDATE outbox.waiting SET due_at = clock_timestamp()")
        .await;
    relay.line("failpoint reached", SOON).await;
    let person = world.postgres().connect(&world.database).await.unwrap();
    let correct = "BEGIN; UPDATE outbox.message SET event_type = 'good'";
    person.batch_execute(correct).await.unwrap();
    gate.open();
    let waits = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    world.until("the settle to wait", waits, 1).await;
    person.batch_execute("COMMIT").await.unwrap();
    consumer.until(1).await;
    world.drained().await;
    world.until("nothing to wait", "outbox.waiting", 0).await;
}

#[tokio::test]
async fn a_message_that_is_brought_forward_while_a_claim_holds_it_is_sent_and_its_neighbours_once()
{
    let world = world().await;
    let consumer = world.consumer().await;
    let gate = Gate::new();
    let later = "available_at = clock_timestamp() + interval '1 hour'";
    world.insert(Some("1"), "created", "1", later).await;
    world.insert(Some("1"), "created", "2", "").await;
    let failpoint = gate.at("confirm.before_settle");
    let relay = world.relay(&[("OUTBOXD_FAILPOINT", &failpoint)]);
    relay.line("failpoint reached", SOON).await;
    world
        .sql("UPDATE outbox.message SET available_at = NULL")
        .await;
    gate.open();
    consumer.until(2).await;
    world.drained().await;
    world.until("nothing to wait", "outbox.waiting", 0).await;
    assert_eq!(consumer.len(), 2);
    relay.never_said("not what was written");
}
