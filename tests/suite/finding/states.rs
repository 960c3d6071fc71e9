//! The states of a message, each made by a relay or by a person.

use serde_json::Value;

use super::ask::{SLOW, any_id, found, hold_lane_of, json, text};
use crate::world::{Gate, world};

#[tokio::test]
async fn a_pending_message_is_told_with_what_stands_before_it_and_who_holds_its_lane() {
    let world = world().await;
    let first = world.insert(Some("a"), "created", "{}", "").await;
    world.insert(Some("b"), "created", "{}", "").await;
    world.insert(Some("a"), "created", "{}", "").await;
    let third = world.insert(Some("a"), "created", "{}", "").await;
    let id = third.to_string();
    // Another lane's, and sent: the relay below has one lane to work.
    let sent = "UPDATE outbox.message SET sent_at = now() WHERE aggregate_id = 'b'";
    world.sql(sent).await;

    let message = found(&world, &[&id]).await;
    assert_eq!(message["state"], "pending");
    assert_eq!(message["position"], 4);
    assert_eq!(
        message["before"]["messages"], 2,
        "its own lane's alone: {message:#}"
    );
    assert_eq!(message["before"]["is_about"], false);
    assert_eq!(message["before"]["seconds"], Value::Null);
    assert_eq!(message["lane_held_by"], Value::Null);
    assert_eq!(message["route"]["exchange"], "events");
    assert_eq!(message["route"]["routing_key"], "order.created");
    assert_eq!(message["route"]["mandatory"], true);
    assert_eq!(message["route"]["headers"]["outbox-key"], "order:a");
    assert_eq!(message["route"]["headers"]["outbox-position"], 4);
    assert_eq!(message["route"]["properties"]["message_id"], id);
    let said = text(&world, &[&id]).await;
    assert!(
        said.contains("no message of its lane was sent within the last minute")
            && said.contains("no relay works its lane at this moment")
            && said.contains("as this command's configuration computes it"),
        "{said}"
    );

    let person = hold_lane_of(&world, first, "psql").await;
    let said = text(&world, &[&id]).await;
    assert!(
        said.contains("a session that is no relay holds its lane: \"psql\""),
        "{said}"
    );
    drop(person);

    // A relay that has published and not settled.
    let gate = Gate::new();
    let consumer = world.consumer().await;
    let _relay = world.relay(&[("OUTBOXD_FAILPOINT", &gate.at("confirm.before_settle"))]);
    consumer.until(1).await;
    let held = &found(&world, &[&id]).await["lane_held_by"];
    let application = held["application"].as_str().unwrap();
    assert!(
        application.starts_with("outboxd/") && held["pid"].as_i64().is_some(),
        "{held}"
    );
    let said = text(&world, &[&id]).await;
    assert!(
        said.contains(&format!("a relay works its lane now: {application}")),
        "{said}"
    );
    gate.open();
    world.drained().await;

    let message = found(&world, &[&id]).await;
    assert_eq!(message["state"], "sent");
    assert_eq!(message["before"], Value::Null);
    assert!(
        message["sent_at"].as_str().unwrap().ends_with('Z'),
        "{message:#}"
    );
}

#[tokio::test]
async fn a_time_is_estimated_from_the_lane_s_own_last_minute() {
    let world = world().await;
    // Twenty messages, one a second; then a backlog of a hundred and one, in the same lane.
    world.sql("INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, sent_at) \
             SELECT 'order', 'a', 'created', '{}', clock_timestamp() - (21 - i) * interval '1 second' FROM generate_series(1, 20) i; \
             INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', 'a', 'created', '{}' FROM generate_series(1, 101)").await;
    let last = any_id(
        &world,
        "SELECT message_id FROM outbox.message ORDER BY id DESC LIMIT 1",
    )
    .await;
    let before = &found(&world, &[&last.to_string()]).await["before"];
    assert_eq!(before["messages"], 100, "{before}");
    // 19 messages within 20 s: 101 take 106 s; the machine may be slow, then the lane is as well.
    let seconds = before["seconds"].as_f64().unwrap();
    assert!(seconds > 100.0, "{before}");
}

#[tokio::test]
async fn what_waits_is_told_with_its_cause_its_reason_and_what_it_waits_for() {
    let world = world().await;
    world.declare_exchange("events").await;
    let mut relay = world.relay(&SLOW);
    // Each destination is another one, or the messages would be held.
    let retry = world.insert(Some("a"), "nobody", "{}", "").await;
    world.waiting("cause = 'retry'", 1).await;
    let behind = world.insert(Some("a"), "created", "{}", "").await;
    world.waiting("cause = 'behind'", 1).await;
    let scheduled = world
        .insert(
            Some("b"),
            "later",
            "{}",
            "available_at = now() + interval '1 day'",
        )
        .await;
    world.waiting("cause = 'scheduled'", 1).await;
    let dead = world.insert(Some("c"), "type\u{7}", "{}", "").await;
    world.until("dead", "outbox.dead", 1).await;
    // The first ones fail, and what comes after them is held.
    for (first, filed) in [(0, 7), (6, 13)] {
        for key in first..first + 6 {
            world
                .insert(Some(&format!("h{key}")), "held", "{}", "")
                .await;
        }
        let all = "outbox.waiting WHERE cause IN ('retry', 'held', 'probe')";
        world.until("all of them failed or held", all, filed).await;
    }
    let held = any_id(
        &world,
        "SELECT message_id FROM outbox.waiting WHERE cause = 'held' AND due_at IS NULL ORDER BY id DESC LIMIT 1",
    )
    .await;

    let message = found(&world, &[&retry.to_string()]).await;
    let waiting = &message["waiting"];
    assert_eq!(message["state"], "waiting");
    assert_eq!(waiting["cause"], "retry");
    assert_eq!(waiting["reason"], "unroutable");
    assert_eq!(waiting["attempts"], 1);
    assert!(
        waiting["last_error"].as_str().unwrap().contains("NO_ROUTE"),
        "{waiting}"
    );
    assert!(
        waiting["next_try_in_seconds"].as_f64().unwrap() > 60.0,
        "{waiting}"
    );
    assert_eq!(message["route"]["headers"]["outbox-attempt"], 2);
    let said = text(&world, &[&retry.to_string()]).await;
    assert!(
        said.contains("next try") && said.contains("unroutable"),
        "{said}"
    );

    let message = found(&world, &[&behind.to_string()]).await;
    assert_eq!(
        (&message["state"], &message["waiting"]["cause"]),
        (&"waiting".into(), &"behind".into())
    );
    assert_eq!(message["behind"]["message_id"], retry.to_string());
    assert_eq!(message["head"]["message_id"], retry.to_string());
    assert_eq!(message["head"]["reason"], "unroutable");
    assert_eq!(message["waiting"]["next_try_at"], Value::Null);

    let message = found(&world, &[&scheduled.to_string()]).await;
    assert_eq!(message["state"], "scheduled");
    assert!(
        message["waiting"]["next_try_in_seconds"].as_f64().unwrap() > 3600.0,
        "{message:#}"
    );

    let message = found(&world, &[&held.to_string()]).await;
    assert_eq!(message["state"], "held");
    assert_eq!(message["route"]["routing_key"], "order.held");
    assert_eq!(message["route"].get("is_held_for_another"), None);
    let other = [("OUTBOXD__ROUTING__EXCHANGE", "other")];
    let elsewhere = world.outboxd(&["where", &held.to_string()], &other).await;
    assert!(
        elsewhere
            .stdout
            .contains("the relay that filed it computed another destination"),
        "{}",
        elsewhere.stdout
    );

    let message = found(&world, &[&dead.to_string()]).await;
    assert_eq!(message["state"], "dead");
    assert_eq!(message["dead"]["reason"], "routing_key_invalid");
    assert_eq!(message["route"]["refused"], "routing_key_invalid");
    assert!(message["dead"]["died_at"].as_str().unwrap().ends_with('Z'));
    // Control characters of a row do not reach the terminal.
    assert!(
        text(&world, &[&dead.to_string()])
            .await
            .contains("type\\u{7}")
    );

    // The key as a whole: its head, and what stands behind it.
    let key = json(&world, &["--key", "order/a"], 0).await;
    let ids: Vec<&Value> = key["open"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["message_id"])
        .collect();
    assert_eq!(
        ids,
        [&Value::from(retry.to_string()), &behind.to_string().into()]
    );
    assert_eq!(key["head"], retry.to_string());
    let said = text(&world, &["--key", "order/a"]).await;
    assert!(
        said.contains(&format!("{retry} holds back what comes after it")),
        "{said}"
    );
    let dead_key = json(&world, &["--key", "order/c"], 0).await;
    assert_eq!(dead_key["open"][0]["state"], "dead");
    assert_eq!(dead_key["head"], Value::Null);

    relay.kill().await.unwrap();
    world
        .ok(&format!("dead redrive {dead} --why corrected"))
        .await;
    let message = found(&world, &[&dead.to_string()]).await;
    assert_eq!(
        (&message["state"], &message["waiting"]["cause"]),
        (&"waiting".into(), &"redrive".into())
    );
}

#[tokio::test]
async fn a_sent_message_says_when_and_whether_it_waits_to_be_sent_again() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    let id = world
        .insert(Some("a"), "created", "{}", "")
        .await
        .to_string();
    consumer.until(1).await;
    world.drained().await;
    relay.kill().await.unwrap();
    let message = found(&world, &[&id]).await;
    assert_eq!(
        (&message["state"], &message["waiting"]),
        (&"sent".into(), &Value::Null)
    );
    assert_eq!(message["operations"], serde_json::json!([]));

    world
        .ok(&format!("replay {id} --why 'they lost it' --by ada"))
        .await;
    let message = found(&world, &[&id]).await;
    assert_eq!(message["state"], "sent");
    assert_eq!(message["waiting"]["cause"], "replay");
    assert_eq!(message["route"]["headers"]["outbox-replay"], true);
    let said = text(&world, &[&id]).await;
    assert!(
        said.contains("sent, and waits to be sent again (replay)"),
        "{said}"
    );
    assert!(said.contains("replay by ada: they lost it"), "{said}");

    let key = json(&world, &["--key", "order/a"], 0).await;
    assert_eq!(key["open"][0]["message_id"], id);
    assert_eq!(key["head"], Value::Null, "a replay holds nobody back");
}

#[tokio::test]
async fn a_stranded_message_is_told_apart_from_a_pending_one() {
    let world = world().await;
    let id = world
        .insert(Some("a"), "created", "{}", "")
        .await
        .to_string();
    assert_eq!(found(&world, &[&id]).await["state"], "pending");
    world.sql("UPDATE outbox.lane SET low_water = 1").await;
    assert_eq!(found(&world, &[&id]).await["state"], "stranded");
    assert_eq!(
        json(&world, &["--key", "order/a"], 0).await["open"][0]["state"],
        "stranded"
    );
}

#[tokio::test]
async fn a_key_lists_what_is_not_sent_in_order_and_the_last_of_what_is() {
    let world = world().await;
    let consumer = world.consumer().await;
    let mut relay = world.relay(&[]);
    for n in 0..8 {
        world
            .insert(Some("a/b"), "created", &format!("{n}"), "")
            .await;
    }
    consumer.until(8).await;
    world.drained().await;
    relay.kill().await.unwrap();
    let (one, two) = (
        world.insert(Some("a/b"), "created", "{}", "").await,
        world.insert(Some("a/b"), "created", "{}", "").await,
    );
    world.insert(Some("other"), "created", "{}", "").await;
    let report = json(&world, &["--key", "order/a/b"], 0).await;
    let ids = |name: &str| -> Vec<String> {
        let list = report[name].as_array().unwrap().iter();
        list.map(|m| m["message_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("open"), [one.to_string(), two.to_string()]);
    assert_eq!(ids("sent").len(), 5, "the last five");
    assert_eq!(report["open_is_cut"], false);
    assert_eq!(report["open"][0]["before"]["messages"], 0);
    let said = text(&world, &["--key", "order/a/b"]).await;
    assert!(
        said.contains("not sent: 2") && said.contains("the last 5 that were sent:"),
        "{said}"
    );

    world
        .sql(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', 'many', 'created', '{}' FROM generate_series(1, 150)",
        )
        .await;
    let many = json(&world, &["--key", "order/many"], 0).await;
    assert_eq!(many["open"].as_array().unwrap().len(), 100);
    assert_eq!(many["open_is_cut"], true);
    assert!(
        text(&world, &["--key", "order/many"])
            .await
            .contains("there may be more")
    );
}
