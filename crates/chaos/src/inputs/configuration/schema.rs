//! A schema that lacks something, or a privilege on it. Bad input 14.

use std::collections::BTreeMap;

use super::judge::{SECRET, refused};
use crate::{
    arena::Setup,
    row::{Outcome, Result, Row, expect, rows},
};

pub const CASES: &[Row] = rows! { setup;
    14, "table, column or privilege missing: said at start with the GRANT or the command that cures it" => schema_or_grant(setup);
};

async fn schema_or_grant(setup: &Setup) -> Result<Outcome> {
    const NAME: &str = "refused";
    let stage = setup.stage.get(setup).await?;
    setup.plan().another(&stage.postgres, NAME).await?;
    stage
        .postgres
        .create_database("empty_one", "postgres")
        .await?;
    let client = stage.postgres.connect(NAME).await?;
    client
        .batch_execute("CREATE ROLE starter LOGIN PASSWORD 'hunter2' IN ROLE outbox_relay")
        .await?;
    let start = async |database: &str, args: &[&str]| {
        let url = stage.postgres.url_for("starter", SECRET, database);
        let env = stage.env.iter().cloned();
        let env = env.chain([("DATABASE_URL".to_owned(), url)]);
        setup.outboxd(args, env).await
    };
    let mut outcome = Outcome::default();
    refused(
        &start("empty_one", &["run"]).await?,
        &["no outbox schema", "run `outboxd migrate`"],
    )?;

    // Columns of tables; a view's come and go with it.
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns \
                   WHERE table_schema = 'outbox' AND table_name NOT IN ('debezium', 'status') \
                     AND (table_name, column_name) <> ('migration', 'version') ORDER BY 1, 2";
    let grants = "SELECT table_name::text, privilege_type::text FROM information_schema.role_table_grants \
                  WHERE grantee = 'outbox_relay' AND table_schema = 'outbox' ORDER BY 1, 2";
    let columns = by_table(&client.query(columns, &[]).await?);
    let grants = by_table(&client.query(grants, &[]).await?);
    let mut broken = Vec::new();
    for (table, columns) in &columns {
        let rename = |from: &dyn Fn(&str) -> String, to: &dyn Fn(&str) -> String| -> String {
            let each = columns.iter().map(|column| (from(column), to(column)));
            each.map(|(from, to)| format!("ALTER TABLE outbox.{table} RENAME {from} TO {to};"))
                .collect()
        };
        let (there, gone) = (
            |name: &str| name.to_owned(),
            |name: &str| format!("{name}_gone"),
        );
        let named = columns
            .iter()
            .map(|c| format!("column outbox.{table}.{c}\n"));
        broken.push(Broken {
            breaks: rename(&there, &gone),
            mends: rename(&gone, &there),
            says: named.chain(["outboxd sql".to_owned()]).collect(),
        });
    }
    for table in columns.keys().map(String::as_str).chain(["status"]) {
        let says = match table {
            // It says which schema this is: without it there may be none.
            "migration" => vec!["run `outboxd migrate`".to_owned()],
            "status" => vec!["view outbox.status\n".to_owned(), "outboxd sql".to_owned()],
            _ => vec![format!("table outbox.{table}\n"), "outboxd sql".to_owned()],
        };
        broken.push(Broken {
            breaks: format!("ALTER TABLE outbox.{table} RENAME TO gone"),
            mends: format!("ALTER TABLE outbox.gone RENAME TO {table}"),
            says,
        });
    }
    // What would draw a position later than one above it.
    for (breaks, mends) in [
        ("CACHE 20", "CACHE 1"),
        ("CYCLE", "NO CYCLE"),
        ("INCREMENT BY -1", "INCREMENT BY 1"),
    ] {
        let alter = |how: &str| format!("ALTER SEQUENCE outbox.message_id_seq {how}");
        broken.push(Broken {
            breaks: alter(breaks),
            mends: alter(mends),
            says: vec!["sequence outbox.message_id_seq: CACHE 1".to_owned()],
        });
    }
    let on_tables = grants.iter().map(|(table, privileges)| {
        let on = |privilege: &String| format!("{privilege} ON outbox.{table}");
        ("outbox_relay", privileges.iter().map(on).collect())
    });
    let others = [
        ("outbox_relay", "USAGE ON SCHEMA outbox"),
        ("outbox_relay", "UPDATE (sent_at) ON outbox.message"),
        ("outbox_relay", "SELECT ON SEQUENCE outbox.message_id_seq"),
        // What everybody may, nobody can be refused.
        (
            "outbox_relay, PUBLIC",
            "EXECUTE ON FUNCTION outbox.measure()",
        ),
    ];
    let singly = others.map(|(from, what)| (from, vec![what.to_owned()]));
    let others = others.len();
    for (from, privileges) in on_tables.chain(singly) {
        let each = |statement: &dyn Fn(&String) -> String| -> Vec<String> {
            privileges.iter().map(statement).collect()
        };
        broken.push(Broken {
            breaks: each(&|what| format!("REVOKE {what} FROM {from}")).join("; "),
            mends: each(&|what| format!("GRANT {what} TO {from}")).join("; "),
            says: each(&|what| format!("GRANT {what} TO starter")),
        });
    }
    for Broken {
        breaks,
        mends,
        says,
    } in &broken
    {
        client.batch_execute(breaks).await?;
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        let ran = start(NAME, &["run"]).await;
        let refused = ran.and_then(|ran| refused(&ran, &says));
        refused.map_err(|error| format!("{breaks}: {error}"))?;
        client.batch_execute(mends).await?;
    }
    let whole = start(NAME, &["check", "--connect"]).await?;
    expect(whole.code == 0, || {
        format!("with everything back: {}", whole.said())
    })?;
    let count = |of: &BTreeMap<String, Vec<String>>| of.values().map(Vec::len).sum::<usize>();
    outcome.notes.push(format!(
        "no schema; {} columns of {} tables, the tables, {} privileges: each that is missing is named, with exit code 78",
        count(&columns),
        columns.len(),
        count(&grants) + others
    ));
    Ok(outcome)
}

/// One way to spoil a schema, and what is said of it.
struct Broken {
    breaks: String,
    mends: String,
    says: Vec<String>,
}

/// The second column of the rows, by the first.
fn by_table(rows: &[tokio_postgres::Row]) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        tables.entry(row.get(0)).or_default().push(row.get(1));
    }
    tables
}
