//! Tables that inherit from those of the outbox, as people make them for an archive.

use crate::{
    seeing::answers,
    world::{SOON, world},
};

/// The child is longer than the step of an audit, and the table itself is short.
const ARCHIVE: &str = "CREATE TABLE public.archive () INHERITS (outbox.message) WITH (fillfactor = 10); \
     ALTER TABLE public.archive ADD PRIMARY KEY (lane, id); \
     INSERT INTO public.archive (id, aggregate_type, event_type, payload, sent_at) \
     SELECT -i, 'order', 'archived', '1', now() FROM generate_series(1, 30000) i";

#[tokio::test]
async fn unsent_rows_in_a_table_that_inherits_are_found_and_it_is_named() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (_relay, port) = world.watched(&[]);
    world.commit_many(200, 50).await;
    consumer.until(200).await;
    world.passed_by_marks().await;
    world.sql(ARCHIVE).await;
    let pages: i64 = world
        .one("SELECT pg_relation_size('public.archive') / current_setting('block_size')::bigint")
        .await;
    assert!(pages > 4096, "{pages} pages");
    world
        .sql(
            "INSERT INTO public.archive (id, aggregate_type, event_type, payload) \
             SELECT i, 'order', 'hidden', '1' FROM generate_series(1, 20) i",
        )
        .await;
    consumer.until(220).await;
    world.drained().await;
    let told = "archive inherit from it";
    answers(port, 503, &["table outbox.message", told, "NO INHERIT"]).await;
    world
        .outboxd(&["check", "--connect"], &[])
        .await
        .ends(78, &[told]);
    world
        .sql("ALTER TABLE public.archive NO INHERIT outbox.message")
        .await;
    answers(port, 200, &[]).await;
}

/// Each lane would have two rows, so two sessions could hold it.
#[tokio::test]
async fn a_second_row_of_each_lane_in_a_table_that_inherits_publishes_nothing_twice() {
    let world = world().await;
    let consumer = world.consumer().await;
    let (relay, port) = world.watched(&[]);
    let _second = world.relay(&[]);
    answers(port, 200, &[]).await;
    world
        .sql(
            "CREATE TABLE public.more () INHERITS (outbox.lane); \
             INSERT INTO public.more SELECT * FROM ONLY outbox.lane; \
             GRANT SELECT, UPDATE ON public.more TO outbox_relay",
        )
        .await;
    world.commit_many(2000, 200).await;
    world.clean(&consumer, 0).await;
    relay.line("more inherit from it", SOON).await;
}
