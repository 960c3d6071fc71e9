//! `outboxd migrate` over what people leave, beside a relay at work. Row 74.

use std::time::Duration;

use test_support::{Ran, eventually};

use crate::{
    arena::{OWNER, SOON, Setup},
    row::{Outcome, Result, Row, expect, rows},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = rows! { setup;
    74, "`outboxd migrate` over schemas that are half there, edited, older, newer, made by a DBA" => migrated(setup);
};

/// A database that belongs to `owner`, without a schema.
struct Place<'s, 'a> {
    scene: &'s Scene<'a>,
    database: &'static str,
}

impl<'s, 'a> Place<'s, 'a> {
    async fn new(scene: &'s Scene<'a>, database: &'static str) -> Result<Self> {
        scene
            .arena
            .postgres
            .create_database(database, OWNER)
            .await?;
        Ok(Self { scene, database })
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        let run = self
            .scene
            .arena
            .postgres
            .psql(OWNER, OWNER, self.database, sql);
        run.map(drop)
    }

    async fn migrate(&self) -> Result<Ran> {
        let url = self
            .scene
            .arena
            .postgres
            .url_for(OWNER, OWNER, self.database);
        let env = [("DATABASE_URL".to_owned(), url)];
        self.scene.arena.setup.outboxd(&["migrate"], env).await
    }

    async fn refuses(&self, says: &[&str]) -> Result<()> {
        self.refuses_with(78, says).await
    }

    /// Ends with this code, says all of this, and changes nothing.
    async fn refuses_with(&self, code: i32, says: &[&str]) -> Result<()> {
        let before = self.state().await?;
        let ran = self.migrate().await?;
        let after = self.state().await?;
        expect(before == after, || {
            format!(
                "{}: refused, and changed: {before}, then {after}",
                self.database
            )
        })?;
        let all = says.iter().all(|text| ran.stderr.contains(text));
        expect(ran.code == code && all, || {
            format!(
                "{}: {} {}; {code} and {says:?} were expected",
                self.database,
                ran.code,
                ran.said()
            )
        })
    }

    /// What there is of the schema, and what is recorded of it.
    async fn state(&self) -> Result<String> {
        let client = self.scene.arena.postgres.connect(self.database).await?;
        let ask = async |sql: &str| -> Result<String> {
            Ok(client.query_one(sql, &[]).await?.get::<_, String>(0))
        };
        let relations = "SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                         WHERE n.nspname = 'outbox'";
        let relations = ask(relations).await?;
        let table = "SELECT (to_regclass('outbox.migration') IS NOT NULL)::text";
        let records = if ask(table).await? == "true" {
            let records = "SELECT coalesce(string_agg(concat_ws(' ', version, name, coalesce(checksum, 'unchecked')), ', '), 'nothing') \
                           FROM outbox.migration";
            ask(records).await?
        } else {
            "nothing".to_owned()
        };
        Ok(format!("{relations} relations, recorded: {records}"))
    }

    async fn takes(&self, says: &str) -> Result<()> {
        let ran = self.migrate().await?;
        expect(ran.code == 0 && ran.stdout.contains(says), || {
            format!("{}: {} {}", self.database, ran.code, ran.said())
        })
    }
}

/// What a person changed, how it is undone, what is said; and whether a short run has it, too.
const EDITS: [(&str, &str, &str, bool); 6] = [
    (
        "ALTER TABLE outbox.message ALTER sent_at TYPE timestamp",
        "ALTER TABLE outbox.message ALTER sent_at TYPE timestamptz",
        "column outbox.message.sent_at: timestamp with time zone (here: timestamp without time zone)",
        true,
    ),
    (
        "DROP INDEX outbox.waiting_due",
        "CREATE INDEX waiting_due ON outbox.waiting (lane, due_at) WHERE due_at IS NOT NULL",
        "index outbox.waiting_due",
        false,
    ),
    (
        "ALTER TABLE outbox.message DISABLE TRIGGER wake",
        "ALTER TABLE outbox.message ENABLE TRIGGER wake",
        "trigger wake on outbox.message",
        true,
    ),
    (
        "ALTER FUNCTION outbox.measure() SECURITY INVOKER",
        "ALTER FUNCTION outbox.measure() SECURITY DEFINER",
        "function outbox.measure(): differs here",
        false,
    ),
    (
        "ALTER TABLE outbox.dead SET UNLOGGED",
        "ALTER TABLE outbox.dead SET LOGGED",
        "table outbox.dead: logged (here: not logged)",
        false,
    ),
    (
        "ALTER TABLE outbox.relay RENAME seen_at TO seen",
        "ALTER TABLE outbox.relay RENAME seen TO seen_at",
        "column outbox.relay.seen_at",
        false,
    ),
];

async fn migrated(setup: &Setup) -> Result<Outcome> {
    let mut scene = Scene::start(setup).await?;
    scene.sql("CREATE ROLE dba LOGIN PASSWORD 'dba'").await?;

    let half = Place::new(&scene, "half").await?;
    half.sql(
        "CREATE SCHEMA outbox; CREATE TABLE outbox.message (id bigint PRIMARY KEY, payload jsonb)",
    )
    .await?;
    half.refuses(&[
        "is incomplete",
        "table outbox.lane",
        "DROP SCHEMA outbox CASCADE",
    ])
    .await?;
    half.sql("DROP SCHEMA outbox CASCADE").await?;
    half.takes("0001_outbox.sql").await?;

    let edited = half;
    for (edit, back, named, _) in EDITS.iter().filter(|(.., short)| *short || setup.long) {
        edited.sql(edit).await?;
        edited.refuses(&[named, "outboxd sql"]).await?;
        edited.sql(back).await?;
    }
    // Another tool ran it, and wrote no checksum: ours is written only where the schema is ours.
    edited
        .sql("UPDATE outbox.migration SET checksum = NULL")
        .await?;
    let (edit, back, named, _) = EDITS[0];
    edited.sql(edit).await?;
    edited.refuses(&[named, "outboxd sql"]).await?;
    edited.sql(back).await?;
    edited.takes("").await?;
    let ours = edited.state().await?;
    expect(!ours.contains("unchecked"), || {
        format!("no checksum was recorded: {ours}")
    })?;
    // The file was edited after it ran.
    edited
        .sql("UPDATE outbox.migration SET checksum = repeat('0', 64)")
        .await?;
    let contents = [
        "was applied here with other contents",
        "SET checksum = NULL WHERE version = 1",
    ];
    edited.refuses_with(1, &contents).await?;
    // Older than what says so: somebody emptied it, or restored an older one.
    edited.sql("TRUNCATE outbox.migration").await?;
    edited.takes("recorded 0001_outbox.sql").await?;
    expect(edited.state().await? == ours, || {
        "another checksum was recorded".to_owned()
    })?;
    edited
        .sql("INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')")
        .await?;
    edited
        .refuses(&["schema version 99", "run a newer outboxd"])
        .await?;

    let dba = Place::new(&scene, "dba").await?;
    let foreign = "CREATE SCHEMA outbox AUTHORIZATION dba";
    scene.arena.postgres.execute("dba", foreign).await?;
    dba.refuses(&["belongs to dba", "run this as dba"]).await?;
    scene
        .arena
        .postgres
        .execute("dba", "ALTER SCHEMA outbox OWNER TO owner")
        .await?;
    let read_only = async |state: &str| {
        let sql = format!("ALTER DATABASE dba SET default_transaction_read_only = {state}");
        scene.arena.postgres.execute("postgres", &sql).await
    };
    read_only("on").await?;
    dba.refuses(&[
        "transactions are read-only here",
        "RESET default_transaction_read_only",
    ])
    .await?;
    read_only("off").await?;
    dba.takes("0001_outbox.sql").await?;
    at_once(&scene).await?;
    at_work(&mut scene).await?;
    scene.end().await
}

/// Two at once take turns: one has all to do, and the other one nothing.
async fn at_once(scene: &Scene<'_>) -> Result<()> {
    let place = Place::new(scene, "at_once").await?;
    let holder = scene.arena.postgres.connect(place.database).await?;
    // What a migration takes before it looks.
    holder
        .batch_execute("BEGIN; SELECT pg_advisory_xact_lock(31351991786104690)")
        .await?;
    let wait = async {
        eventually("both to wait for their turn", SOON, async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                           WHERE d.datname = 'at_once' AND l.locktype = 'advisory' AND NOT l.granted";
            let waiting: i64 = holder.query_one(waiting, &[]).await.ok()?.get(0);
            (waiting == 2).then_some(())
        })
        .await;
        holder.batch_execute("COMMIT").await
    };
    let (one, two, released) = tokio::join!(place.migrate(), place.migrate(), wait);
    released?;
    let mut applied = 0;
    for ran in [one?, two?] {
        expect(ran.code == 0, || ran.said())?;
        applied += usize::from(ran.stdout.contains("0001_outbox.sql"));
    }
    expect(applied == 1, || {
        format!("{applied} of two migrations at once applied it")
    })?;
    place.takes("").await
}

/// Beside a relay at work: nothing to do, twice at once; and a version of tomorrow: who is there says so, who starts is refused.
async fn at_work(scene: &mut Scene<'_>) -> Result<()> {
    let url = scene.arena.owner_url();
    let setup = scene.arena.setup;
    let env = || [("DATABASE_URL".to_owned(), url.clone())];
    let (one, two) = tokio::join!(
        setup.outboxd(&["migrate"], env()),
        setup.outboxd(&["migrate"], env())
    );
    for ran in [one?, two?] {
        expect(ran.code == 0, || ran.said())?;
    }
    scene
        .sql("INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')")
        .await?;
    scene.says(503, "schema version 99").await?;
    scene.shows("outbox_schema_ok", |ok| ok == 0.0).await?;
    for command in [&["check", "--connect"][..], &["run"]] {
        let refused = scene.command(command).await?;
        let said = refused.code == 78 && refused.stderr.contains("schema version 99");
        expect(said, || {
            format!("{command:?}: {} {}", refused.code, refused.said())
        })?;
    }
    scene.flow.steady(100).await?;
    scene
        .sql("DELETE FROM outbox.migration WHERE version = 99")
        .await?;
    scene.ready().await?;
    scene.endured(Duration::from_secs(15), 0).await
}
