//! Who may do what with an inbox, and the statements that people and exporters run on it.

use std::path::Path;

use crate::{
    inbox::{connect, consumer, inbox, operation},
    read, server,
};

#[tokio::test]
async fn a_consumer_cannot_rename_an_operation_and_a_monitor_sees_none() {
    let client = consumer().await;
    for forbidden in [
        "UPDATE inbox.message SET idempotency_key = 'x'",
        "UPDATE inbox.message SET fingerprint = ''",
        "DELETE FROM inbox.entity",
        "TRUNCATE inbox.message",
    ] {
        let error = client.batch_execute(forbidden).await.unwrap_err();
        assert!(
            format!("{error:?}").contains("permission denied"),
            "{forbidden}: {error:?}"
        );
    }
    let watcher = connect("watcher", "w").await;
    assert!(
        watcher
            .batch_execute("SELECT * FROM inbox.message")
            .await
            .is_err()
    );
    assert!(
        watcher
            .batch_execute("SELECT inbox.fail('c', 'k', 'e')")
            .await
            .is_err()
    );
}

/// As postgres_exporter asks, in a database of its own: the counts are those of the whole inbox.
#[tokio::test]
async fn the_exporter_s_query_runs_as_the_monitor_and_tells_the_oldest_doubt() {
    consumer().await;
    let postgres = server().await;
    postgres
        .create_database("watched", "inbox_owner")
        .await
        .unwrap();
    for file in [
        "migrations/inbox/0001_inbox.sql",
        "deploy/postgres/inbox_roles.sql",
    ] {
        // The watcher watches both databases.
        let sql = format!("SET outboxd.shared_roles = on; {}", read(file));
        postgres.psql("inbox_owner", "o", "watched", &sql).unwrap();
    }
    let query = read("deploy/postgres_exporter/inbox_status.sql");
    let asked = || {
        let answer = postgres.psql("watcher", "w", "watched", &query).unwrap();
        let cells: Vec<_> = answer.trim().split('|').map(str::to_owned).collect();
        let [database, in_doubt, age, failing] = &cells[..] else {
            panic!("{answer}")
        };
        assert_eq!(database, "watched");
        (
            in_doubt.clone(),
            age.parse::<f64>().unwrap(),
            failing.clone(),
        )
    };
    assert_eq!(
        asked(),
        ("0".to_owned(), 0.0, "0".to_owned()),
        "an empty inbox"
    );
    let admin = postgres.connect("watched").await.unwrap();
    let inbox = inbox("effects");
    for key in ["old", "young"] {
        inbox.begin_effect(&admin, &operation(key)).await.unwrap();
    }
    inbox.fail(&admin, "m1", "boom").await.unwrap();
    let age = "UPDATE inbox.message SET claimed_at = claimed_at - interval '1 hour' WHERE idempotency_key = 'old'";
    admin.batch_execute(age).await.unwrap();
    let (in_doubt, age, failing) = asked();
    assert_eq!((in_doubt.as_str(), failing.as_str()), ("2", "1"));
    // It goes on growing while this test runs.
    assert!((3600.0..5400.0).contains(&age), "{age}");
    inbox.record_effect(&admin, "old", &"sent").await.unwrap();
    let (in_doubt, age, _) = asked();
    assert_eq!(in_doubt, "1");
    assert!(age < 1800.0, "{age}");
}

/// Whoever is woken pastes it: each statement of the runbooks runs, with the rights they say.
#[tokio::test]
async fn the_runbooks_sql_runs_as_a_consumer() {
    let mut client = consumer().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks");
    let mut runbooks = String::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        if file
            .file_name()
            .to_string_lossy()
            .to_lowercase()
            .starts_with("inbox")
        {
            runbooks += &std::fs::read_to_string(file.path()).unwrap();
        }
    }
    let mut statements = 0;
    for block in runbooks.split("```sql\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        for statement in block.split_inclusive(";\n") {
            // What it is about is there, and nothing is left of it.
            let transaction = client.transaction().await.unwrap();
            let begun =
                "SELECT inbox.begin_effect('payments', 'pay_123', inbox.fingerprint('t', 'c', ''))";
            transaction.batch_execute(begun).await.unwrap();
            if let Err(error) = transaction.batch_execute(statement).await {
                panic!("{statement}: {error:?}");
            }
            statements += 1;
        }
    }
    assert!(statements >= 8, "{statements} statements in the runbooks");
    let monitor = connect("watcher", "w").await;
    monitor
        .batch_execute("SELECT * FROM inbox.status")
        .await
        .unwrap();
}
