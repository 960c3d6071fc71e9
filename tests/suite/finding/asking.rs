//! Who may ask, what is shown, and what is refused.

use uuid::Uuid;

use super::ask::{any_id, found, hold_lane_of, text};
use crate::world::{World, run, words, world};

#[tokio::test]
async fn a_body_is_shown_only_when_it_is_asked_for() {
    let world = world().await;
    const CANARY: &str = "body-canary-7d1";
    let id = world
        .insert(
            Some("a"),
            "created",
            &format!(r#"{{"x":"{CANARY}"}}"#),
            "headers = '{\"correlation_id\":\"c\"}'",
        )
        .await
        .to_string();
    for args in [
        &[id.as_str()][..],
        &[&id, "--json"],
        &["--key", "order/a"],
        &["--key", "order/a", "--json"],
        &["--correlation-id", "c"],
        &["--correlation-id", "c", "--json"],
    ] {
        let run = world.outboxd(&[&["where"], args].concat(), &[]).await;
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(
            !run.stdout.contains(CANARY) && !run.stderr.contains(CANARY),
            "{args:?}: {}",
            run.stdout
        );
    }
    assert!(text(&world, &[&id, "--body"]).await.contains(CANARY));
    let body = format!(r#"{{"x":"{CANARY}"}}"#);
    assert_eq!(found(&world, &[&id, "--body"]).await["body"]["text"], body);

    let bytes = any_id(
        &world,
        "INSERT INTO outbox.message (aggregate_type, event_type, binary_payload, content_type) \
         VALUES ('order', 'created', '\\xff00', 'application/octet-stream') RETURNING message_id",
    )
    .await
    .to_string();
    assert_eq!(
        found(&world, &[&bytes, "--body"]).await["body"]["hex"],
        "ff00"
    );
    let screen = any_id(
        &world,
        "INSERT INTO outbox.message (aggregate_type, event_type, binary_payload, content_type) \
         VALUES ('order', 'created', '\\x1b5b324a0a41', 'text/plain') RETURNING message_id",
    )
    .await
    .to_string();
    let said = text(&world, &[&screen, "--body"]).await;
    assert!(
        said.contains("\\u{1b}[2J\nA") && !said.contains('\u{1b}'),
        "{said}"
    );
}

#[tokio::test]
async fn odd_input_is_refused_with_a_cure_before_any_server_is_asked() {
    let world = world().await;
    let id = Uuid::new_v4().to_string();
    for (args, cure) in [
        ("", "MESSAGE_ID"),
        ("1042", "is not a message id"),
        ("--key 1042", "for example order/1042"),
        ("--key order/", "for example order/1042"),
        ("--correlation-id ' '", "is empty"),
        ("--key order/1 --body", "MESSAGE_ID"),
        ("--key order/1 --correlation-id x", "cannot be used with"),
        ("ID --correlation-id x", "cannot be used with"),
        ("ID --since yesterday", "must be a time with its zone"),
        ("ID --since 2026-01-31T08:00:00", "has no time zone"),
        ("ID --since 1h --until 2h", "is not before --until"),
        ("--key order/1 --since 1h", "however old"),
        ("--key order/1 --scan", "however old"),
    ] {
        let command = format!("where {}", args.replace("ID", &id));
        let run = world.outboxd(&words(&command), &[]).await;
        run.ends(2, &[cure]);
    }
}

#[tokio::test]
async fn the_relay_s_role_and_the_owner_may_ask_and_nobody_else() {
    let world = world().await;
    let id = world
        .insert(Some("a"), "created", "{}", "")
        .await
        .to_string();
    for (user, password, code) in [
        ("relay", "relay-canary-password", 0),
        ("owner", "owner", 0),
        ("monitor", "monitor", 78),
        ("producer", "producer", 78),
    ] {
        let url = world.postgres().url_for(user, password, &world.database);
        for args in [&["where", &id][..], &["where", "--key", "order/a"]] {
            let run = world.outboxd(args, &[("DATABASE_URL", &url)]).await;
            assert_eq!(run.code, code, "{user}: {}{}", run.stdout, run.stderr);
        }
    }
    // Somebody else's relay is seen by its name, too.
    let _relay = hold_lane_of(&world, id.parse().unwrap(), "outboxd/elsewhere/7/0").await;
    let message = found(&world, &[&id]).await;
    assert_eq!(
        message["lane_held_by"]["application"],
        "outboxd/elsewhere/7/0"
    );
}

#[tokio::test]
async fn of_two_sources_the_one_is_asked_that_is_named() {
    let (full, empty) = (world().await, world().await);
    let id = full
        .insert(Some("a"), "created", "{}", "")
        .await
        .to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let source = |name: &str, world: &World| {
        format!(
            "[[source]]\nname = '{name}'\ndatabase.url = '{}'\n",
            world.database_url()
        )
    };
    std::fs::write(
        &file,
        [source("full", &full), source("empty", &empty)].concat(),
    )
    .unwrap();
    let config = ["--config", file.to_str().unwrap()];
    for (more, code) in [
        (&["--source", "full"][..], 0),
        (&["--source", "empty"], 1),
        (&[], 2),
    ] {
        let args = [&config[..], more, &["where", &id]].concat();
        let run = run(&args, &[]).await;
        assert_eq!(run.code, code, "{more:?}: {}", run.stderr);
    }
}
