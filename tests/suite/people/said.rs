//! The relay and the commands report what is wrong.

use test_support::eventually;

use crate::{
    people::write,
    seeing::{answers, scrape},
    world::{SOON, world},
};

/// Without a relay the commands find stranded messages themselves, and report only the part that they read.
#[tokio::test]
async fn check_status_and_prune_tell_of_stranded_messages_and_delete_none() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    write(&world, &world.client, "k", 60).await;
    world.passed().await;
    eventually("a whole audit in status", SOON, async || {
        let run = world.outboxd(&["status", "--json"], &[]).await;
        let status: serde_json::Value = serde_json::from_str(&run.stdout).ok()?;
        (status["audited_seconds_ago"].is_number() && status["stranded"] == 0).then_some(())
    })
    .await;
    let run = world.outboxd(&["status"], &[]).await;
    assert!(run.stdout.contains("audit    completed"), "{}", run.stdout);
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    let run = world.outboxd(&["check", "--connect"], &[]).await;
    assert!(
        run.stdout
            .contains("audit of all messages: no message is stranded"),
        "{}",
        run.stdout
    );
    world
        .sql("UPDATE outbox.message SET sent_at = NULL WHERE id <= 20")
        .await;
    let run = world.outboxd(&["check", "--connect"], &[]).await;
    assert!(
        run.code == 0 && run.stdout.contains("20 STRANDED"),
        "{}",
        run.stdout
    );
    let run = world.outboxd(&["status"], &[]).await;
    assert!(run.stdout.contains("not yet completed"), "{}", run.stdout);
    // No relay has looked, so this is not known to be none.
    assert!(!run.stdout.contains("stranded"), "{}", run.stdout);
    let run = world.outboxd(&["prune", "--older-than", "0s"], &[]).await;
    assert!(
        run.stdout.contains("40 sent messages deleted"),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("stranded"), "{}", run.stderr);
    let _relay = world.relay(&[]);
    consumer.until(80).await;
    world.all_arrived(&consumer).await;
}

/// While another session holds lanes, the audit counts their stranded messages, and files them once the lanes are free.
#[tokio::test]
async fn stranded_messages_of_a_held_lane_are_counted_and_filed_once_it_is_free() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (_relay, port) = world.watched(&[]);
    write(&world, &world.client, "k", 60).await;
    world.passed().await;
    let person = world.postgres().connect(&world.database).await.unwrap();
    person
        .batch_execute("BEGIN; SELECT FROM outbox.lane FOR UPDATE")
        .await
        .unwrap();
    world.sql("UPDATE outbox.message SET sent_at = NULL").await;
    eventually("the gauge", SOON, async || {
        (scrape(port).await?.get("outbox_stranded_messages") == Some(&60.0)).then_some(())
    })
    .await;
    person.batch_execute("COMMIT").await.unwrap();
    eventually("the counter", SOON, async || {
        let metrics = scrape(port).await?;
        let done = metrics["outbox_stranded_messages"] == 0.0
            && metrics["outbox_stranded_messages_total"] == 60.0;
        done.then_some(())
    })
    .await;
    consumer.until(120).await;
    world.all_arrived(&consumer).await;
}

/// A relay is not ready while a fault lasts that its start would refuse, and works on where it can.
#[tokio::test]
async fn a_part_of_the_schema_that_goes_while_the_relay_runs_is_said_with_its_cure() {
    let world = world().await;
    let (_relay, port) = world.watched(&[]);
    world.bind("all", "#", &[]).await;
    answers(port, 200, &[]).await;
    for (harm, text, cure) in [
        (
            "REVOKE UPDATE (sent_at) ON outbox.message FROM outbox_relay",
            "GRANT UPDATE (sent_at) ON outbox.message",
            "GRANT UPDATE (sent_at) ON outbox.message TO outbox_relay",
        ),
        (
            "ALTER TABLE outbox.operation RENAME COLUMN why TO reason",
            "column outbox.operation.why",
            "ALTER TABLE outbox.operation RENAME COLUMN reason TO why",
        ),
        (
            "CREATE TABLE public.kept AS SELECT * FROM outbox.migration; TRUNCATE outbox.migration",
            "outboxd migrate",
            "INSERT INTO outbox.migration SELECT * FROM public.kept",
        ),
        (
            "INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')",
            "schema version 99",
            "DELETE FROM outbox.migration WHERE version = 99",
        ),
    ] {
        world.sql(harm).await;
        answers(port, 503, &[text]).await;
        for command in [&["check", "--connect"][..], &["run"]] {
            world.outboxd(command, &[]).await.ends(78, &[text]);
        }
        world.sql(cure).await;
        answers(port, 200, &[]).await;
    }
}
