//! `outboxd migrate` over what people leave, beside a relay at work. Row 74.

use std::time::Duration;

use crate::{
    arena::{DATABASE, Setup},
    inputs::program::{Ran, outboxd},
    row::{Outcome, Result, Row, expect},
    rows::scene::Scene,
};

pub const ROWS: &[Row] = &[Row {
    number: 74,
    fault: "`outboxd migrate` over schemas that are half there, edited, older, newer, made by a DBA",
    long: false,
    run: |setup| Box::pin(migrated(setup)),
}];

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
            .create_database(database, "owner")
            .await?;
        Ok(Self { scene, database })
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        let run = self
            .scene
            .arena
            .postgres
            .psql("owner", "owner", self.database, sql);
        run.map(drop)
    }

    async fn migrate(&self) -> Result<Ran> {
        let url = self
            .scene
            .arena
            .postgres
            .url_for("owner", "owner", self.database);
        let env = [("DATABASE_URL".to_owned(), url)];
        outboxd(self.scene.arena.setup, &["migrate"], env).await
    }

    async fn refuses(&self, says: &[&str]) -> Result<()> {
        let ran = self.migrate().await?;
        let all = says.iter().all(|text| ran.stderr.contains(text));
        expect(ran.code == 78 && all, || {
            format!(
                "{}: {} {}; {says:?} was to be said",
                self.database,
                ran.code,
                ran.said()
            )
        })
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
    scene
        .sql("CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'owner'; CREATE ROLE dba LOGIN PASSWORD 'dba'")
        .await?;
    scene.fault();

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
    // Older than what says so: somebody emptied it, or restored an older one.
    edited.sql("TRUNCATE outbox.migration").await?;
    edited.takes("recorded 0001_outbox.sql").await?;
    edited
        .sql("INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')")
        .await?;
    edited.refuses(&["99"]).await?;

    let dba = Place::new(&scene, "dba").await?;
    let foreign = "CREATE SCHEMA outbox AUTHORIZATION dba";
    scene.arena.postgres.execute("dba", foreign).await?;
    dba.refuses(&["belongs to dba"]).await?;
    scene
        .arena
        .postgres
        .execute("dba", "ALTER SCHEMA outbox OWNER TO owner")
        .await?;
    dba.takes("0001_outbox.sql").await?;
    let frozen = "ALTER DATABASE dba SET default_transaction_read_only = on";
    scene.arena.postgres.execute("postgres", frozen).await?;
    scene
        .arena
        .postgres
        .execute(
            "postgres",
            "ALTER DATABASE half SET default_transaction_read_only = on",
        )
        .await?;

    // The one that is at work: nothing to do, twice at once.
    let url = scene.arena.postgres.url(DATABASE);
    let env = || [("DATABASE_URL".to_owned(), url.clone())];
    let (one, two) = tokio::join!(
        outboxd(setup, &["migrate"], env()),
        outboxd(setup, &["migrate"], env())
    );
    for ran in [one?, two?] {
        expect(ran.code == 0, || ran.said())?;
    }
    // A version of tomorrow: who is there says so, who starts is refused.
    scene
        .sql("INSERT INTO outbox.migration (version, name) VALUES (99, 'of_tomorrow')")
        .await?;
    let refused = scene.command(&["check", "--connect"]).await?;
    expect(refused.code == 78 && refused.stderr.contains("99"), || {
        refused.said()
    })?;
    scene.flow.steady(100).await?;
    scene
        .sql("DELETE FROM outbox.migration WHERE version = 99")
        .await?;
    scene.endured(Duration::from_secs(15), 0).await?;
    scene.end().await
}
