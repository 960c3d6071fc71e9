//! Rows with given positions: copies, backups, dumps.

use std::process::{Command, Stdio};

use crate::{
    people::write,
    world::{SOON, World, world},
};

fn ran(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// After a far position, the sequence draws positions below it for years: no mark may hide them.
#[tokio::test]
async fn a_position_far_ahead_moves_no_mark_past_what_was_drawn() {
    let world = world().await;
    let consumer = world.consumer().await;
    let relay = world.relay(&[]);
    world
        .sql(
            "CREATE TABLE ahead AS SELECT * FROM outbox.message; \
             INSERT INTO outbox.message (id, aggregate_type, aggregate_id, event_type, payload) OVERRIDING SYSTEM VALUE \
             SELECT 1000000 + i, 'order', 'ahead' || i, 'created', '{}' FROM generate_series(1, 200) i",
        )
        .await;
    consumer.until(200).await;
    for round in 0..3 {
        write(&world, &world.client, &format!("k{round}-"), 50).await;
        world.drained().await;
        world
            .until(
                "the marks to be tidied",
                "outbox.message m JOIN outbox.lane l USING (lane) WHERE m.id > l.low_water AND m.id < 1000000",
                0,
            )
            .await;
    }
    let drawn = "outbox.lane l WHERE greatest(l.low_water, l.candidate) > (SELECT last_value FROM outbox.message_id_seq)";
    assert_eq!(world.count(drawn).await, 0);
    // No mark had to be taken back.
    relay.never_said("stands below positions that were settled");
    let report = world.judge(&consumer).await;
    assert!(
        report.lost.is_empty() && report.reordered.is_empty(),
        "{report}"
    );
    assert_eq!(report.duplicates, 0, "{report}");
}

async fn restored(world: &World, name: &str, restore: impl Fn(&World, &str)) {
    let (database, _) = world.another(name).await;
    restore(world, &database);
    let url = world
        .postgres()
        .url_for("relay", "relay-canary-password", &database);
    let vhost = [("DATABASE_URL", url.as_str())];
    let check = world.outboxd(&["check", "--connect"], &vhost).await;
    check.ends(0, &[]);
    let relay = world.relay(&vhost);
    let client = world.postgres().connect(&database).await.unwrap();
    write(world, &client, name, 30).await;
    test_support::eventually("the copy to be sent", SOON, async || {
        let sql = "SELECT count(*) FROM outbox.message WHERE sent_at IS NULL";
        let left: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
    drop(relay);
}

/// Both forms of a dump, of an outbox with sent, unsent, dead and waiting rows.
#[tokio::test]
async fn a_dump_is_restored_in_either_form_and_goes_on() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    write(&world, &world.client, "sent", 100).await;
    world.insert(None, "dead", "1", "headers = '[]'").await;
    world.until("the dead one", "outbox.dead", 1).await;
    world.marked(100).await;
    relay.terminate().unwrap();
    relay.ended(SOON).await.unwrap();
    write(&world, &world.client, "unsent", 40).await;
    world
        .sql("DELETE FROM outbox.dead; DELETE FROM outbox.message WHERE event_type = 'dead'")
        .await;
    let committed = world.ledger.committed();
    let keyless = committed.iter().filter(|event| event.key.is_none());
    world.ledger.withdraw(keyless.map(|event| event.message_id));
    for (name, form) in [("custom", "--format=custom"), ("inserts", "--inserts")] {
        restored(&world, name, |world, database| {
            let file = world.postgres().folder().join(database);
            let dump = world
                .postgres()
                .program("pg_dump", &world.database)
                .args(["--schema=outbox", form])
                .output()
                .unwrap();
            assert!(
                dump.status.success(),
                "{}",
                String::from_utf8_lossy(&dump.stderr)
            );
            std::fs::write(&file, dump.stdout).unwrap();
            let mut restore = if name == "custom" {
                world.postgres().program("pg_restore", database)
            } else {
                world.postgres().program("psql", database)
            };
            match name {
                "custom" => restore
                    .arg("--exit-on-error")
                    .args(["--dbname", database])
                    .arg(&file),
                _ => restore
                    .args(["-q", "-v", "ON_ERROR_STOP=1", "-f"])
                    .arg(&file),
            };
            ran(&mut restore);
        })
        .await;
    }
    // Each copy has sent the same unsent messages.
    consumer.until(240).await;
    let report = world.judge(&consumer).await;
    assert!(
        report.lost.is_empty() && report.unknown.is_empty(),
        "{report}"
    );
    assert_eq!(report.duplicates, 40, "{report}");
}
