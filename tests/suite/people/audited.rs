//! The audit goes on, whatever somebody else does.

use nix::sys::signal::Signal;
use test_support::eventually;

use crate::{
    people::write,
    seeing::until,
    world::{SOON, World, world},
};

const AUDITED: &str = "outbox.relay WHERE audited_at IS NOT NULL";

/// Below every mark, and with nothing that tells of them.
async fn hide(world: &World, n: usize) {
    world
        .sql(&format!(
            "INSERT INTO outbox.message (id, aggregate_type, event_type, payload) OVERRIDING SYSTEM VALUE \
             SELECT -i, 'order', 'hidden', '1' FROM generate_series(1, {n}) i"
        ))
        .await;
}

/// Advisory locks are anybody's who may connect. No relay may leave the audit to whoever holds one.
#[tokio::test]
async fn nobody_who_may_only_connect_keeps_the_audit_from_going_on() {
    let world = world().await;
    let consumer = world.consumer().await;
    let producer = world.url_of("producer");
    let (neighbour, connection) = tokio_postgres::connect(&producer, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    // `obxaudit`: the lock of the one that audited, once.
    neighbour
        .batch_execute("SELECT pg_advisory_lock(8026109845904320884)")
        .await
        .unwrap();
    let _relay = world.relay(&[]);
    write(&world, &world.client, "k", 60).await;
    world.passed().await;
    world.until("the audit after the start", AUDITED, 1).await;
    hide(&world, 1).await;
    consumer.until(61).await;
    world.drained().await;
}

/// The relay that goes on auditing stands still. The other one has seen the sign, too.
#[tokio::test]
async fn a_sign_of_changed_tables_is_answered_by_every_relay_that_sees_it() {
    let world = world().await;
    let consumer = world.consumer().await;
    let first = world.relay(&[]);
    world.until("the first", AUDITED, 1).await;
    let _second = world.relay(&[]);
    world.until("the second", AUDITED, 2).await;
    write(&world, &world.client, "before", 300).await;
    world.passed().await;
    first.signal(Signal::SIGSTOP).unwrap();
    world
        .sql("SET session_replication_role = replica; BEGIN; TRUNCATE outbox.message RESTART IDENTITY")
        .await;
    write(&world, &world.client, "hidden", 400).await;
    world.sql("COMMIT").await;
    world.none_lost(&consumer).await;
    first.signal(Signal::SIGCONT).unwrap();
}

/// Nobody hands the audit over when a process is killed.
#[tokio::test]
async fn when_the_relay_that_audits_is_killed_another_one_goes_on() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut first = world.relay(&[]);
    world.until("the first", AUDITED, 1).await;
    let _second = world.relay(&[]);
    world.until("the second", AUDITED, 2).await;
    first.kill().await.unwrap();
    hide(&world, 1).await;
    consumer.until(1).await;
    world.drained().await;
}

/// The audit proves what it files. What it cannot file it remembers, counts and reports, and files after the cure.
#[tokio::test]
async fn stranded_messages_whose_records_are_refused_are_counted_and_filed_after_the_cure() {
    for (body, refused, said) in [
        ("RETURN NULL;", 3, "let it pass INSERTs"),
        (
            "IF NEW.id = -2 THEN RAISE 'kept out'; END IF; RETURN NEW;",
            1,
            "kept out",
        ),
    ] {
        let world = world().await;
        let consumer = world.consumer().await;
        let (relay, port) = world.watched(&[]);
        world.until("the first audit", AUDITED, 1).await;
        let trigger = format!(
            "CREATE FUNCTION public.refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
             CREATE TRIGGER refuses BEFORE INSERT ON outbox.waiting FOR EACH ROW EXECUTE FUNCTION public.refuses()"
        );
        world.sql(&trigger).await;
        hide(&world, 3).await;
        let line = relay.line("stranded messages cannot be filed", SOON).await;
        assert!(line.contains(said), "{line}");
        until(port, "outbox_stranded_messages", |v| v == refused as f64).await;
        consumer.until(3 - refused).await;
        world.sql("DROP TRIGGER refuses ON outbox.waiting").await;
        relay
            .line("stranded messages are not refused any more", SOON)
            .await;
        consumer.until(3).await;
        world.drained().await;
        until(port, "outbox_stranded_messages", |v| v == 0.0).await;
    }
}

/// While that number stands, a whole audit is repeated once a minute and no sooner.
#[tokio::test]
async fn each_write_to_the_outbox_moves_the_number_of_writes_that_the_audit_reads() {
    let world = world().await;
    let sql = include_str!("../../../src/outbox/sql/audit_size.sql");
    let writes = async || {
        let row = world.row(sql).await;
        row.get::<_, i64>("writes")
    };
    let insert = "INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('order', 'x', '1')";
    for write in [
        insert,
        "UPDATE outbox.lane SET low_water = low_water WHERE lane = 0",
        "DELETE FROM outbox.message",
    ] {
        let before = writes().await;
        world.sql(write).await;
        eventually(&format!("{write} to be counted"), SOON, async || {
            (writes().await > before).then_some(())
        })
        .await;
    }
}
