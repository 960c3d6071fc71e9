//! `outboxd migrate` over schemas that people have made or changed: incomplete, edited, or made by hand.

use std::path::Path;

use outboxd::outbox::{parts, schema, session::Session};

use crate::world::{Run, World, repository, world};

struct Place<'w> {
    world: &'w World,
    database: String,
    url: String,
}

impl<'w> Place<'w> {
    /// An empty database of `owner`.
    async fn new(world: &'w World, name: &str) -> Self {
        let (database, url) = world.another(name).await;
        Self {
            world,
            database,
            url,
        }
    }

    async fn migrated(world: &'w World, name: &str) -> Self {
        let place = Self::new(world, name).await;
        let run = place.migrate(&[]).await;
        run.ends(0, &[]);
        place
    }

    async fn migrate(&self, more: &[&str]) -> Run {
        self.migrate_as(&self.url, more).await
    }

    async fn migrate_as(&self, url: &str, more: &[&str]) -> Run {
        self.world
            .outboxd(&[&["migrate"], more].concat(), &[("DATABASE_URL", url)])
            .await
    }

    fn owner(&self, sql: &str) -> String {
        self.world
            .postgres()
            .psql("owner", "owner", &self.database, sql)
            .unwrap()
    }

    fn recorded(&self) -> String {
        self.owner("SELECT version, checksum IS NOT NULL FROM outbox.migration")
            .trim()
            .to_owned()
    }
}

/// The lists of a schema's parts come from a database. With OUTBOXD_WRITE_PARTS=1 this test writes them again.
#[tokio::test]
async fn the_list_of_parts_is_what_the_migrations_make() {
    let world = world().await;
    let database = outboxd_database(&world);
    let session = Session::connect(&database, "test").await.unwrap();
    for schema in [&schema::OUTBOX, &schema::INBOX] {
        let here = parts::written(&parts::here(&session, schema.name).await.unwrap());
        let file = repository().join(format!("src/outbox/parts/{}_0001.txt", schema.name));
        if std::env::var_os("OUTBOXD_WRITE_PARTS").is_some() {
            std::fs::write(&file, &here).unwrap();
        }
        let written = std::fs::read_to_string(Path::new(&file)).unwrap();
        assert_eq!(
            here, written,
            "after a change of a migration: OUTBOXD_WRITE_PARTS=1 cargo xtask test the_list_of_parts"
        );
    }
}

fn outboxd_database(world: &World) -> outboxd::config::Database {
    use outboxd::config::{Config, LoadOptions, Needs};
    let options = LoadOptions {
        file: None,
        env: world
            .env(&[])
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        overrides: Vec::new(),
        needs: Needs {
            database: true,
            broker: false,
        },
    };
    Config::load(options).unwrap().sources.remove(0).database
}

/// For each kind of edit, migrate names the edit, changes nothing, and records no checksum for a schema that differs from the
/// file's result.
#[tokio::test]
async fn what_was_edited_is_named_and_never_gets_the_official_checksum() {
    let world = world().await;
    let place = Place::migrated(&world, "edited").await;
    for (edit, back, named) in [
        (
            "ALTER TABLE outbox.message ALTER sent_at TYPE timestamp",
            "ALTER TABLE outbox.message ALTER sent_at TYPE timestamptz",
            "column outbox.message.sent_at: timestamp with time zone (here: timestamp without time zone)",
        ),
        (
            "ALTER TABLE outbox.message ALTER created_at DROP DEFAULT",
            "ALTER TABLE outbox.message ALTER created_at SET DEFAULT clock_timestamp()",
            "column outbox.message.created_at: timestamp with time zone NOT NULL DEFAULT clock_timestamp() (here: ",
        ),
        (
            "ALTER TABLE outbox.message ALTER created_at SET DEFAULT now()",
            "ALTER TABLE outbox.message ALTER created_at SET DEFAULT clock_timestamp()",
            "DEFAULT now())",
        ),
        (
            "ALTER TABLE outbox.message DROP CONSTRAINT message_has_one_payload",
            "ALTER TABLE outbox.message ADD CONSTRAINT message_has_one_payload CHECK (num_nonnulls(payload, binary_payload) = 1)",
            "constraint outbox.message.message_has_one_payload\n",
        ),
        (
            "DROP INDEX outbox.waiting_due",
            "CREATE INDEX waiting_due ON outbox.waiting (lane, due_at) WHERE due_at IS NOT NULL",
            "index outbox.waiting_due\n",
        ),
        (
            "ALTER TABLE outbox.message DISABLE TRIGGER wake",
            "ALTER TABLE outbox.message ENABLE TRIGGER wake",
            "trigger wake on outbox.message: ",
        ),
        (
            "ALTER FUNCTION outbox.measure() SECURITY INVOKER",
            "ALTER FUNCTION outbox.measure() SECURITY DEFINER",
            "function outbox.measure(): differs here",
        ),
        (
            "ALTER FUNCTION outbox.wake() RENAME TO awake",
            "ALTER FUNCTION outbox.awake() RENAME TO wake",
            "function outbox.wake()\n",
        ),
        (
            "ALTER TABLE outbox.dead SET UNLOGGED",
            "ALTER TABLE outbox.dead SET LOGGED",
            "table outbox.dead: logged (here: not logged",
        ),
        (
            "ALTER SEQUENCE outbox.message_id_seq CACHE 50",
            "ALTER SEQUENCE outbox.message_id_seq CACHE 1",
            "sequence outbox.message_id_seq: CACHE 1, NO CYCLE, INCREMENT BY 1 (here: CACHE 50",
        ),
        (
            "DROP VIEW outbox.status",
            "CREATE VIEW outbox.status AS SELECT * FROM outbox.measure()",
            "view outbox.status\n",
        ),
        (
            "ALTER TABLE outbox.relay RENAME seen_at TO seen",
            "ALTER TABLE outbox.relay RENAME seen TO seen_at",
            "column outbox.relay.seen_at\n",
        ),
    ] {
        for forget in ["SELECT", "UPDATE outbox.migration SET checksum = NULL"] {
            place.owner(&format!("{edit}; {forget}"));
            let before = place.recorded();
            for more in [&[][..], &["--dry-run"]] {
                let refused = place.migrate(more).await;
                refused.ends(78, &[named, "outboxd sql"]);
            }
            assert_eq!(place.recorded(), before, "{edit}");
            place.owner(back);
            let mended = place.migrate(&[]).await;
            mended.ends(0, &[]);
            assert_eq!(place.recorded(), "1|t");
        }
    }
    // Additions of a team are ignored.
    place.owner("CREATE INDEX of_ours ON outbox.message (created_at); CREATE TABLE outbox.ours (); ALTER TABLE outbox.message SET (fillfactor = 90)");
    assert_eq!(place.migrate(&[]).await.code, 0);
}

/// Somebody emptied the table that records the migrations. Nothing else is missing, so migrate records them again.
#[tokio::test]
async fn a_whole_schema_without_a_record_is_recorded_again() {
    let world = world().await;
    let place = Place::migrated(&world, "emptied").await;
    place.owner("TRUNCATE outbox.migration");
    let dry = place.migrate(&["--dry-run"]).await;
    assert_eq!(
        (
            dry.code,
            dry.stdout.starts_with("would record 0001_outbox.sql")
        ),
        (0, true),
        "{}{}",
        dry.stdout,
        dry.stderr
    );
    assert_eq!(place.recorded(), "");
    let run = place.migrate(&[]).await;
    assert_eq!(
        (run.code, run.stdout.starts_with("recorded 0001_outbox.sql")),
        (0, true),
        "{}{}",
        run.stdout,
        run.stderr
    );
    assert_eq!(place.recorded(), "1|t");
    assert_eq!(
        place.migrate(&[]).await.stdout,
        "outbox schema version 1: nothing to do\n"
    );
    // If the schema was also edited, migrate names the edit and records nothing.
    place.owner("TRUNCATE outbox.migration; DROP VIEW outbox.debezium");
    let refused = place.migrate(&[]).await;
    refused.ends(78, &["lacks\n  view outbox.debezium\n"]);
    assert_eq!(place.recorded(), "");
}

/// A DBA made part of the schema, or another tool's run was cut off. `migrate` and `check` do not send a person from one to the
/// other and back.
#[tokio::test]
async fn a_schema_that_is_half_there_is_named_with_the_way_out() {
    let world = world().await;
    world.declare_exchange("events").await;
    for (name, half) in [
        (
            "one",
            "CREATE SCHEMA outbox; CREATE TABLE outbox.message (id bigint PRIMARY KEY, payload jsonb)",
        ),
        (
            "two",
            "CREATE SCHEMA outbox; CREATE TABLE outbox.migration (version integer PRIMARY KEY, name text NOT NULL, checksum text, \
             applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
        ),
    ] {
        let place = Place::new(&world, &format!("half_{name}")).await;
        place.owner(half);
        let refused = place.migrate(&[]).await;
        for said in [
            "is incomplete",
            "table outbox.lane\n",
            "outboxd sql",
            "DROP SCHEMA outbox CASCADE",
        ] {
            refused.ends(78, &[said]);
        }
        let check = world
            .outboxd(&["check", "--connect"], &[("DATABASE_URL", &place.url)])
            .await;
        check.ends(78, &["run `outboxd migrate`"]);
        // Both remedies that the error names work.
        if name == "one" {
            place.owner("DROP SCHEMA outbox CASCADE");
        } else {
            let sql = world.outboxd(&["sql"], &[]).await.stdout;
            let rest = sql.replace(
                "CREATE TABLE outbox.migration",
                "CREATE TABLE IF NOT EXISTS outbox.migration",
            );
            place.owner(&rest);
        }
        let run = place.migrate(&[]).await;
        run.ends(0, &[]);
        assert_eq!(place.recorded(), "1|t");
    }
}

#[tokio::test]
async fn a_role_that_may_not_migrate_is_told_who_may_or_what_it_needs() {
    let world = world().await;
    let place = Place::new(&world, "rights").await;
    let postgres = world.postgres();
    let role = format!("weak_{}", world.database);
    postgres
        .execute(
            "postgres",
            &format!("CREATE ROLE {role} LOGIN PASSWORD 'weak'"),
        )
        .await
        .unwrap();
    let url = postgres.url_for(&role, "weak", &place.database);
    // The role has no CREATE on the database.
    let refused = place.migrate_as(&url, &[]).await;
    refused.ends(78, &[]);
    let grant = format!("GRANT CREATE ON DATABASE {} TO {role}", place.database);
    assert!(
        refused.stderr.contains(&grant) && !refused.stderr.contains("outbox_relay"),
        "{}",
        refused.stderr
    );
    // A schema that a DBA made for the role is enough.
    postgres
        .execute(
            &place.database,
            &format!("CREATE SCHEMA outbox AUTHORIZATION {role}"),
        )
        .await
        .unwrap();
    let run = place.migrate_as(&url, &[]).await;
    run.ends(0, &[]);
    // The schema belongs to another role.
    let refused = place.migrate(&[]).await;
    refused.ends(78, &[&format!("belongs to {role}")]);
    let inbox = place.migrate_as(&url, &["--schema", "inbox"]).await;
    inbox.ends(78, &["CREATE SCHEMA inbox AUTHORIZATION"]);
    // Refuse another role's empty schema, because its owner could drop our objects in it.
    let place = Place::new(&world, "foreign").await;
    postgres
        .execute(
            &place.database,
            &format!(
                "CREATE SCHEMA outbox AUTHORIZATION {role}; GRANT ALL ON SCHEMA outbox TO owner"
            ),
        )
        .await
        .unwrap();
    let refused = place.migrate(&[]).await;
    refused.ends(78, &[&format!("belongs to {role}")]);
}

#[tokio::test]
async fn a_database_that_cannot_be_written_to_is_said_to_be_so_and_why() {
    let world = world().await;
    let place = Place::new(&world, "frozen").await;
    let freeze = format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        place.database
    );
    world.postgres().execute("postgres", &freeze).await.unwrap();
    let refused = place.migrate(&[]).await;
    refused.ends(78, &["default_transaction_read_only"]);
    assert!(
        !refused.stderr.contains("target_session_attrs"),
        "{}",
        refused.stderr
    );
}

/// Whatever tool runs it.
#[tokio::test]
async fn the_file_leaves_the_caller_s_search_path_as_it_was() {
    let world = world().await;
    let sql = world.outboxd(&["sql"], &[]).await.stdout;
    for (n, (before, after)) in [
        ("", ""),
        ("BEGIN;", "COMMIT;"),
        ("BEGIN; SET LOCAL search_path = mine, public;", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let place = Place::new(&world, &format!("path_{n}")).await;
        let expected = if n == 2 {
            "mine, public"
        } else {
            "\"$user\", public"
        };
        let said = place.owner(&format!("{before} {sql} SHOW search_path; {after}"));
        assert_eq!(said.trim().lines().last().unwrap(), expected, "{before}");
    }
}
