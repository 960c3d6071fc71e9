//! What one statement reads does not grow with the messages that wait. The tests count the rows that a plan read.

use crate::world::world;

const FILTER: &str = "text[], text, text, text, float8, uuid[], text, text[], text";
/// Fits none: every row is looked at.
const NONE: &str = "'{}', NULL, NULL, NULL, NULL, '{}', 'other', ARRAY['%' || chr(31) || '%' || chr(31) || 'events'], NULL";

#[tokio::test]
async fn a_step_over_a_million_waiting_messages_reads_a_bounded_number_of_rows() {
    let world = world().await;
    world
        .sql(
            "INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, due_at, due_since, attempts, reason, last_error) \
             SELECT i % 64, i, gen_random_uuid(), i, CASE i % 3 WHEN 0 THEN 'scheduled' ELSE 'retry' END, now() + interval '1 hour', \
                    now(), 1, CASE i % 3 WHEN 0 THEN NULL ELSE 'unroutable' END, 'no queue' \
             FROM generate_series(1, 1000000) i; \
             ANALYZE outbox.waiting",
        )
        .await;
    for (files, types, values) in [
        (
            &["waiting_look.sql"][..],
            format!("{FILTER}, text[], smallint, bigint, bigint"),
            format!("{NONE}, ARRAY['failing'], 5, 500000, 1000"),
        ),
        (
            &["waiting_list_oldest.sql", "waiting_list.sql"],
            format!("{FILTER}, text[], bigint, text, smallint, bigint"),
            format!("{NONE}, ARRAY['failing'], 1000, '-infinity', -1, 0"),
        ),
        (
            &["waiting_list_replays.sql", "waiting_list.sql"],
            format!("{FILTER}, text[], bigint, text, smallint, bigint"),
            format!("{NONE}, ARRAY['replay'], 1000, '-infinity', 30, 500000"),
        ),
        (
            &["failures_waiting.sql", "failures.sql"],
            "text[], smallint, bigint, bigint".to_owned(),
            "'{}', 30, 500000, 1000".to_owned(),
        ),
    ] {
        let read = world.reads(files, &types, &values).await;
        assert!((1000.0..=5000.0).contains(&read), "{read} rows: {files:?}");
    }
}
