//! `outboxd history`: one record for one command, also for one that ended early.

use super::{failing, json};
use crate::{
    commands::ok,
    world::{World, world},
};

async fn dead(world: &World, n: usize) {
    world
        .sql(&format!(
            "WITH m AS (INSERT INTO outbox.message (aggregate_type, event_type, payload) \
             SELECT 'order', 'created', '{{}}' FROM generate_series(1, {n}) RETURNING lane, id, message_id) \
             INSERT INTO outbox.dead (lane, id, message_id, reason, attempts, last_error) \
             SELECT lane, id, message_id, 'unroutable', 3, 'x' FROM m"
        ))
        .await;
}

#[tokio::test]
async fn a_command_of_many_steps_has_one_record() {
    let world = world().await;
    dead(&world, 2500).await;
    ok(
        &world,
        &[
            "dead",
            "redrive",
            "--all",
            "--why",
            "queue bound",
            "--by",
            "ada",
        ],
    )
    .await;
    let history = json(&world, &["history"], 0).await;
    assert_eq!(history.as_array().unwrap().len(), 1, "{history:#}");
    let past = &history[0];
    for (name, value) in [
        ("action", "redrive"),
        ("by_whom", "ada"),
        ("by_role", "relay"),
        ("why", "queue bound"),
        ("selection", "all"),
    ] {
        assert_eq!(past[name], value);
    }
    assert_eq!(past["affected"], 2500);
    assert_eq!(past["message_ids"].as_array().unwrap().len(), 1000);
    assert!(past["finished_at"].is_string());
}

#[tokio::test]
async fn a_command_that_ended_early_is_not_finished() {
    let world = world().await;
    dead(&world, 1500).await;
    // The second step fails.
    world
        .sql(
            "CREATE FUNCTION public.ends() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS \
             'BEGIN IF (SELECT count(*) FROM outbox.operation) > 0 THEN RAISE EXCEPTION ''no further''; END IF; RETURN OLD; END'; \
             CREATE TRIGGER ends BEFORE DELETE ON outbox.dead FOR EACH ROW EXECUTE FUNCTION public.ends()",
        )
        .await;
    let args = ["dead", "discard", "--all", "--why", "x"];
    world
        .outboxd(&args, &[])
        .await
        .ends(1, &["at least 1000 messages"]);
    let history = json(&world, &["history"], 0).await;
    assert_eq!(history[0]["affected"], 1000);
    assert!(history[0]["finished_at"].is_null(), "{history:#}");
    let text = ok(&world, &["history"]).await;
    assert!(text.contains("FINISHED") && text.contains(" no "), "{text}");
}

#[tokio::test]
async fn the_newest_operations_come_first_and_a_cut_list_says_so() {
    let world = world().await;
    let ids = failing(&world, 3).await;
    for id in &ids {
        ok(
            &world,
            &["waiting", "retry-now", &id.to_string(), "--why", "x"],
        )
        .await;
    }
    let run = world
        .outboxd(&["history", "--limit", "2", "--json"], &[])
        .await;
    run.ends(0, &[]);
    assert!(
        run.stderr.contains("the last 2; there are more"),
        "{}",
        run.stderr
    );
    let history: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let named = |n: usize| history[n]["message_ids"][0].as_str().unwrap().to_owned();
    assert_eq!(
        [named(0), named(1)],
        [ids[2].to_string(), ids[1].to_string()]
    );
    let past = "UPDATE outbox.operation SET at = now() - interval '2 hours' WHERE id = (SELECT min(id) FROM outbox.operation)";
    world.sql(past).await;
    let recent = json(&world, &["history", "--since", "1h"], 0).await;
    assert_eq!(recent.as_array().unwrap().len(), 2);
}
