//! Names in SQL: a role that may create objects in a schema of another role's search_path cannot run code as that role.

use test_support::{Postgres, shadows};

use crate::world::{SOON, World, repository, world};

/// Creates objects in public, as PostgreSQL 14 lets every role do, and in a schema with the role's name, which comes first in the
/// path.
async fn plant(postgres: &Postgres, database: &str, schemas: &[&str]) {
    for schema in schemas {
        let sql = shadows(repository(), schema).unwrap();
        postgres.execute(database, &sql).await.unwrap();
    }
}

/// Before and after the migration, with the usual path and with a path that has pg_catalog last.
#[tokio::test]
async fn a_stand_in_for_a_function_operator_or_type_never_runs_as_anybody() {
    let world = world().await;
    let postgres = world.postgres();
    for (n, path) in ["\"$user\", public", "\"$user\", public, pg_catalog"]
        .into_iter()
        .enumerate()
    {
        let (database, _) = world.another(&format!("shadows_{n}")).await;
        let set = format!("ALTER DATABASE {database} SET search_path = {path}");
        postgres.execute("postgres", &set).await.unwrap();
        plant(postgres, &database, &["public", "owner"]).await;
        let client = postgres.connect(&database).await.unwrap();
        let there = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_proc WHERE pg_catalog.strpos(prosrc, 'trap.spring') OPERATOR(pg_catalog.>) 0";
        let there: i64 = client.query_one(there, &[]).await.unwrap().get(0);
        assert!(there > 3000, "{there}");

        migrates(&world, &database).await;
        plant(postgres, &database, &["public", "payments"]).await;
        migrates(&world, &database).await;
        produces_and_consumes(&world, &database);
        watches(&world, &database).await;
        relays(&world, &database).await;

        let sprung = client
            .query_one("SELECT is_called FROM trap.sprung", &[])
            .await
            .unwrap();
        assert!(
            !sprung.get::<_, bool>(0),
            "a stand-in ran, with the path {path}"
        );
    }
}

fn script(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).unwrap()
}

/// The program migrates, then psql runs the roles.
async fn migrates(world: &World, database: &str) {
    let url = world.postgres().url_for("owner", "owner", database);
    for schema in ["outbox", "inbox"] {
        let run = world
            .outboxd(&["migrate", "--schema", schema], &[("DATABASE_URL", &url)])
            .await;
        run.ends(0, &[]);
    }
    for file in [
        "deploy/postgres/roles.sql",
        "deploy/postgres/inbox_roles.sql",
    ] {
        let sql = format!("SET outboxd.shared_roles = on; {}", script(file));
        world
            .postgres()
            .psql("owner", "owner", database, &sql)
            .unwrap();
    }
    // Other tools run the same file. In a schema that exists already it must fail at its first table.
    let again = world
        .postgres()
        .psql(
            "owner",
            "owner",
            database,
            &script("migrations/outbox/0001_outbox.sql"),
        )
        .unwrap_err()
        .to_string();
    assert!(again.contains("already exists"), "{again}");
}

fn produces_and_consumes(world: &World, database: &str) {
    let insert = |values: &str| {
        format!(
            "INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload, headers) VALUES {values};"
        )
    };
    let producer = [
        insert("('order', '1', 'created', '{}', '{\"a\":1}'), ('order', NULL, 'created', '{}', NULL)"),
        "SELECT outbox.enqueue('order', '1', 'created', '{}');".to_owned(),
        "SELECT outbox.enqueue_binary('order', '1', 'scanned', 'x', 'text/plain');".to_owned(),
        "INSERT INTO outbox.debezium (aggregatetype, aggregateid, type, payload) VALUES ('order', '1', 'created', '{}');".to_owned(),
        // This prepares `dead redrive` and `dead discard`.
        insert("('order', '2', 'created', '{}', '[]'), ('order', '3', 'created', '{}', '[]')"),
    ]
    .concat();
    world
        .postgres()
        .psql("producer", "producer", database, &producer)
        .unwrap();

    let consumer = "\
        SELECT outcome FROM inbox.claim('c', 'k1', inbox.fingerprint('t', 'c', 'b'), 'e', 5); \
        SELECT inbox.complete('c', 'k1', 'paid'), inbox.forgive('c', 'k1'); \
        SELECT outcome FROM inbox.claim('c', 'k1', inbox.fingerprint('t', 'c', 'b'), 'e', 5); \
        SELECT outcome FROM inbox.claim('c', 'k1', inbox.fingerprint('t', 'c', 'other'), 'e', 5); \
        SELECT outcome FROM inbox.claim('c', 'k2', inbox.fingerprint('t', 'c', 'b'), 'e', 4); \
        SELECT outcome FROM inbox.begin_effect('c', 'k3', inbox.fingerprint('t', 'c', 'b')); \
        SELECT outcome FROM inbox.begin_effect('c', 'k3', inbox.fingerprint('t', 'c', 'b')); \
        SELECT idempotency_key FROM inbox.in_doubt; \
        SELECT inbox.record_effect('c', 'k3', 'charged'); \
        SELECT outcome FROM inbox.begin_effect('c', 'k4', inbox.fingerprint('t', 'c', 'b')); \
        SELECT inbox.abandon_effect('c', 'k4'); \
        SELECT inbox.fail('c', 'k5', 'no'); SELECT inbox.fail('c', 'k5', 'no'); \
        SELECT inbox.prune('c', '0 s')";
    let said = world
        .postgres()
        .psql("payments", "payments", database, consumer)
        .unwrap();
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(
        said,
        [
            "first",
            "|",
            "duplicate",
            "conflict",
            "stale",
            "first",
            "in_doubt",
            "k3",
            "",
            "first",
            "",
            "1",
            "2",
            "3"
        ]
    );
}

async fn watches(world: &World, database: &str) {
    for file in ["outbox_status.sql", "inbox_status.sql"] {
        let sql = script(&format!("deploy/postgres_exporter/{file}"));
        let role = if file.starts_with("inbox") {
            "owner"
        } else {
            "monitor"
        };
        world.postgres().psql(role, role, database, &sql).unwrap();
    }
    let url = world.postgres().url_for("monitor", "monitor", database);
    for command in [
        &["status"][..],
        &["check-lag", "--warning", "1h", "--critical", "2h"],
    ] {
        let run = world.outboxd(command, &[("DATABASE_URL", &url)]).await;
        run.ends(0, &[]);
    }
}

async fn relays(world: &World, database: &str) {
    world.bind("all", "#", &[]).await;
    let url = world
        .postgres()
        .url_for("relay", "relay-canary-password", database);
    let env = [("DATABASE_URL", url.as_str())];
    let client = world.postgres().connect(database).await.unwrap();
    client
        .batch_execute("SET search_path = pg_catalog")
        .await
        .unwrap();
    let count = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let check = world.outboxd(&["check", "--connect"], &env).await;
    check.ends(0, &[]);
    let relay = world.relay(&env);
    test_support::eventually(
        "the relay to send all but two, which are dead",
        SOON,
        async || {
            let sent = count("SELECT count(*) FROM outbox.message WHERE sent_at IS NOT NULL").await;
            (sent == 5 && count("SELECT count(*) FROM outbox.dead").await == 2).then_some(())
        },
    )
    .await;
    for command in [
        &["dead", "list"][..],
        &["dead", "redrive", "--key", "order/2", "--why", "test"],
        &["dead", "discard", "--key", "order/3", "--why", "test"],
        &["replay", "--since", "2020-01-01T00:00:00Z", "--why", "test"],
        &["prune", "--older-than", "1h"],
    ] {
        let run = world.outboxd(command, &env).await;
        run.ends(0, &[]);
    }
    drop(relay);
}
