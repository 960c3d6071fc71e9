//! The rights of producers, relays, monitors, consumers and strangers, and that a role has them only in its database.

use crate::world::{World, repository, world};

/// The table of docs/operating/security.md between the two marks: role, object, privileges.
fn documented() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("docs/operating/security.md")).unwrap();
    let table = text.split("<!-- privileges -->").nth(1).unwrap();
    let mut lines: Vec<String> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches(['|', ' ']).replace('`', ""))
        .collect();
    lines.sort();
    lines
}

/// Every role, every table, column, sequence, schema and function that acts with its owner's rights.
#[tokio::test]
async fn each_role_may_do_what_the_manual_says_and_nothing_else() {
    let world = world().await;
    let sql = include_str!("privileges.sql");
    let rows = world.all(sql).await;
    let mut here: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    here.sort();
    assert!(
        !here.iter().any(|line| line.starts_with("public")),
        "a stranger may nothing: {here:#?}"
    );
    assert_eq!(here, documented());
}

/// The database sets the role and the time of a record, and a relay cannot change a record.
#[tokio::test]
async fn a_relay_cannot_forge_or_change_the_record_of_an_operation() {
    let world = world().await;
    let as_relay = |sql: &str| {
        world
            .postgres()
            .psql("relay", "relay-canary-password", &world.database, sql)
            .map_err(|e| e.to_string())
    };
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO outbox.operation (by_whom, action, why, selection, affected, message_ids{columns}) \
             VALUES ('me', 'discard', 'because', 'all', 1, ARRAY[gen_random_uuid()]{values})"
        )
    };
    // Whatever role it takes on.
    let deputy = format!("deputy_{}", world.database);
    let sql = format!("CREATE ROLE {deputy} IN ROLE outbox_relay; GRANT {deputy} TO relay");
    world.sql(&sql).await;
    as_relay(&format!("SET ROLE {deputy}; {}", insert("", ""))).unwrap();
    let row = world
        .row("SELECT by_role, at > now() - interval '1 hour' FROM outbox.operation")
        .await;
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, bool>(1)),
        ("relay", true)
    );
    for forbidden in [
        insert(", by_role", ", 'somebody'"),
        insert(", at", ", now() - interval '1 year'"),
        "INSERT INTO outbox.operation (id, by_whom, action, why, selection, affected) OVERRIDING SYSTEM VALUE \
         VALUES (1, 'me', 'discard', 'because', 'all', 0)"
            .to_owned(),
        "UPDATE outbox.operation SET by_whom = 'somebody'".to_owned(),
        "DELETE FROM outbox.operation".to_owned(),
        "TRUNCATE outbox.operation".to_owned(),
    ] {
        let refused = as_relay(&forbidden).unwrap_err();
        assert!(refused.contains("permission denied"), "{forbidden}: {refused}");
    }
    // A relay adds to a record that it has not finished: not to another role's, not to one that is finished, and never less.
    let others = "INSERT INTO outbox.operation (by_role, by_whom, action, why, selection, affected) \
                  VALUES ('somebody', 'ada', 'discard', 'because', 'all', 5) RETURNING id";
    let others: i64 = world.client.query_one(others, &[]).await.unwrap().get(0);
    let own = "SELECT id FROM outbox.operation WHERE by_role = 'relay'";
    let own: i64 = world.client.query_one(own, &[]).await.unwrap().get(0);
    for (id, messages, finished, written) in [
        (others, 1, false, ""),
        (own, -1, false, ""),
        (own, 2, false, "t"),
        (own, 3, true, "t"),
        (own, 1, false, ""),
    ] {
        let sql = format!("SELECT outbox.recorded({id}, {messages}, '{{}}', {finished})");
        assert_eq!(as_relay(&sql).unwrap().trim(), written, "{sql}");
    }
    let added =
        "outbox.operation WHERE by_role = 'relay' AND affected = 6 AND finished_at IS NOT NULL";
    assert_eq!(world.count(added).await, 1);
    // A record cannot have more ids than affected messages, or a negative number.
    for values in ["0, ARRAY[gen_random_uuid()]", "-1, '{}'"] {
        let sql = format!(
            "INSERT INTO outbox.operation (by_whom, action, why, selection, affected, message_ids) \
             VALUES ('me', 'discard', 'because', 'all', {values})"
        );
        let refused = as_relay(&sql).unwrap_err();
        assert!(refused.contains("check constraint"), "{refused}");
    }
}

async fn second_database(world: &World) -> String {
    let (database, url) = world.another("other").await;
    let run = world.outboxd(&["migrate"], &[("DATABASE_URL", &url)]).await;
    run.ends(0, &[]);
    database
}

/// Roles belong to the server: a right on one database's outbox must not become a right on another's.
#[tokio::test]
async fn a_service_of_one_database_does_not_get_into_another_one_s_outbox() {
    let world = world().await;
    let other = second_database(&world).await;
    let postgres = world.postgres();
    let roles = async |args: &[&str]| {
        let run = world
            .outboxd(&[&["sql", "--roles"], args].concat(), &[])
            .await;
        run.ends(0, &[]);
        run.stdout
    };
    let insert =
        "INSERT INTO outbox.message (aggregate_type, event_type, payload) VALUES ('a', 'b', '{}')";
    let denied = |user: &str, password: &str, database: &str, statements: &[&str]| {
        for sql in statements {
            let refused = postgres.psql(user, password, database, sql).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains("permission denied"), "{sql}: {refused}");
        }
    };
    let all = [
        insert,
        "SELECT * FROM outbox.message",
        "SELECT * FROM outbox.status",
        "SELECT outbox.enqueue('a', 'b', 'c', '{}')",
        "TRUNCATE outbox.message",
        "SELECT * FROM inbox.message",
    ];
    // `outbox_producer` has members in the first database already.
    let usual = postgres
        .psql("owner", "owner", &other, &roles(&[]).await)
        .unwrap_err()
        .to_string();
    assert!(
        usual.contains("role outbox_producer has rights in another database")
            && usual.contains("--producer NAME"),
        "{usual}"
    );
    denied("producer", "producer", &other, &[insert]);
    let of_a_relay = [
        "SELECT * FROM outbox.message",
        "DELETE FROM outbox.message",
        "UPDATE outbox.lane SET low_water = 1000000",
    ];
    denied("relay", "relay-canary-password", &other, &of_a_relay);

    // Roles with other names, and grants to a login role directly.
    let n = &world.database;
    let (service, relay, monitor) = (
        format!("svc_{n}"),
        format!("Relay of {n}"),
        format!("monitor_{n}"),
    );
    let make = format!("CREATE ROLE {service} LOGIN PASSWORD '{service}'");
    postgres.execute("postgres", &make).await.unwrap();
    let own = roles(&[
        "--producer",
        &service,
        "--relay",
        &relay,
        "--monitor",
        &monitor,
    ])
    .await;
    for _ in 0..2 {
        postgres.psql("owner", "owner", &other, &own).unwrap();
    }
    postgres.psql(&service, &service, &other, insert).unwrap();
    denied(&service, &service, &world.database, &all);
    let relay_may = format!("SELECT has_table_privilege('{relay}', 'outbox.message', 'DELETE')");
    assert_eq!(
        postgres
            .psql("owner", "owner", &other, &relay_may)
            .unwrap()
            .trim(),
        "t"
    );

    // If shared roles are meant, `check` reports them.
    let shared = format!("SET outboxd.shared_roles = on; {}", roles(&[]).await);
    postgres.psql("owner", "owner", &other, &shared).unwrap();
    postgres
        .psql("producer", "producer", &other, insert)
        .unwrap();
    denied(&service, &service, &world.database, &all);
    world.declare_exchange("events").await;
    let url = postgres.url_for("relay", "relay-canary-password", &other);
    let check = world
        .outboxd(&["check", "--connect"], &[("DATABASE_URL", &url)])
        .await;
    check.ends(0, &[]);
    assert!(
        check
            .stdout
            .contains("warning: members of outbox_producer (")
            && check.stdout.contains(n.as_str()),
        "{}",
        check.stdout
    );

    // Options that make no sense are refused.
    for (args, code) in [
        (&["sql", "--producer", "x"][..], 2),
        (&["sql", "--roles", "--consumer", "x"], 2),
        (&["sql", "--roles", "--schema", "inbox", "--relay", "x"], 2),
        (&["sql", "--roles", "--relay", "pg_monitor"], 2),
        (&["sql", "--roles", "--relay", ""], 2),
    ] {
        assert_eq!(world.outboxd(args, &[]).await.code, code, "{args:?}");
    }
}

#[tokio::test]
async fn an_inbox_s_roles_stay_in_their_database_too() {
    let world = world().await;
    let (other, url) = world.another("inbox").await;
    let postgres = world.postgres();
    let run = world
        .outboxd(&["migrate", "--schema", "inbox"], &[("DATABASE_URL", &url)])
        .await;
    run.ends(0, &[]);
    let roles = async |args: &[&str]| {
        world
            .outboxd(
                &[&["sql", "--schema", "inbox", "--roles"], args].concat(),
                &[],
            )
            .await
            .stdout
    };
    let usual = postgres
        .psql("owner", "owner", &other, &roles(&[]).await)
        .unwrap_err()
        .to_string();
    assert!(
        usual.contains("role inbox_consumer has rights in another database"),
        "{usual}"
    );
    let consumer = format!("consumer_{}", world.database);
    let monitor = format!("watch_{}", world.database);
    let own = roles(&["--consumer", &consumer, "--monitor", &monitor]).await;
    postgres.psql("owner", "owner", &other, &own).unwrap();
    let claim = "SELECT outcome FROM inbox.claim('c', 'k', inbox.fingerprint('t', 'c', 'b'))";
    let refused = postgres
        .psql("payments", "payments", &other, claim)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("permission denied"), "{refused}");
}

/// A text and its bytes have one fingerprint, whatever type the driver gives the parameter. A text that could be either is refused.
#[tokio::test]
async fn text_and_its_bytes_have_one_fingerprint_and_are_one_result() {
    let world = world().await;
    let psql = |sql: &str| {
        world
            .postgres()
            .psql("payments", "payments", &world.database, sql)
            .map_err(|e| e.to_string())
    };
    for body in [
        r#"{"path":"C:\new\041"}"#,
        r"a",
        r"",
        r"\",
        r"A",
        "",
        "größe €",
        r"x\x00",
    ] {
        let literal = format!("'{}'", body.replace('\'', "''"));
        let bytes: String = body.bytes().map(|byte| format!("{byte:02x}")).collect();
        let by_literal = psql(&format!(
            "SELECT encode(inbox.fingerprint('t', 'c', {literal}), 'hex')"
        ))
        .unwrap();
        let by_bytes = psql(&format!(
            "SELECT encode(inbox.fingerprint('t', 'c', '\\x{bytes}'::bytea), 'hex')"
        ))
        .unwrap();
        assert_eq!(by_literal, by_bytes, "{body}");
        // Three drivers: one asks the server for the types, one gives text, one gives bytea.
        for (sql, typed) in [
            (
                "SELECT encode(inbox.fingerprint('t', 'c', $1), 'hex')",
                body.to_owned(),
            ),
            (
                "SELECT encode(inbox.fingerprint('t', 'c', $1::text), 'hex')",
                body.to_owned(),
            ),
            (
                "SELECT encode(inbox.fingerprint('t', 'c', $1::varchar), 'hex')",
                body.to_owned(),
            ),
        ] {
            let row = world.client.query_one(sql, &[&typed]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), by_literal.trim(), "{sql} {body}");
        }
        let sql = "SELECT encode(inbox.fingerprint('t', 'c', $1::bytea), 'hex')";
        let row = world
            .client
            .query_one(sql, &[&body.as_bytes()])
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), by_literal.trim());

        for how in ["complete", "record_effect"] {
            let begin = if how == "complete" {
                "claim"
            } else {
                "begin_effect"
            };
            let stored = psql(&format!(
                "BEGIN; SELECT outcome FROM inbox.{begin}('c', 'k', inbox.fingerprint('t', 'c', 'b')); \
                 SELECT inbox.{how}('c', 'k', {literal}, 'text/plain'); \
                 SELECT encode(result, 'hex') FROM inbox.{begin}('c', 'k', inbox.fingerprint('t', 'c', 'b')); ROLLBACK"
            ))
            .unwrap();
            let stored: Vec<&str> = stored.lines().collect();
            assert_eq!(stored, ["first", "", bytes.as_str()], "{how} {body}");
        }
    }
    for sql in [
        r"SELECT inbox.fingerprint('t', 'c', '\x7b7d')",
        r"SELECT inbox.complete('c', 'k', '\x7b7d')",
        r"SELECT inbox.record_effect('c', 'k', '\x7b7d')",
        r"SET standard_conforming_strings = off; SELECT inbox.fingerprint('t', 'c', E'\\x7b7d')",
    ] {
        let refused = psql(sql).unwrap_err();
        assert!(
            refused.contains("bytes in hexadecimal") && refused.contains("::bytea"),
            "{sql}: {refused}"
        );
    }
    let none = "SELECT inbox.fingerprint('t', 'c', NULL) = inbox.fingerprint('t', 'c', '')";
    assert_eq!(psql(none).unwrap().trim(), "t");
}
