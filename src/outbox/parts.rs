//! Compares the parts of a schema in this database with the parts that its migrations make. Both lists use the same words,
//! one line for each part.
//!
//! The lists in `parts/` come from a database on which the migrations ran; a test compares them, and can write them again.
//! Parts that a team added (an index, a table, a column with a default) are ignored.

use tokio_postgres::types::Type;

use super::{
    OutboxError,
    row::get,
    schema::Schema,
    session::{Query, Session},
};

const PARTS: Query = Query {
    action: "look at the schema",
    sql: include_str!("sql/parts.sql"),
    types: &[Type::TEXT],
};

/// A table, a column or a function: its kind, its name and its definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub kind: String,
    pub name: String,
    pub detail: String,
}

/// A part that differs from what the migrations make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub expected: Part,
    /// The definition in this database; `None` if the part is missing.
    pub here: Option<String>,
}

impl Difference {
    /// Whether a relay would fail with this difference, or lose a message's position. Other parts serve producers and speed.
    pub fn stops_a_relay(&self) -> bool {
        match self.expected.kind.as_str() {
            "table" | "column" | "sequence" | "order" | "key" => {
                !self.expected.name.starts_with("outbox.debezium.")
            }
            "view" => self.expected.name == "outbox.status" && self.here.is_none(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Part { kind, name, detail } = &self.expected;
        match &self.here {
            None => write!(f, "{kind} {name}"),
            // A hash means nothing to a person.
            Some(_) if kind == "function" => write!(f, "{kind} {name}: differs here"),
            Some(here) => write!(f, "{kind} {name}: {detail} (here: {here})"),
        }
    }
}

/// The parts of the schema in this database.
pub async fn here(session: &Session, schema: &str) -> Result<Vec<Part>, OutboxError> {
    // PostgreSQL leaves out the schema of names that the search path finds.
    session.begin().await?;
    let rows = async {
        let path = "SET LOCAL search_path = pg_catalog, pg_temp";
        session.batch("look at the schema", path).await?;
        session.query(&PARTS, &[&schema]).await
    }
    .await;
    session.rollback().await?;
    rows?.iter().map(part).collect()
}

/// Like [`here`], for a session in a transaction; the session's settings stay.
pub async fn here_in_transaction(
    session: &Session,
    schema: &str,
) -> Result<Vec<Part>, OutboxError> {
    let action = "look at the schema";
    let path = "SAVEPOINT parts; SET LOCAL search_path = pg_catalog, pg_temp";
    session.batch(action, path).await?;
    let rows = session.query(&PARTS, &[&schema]).await?;
    session
        .batch(
            action,
            "ROLLBACK TO SAVEPOINT parts; RELEASE SAVEPOINT parts",
        )
        .await?;
    rows.iter().map(part).collect()
}

fn part(row: &tokio_postgres::Row) -> Result<Part, OutboxError> {
    Ok(Part {
        kind: get(row, "kind")?,
        name: get(row, "name")?,
        detail: get(row, "detail")?,
    })
}

/// The parts that the migrations make.
pub fn expected(schema: &Schema) -> Vec<Part> {
    let mut parts = Vec::new();
    for line in schema.parts.lines() {
        let mut words = line.splitn(3, '\t').map(str::to_owned);
        if let (Some(kind), Some(name), Some(detail)) = (words.next(), words.next(), words.next()) {
            parts.push(Part { kind, name, detail });
        }
    }
    parts
}

/// The lines of a list in `parts/`.
pub fn written(parts: &[Part]) -> String {
    parts
        .iter()
        .map(|Part { kind, name, detail }| format!("{kind}\t{name}\t{detail}\n"))
        .collect()
}

/// The parts that are missing or differ. If a table is missing, its own parts are not listed.
pub fn differences(expected: &[Part], here: &[Part]) -> Vec<Difference> {
    let find = |part: &Part| {
        here.iter()
            .find(|other| other.kind == part.kind && other.name == part.name)
    };
    let missing_tables: Vec<&str> = expected
        .iter()
        .filter(|part| matches!(part.kind.as_str(), "table" | "view") && find(part).is_none())
        .map(|part| part.name.as_str())
        .collect();
    let belongs = |part: &Part, table: &str| {
        part.name
            .strip_prefix(table)
            .is_some_and(|rest| rest.starts_with('.'))
            || part.name.ends_with(&format!(" on {table}"))
            || part.detail.contains(&format!(" ON {table} "))
    };
    expected
        .iter()
        .filter(|part| !missing_tables.iter().any(|table| belongs(part, table)))
        .filter_map(|part| {
            let found = find(part);
            let differs = found.is_none_or(|found| found.detail != part.detail);
            differs.then(|| Difference {
                expected: part.clone(),
                here: found.map(|found| found.detail.clone()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::schema::{INBOX, OUTBOX};

    fn without(parts: &[Part], gone: impl Fn(&Part) -> bool) -> Vec<Part> {
        parts.iter().filter(|part| !gone(part)).cloned().collect()
    }

    #[test]
    fn a_schema_is_no_different_from_itself_and_what_was_added_is_passed_over() {
        for schema in [&OUTBOX, &INBOX] {
            let expected = expected(schema);
            assert!(expected.len() > 50, "{}", schema.name);
            assert_eq!(written(&expected), schema.parts);
            let mut here = expected.clone();
            here.push(Part {
                kind: "index".to_owned(),
                name: format!("{}.of_our_own", schema.name),
                detail: "CREATE INDEX".to_owned(),
            });
            assert_eq!(differences(&expected, &here), []);
        }
    }

    #[test]
    fn a_missing_table_is_named_once_and_each_other_difference_by_itself() {
        let expected = expected(&OUTBOX);
        let here = without(&expected, |part| {
            part.name.starts_with("outbox.waiting") || part.name == "outbox.message.sent_at"
        });
        let mut here = without(&here, |part| part.detail.contains(" ON outbox.waiting "));
        for part in &mut here {
            if part.name == "outbox.message.id" {
                part.detail = "bigint".to_owned();
            }
        }
        let told: Vec<String> = differences(&expected, &here)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "column outbox.message.id: bigint NOT NULL GENERATED ALWAYS AS IDENTITY (here: bigint)",
                "column outbox.message.sent_at",
                "table outbox.waiting",
            ]
        );
    }

    #[test]
    fn what_only_producers_need_does_not_stop_a_relay() {
        let stops = |kind: &str, name: &str| {
            let expected = expected(&OUTBOX);
            let here = without(&expected, |part| part.kind == kind && part.name == name);
            let found = differences(&expected, &here);
            assert!(!found.is_empty(), "{kind} {name}");
            found.iter().any(Difference::stops_a_relay)
        };
        assert!(stops("table", "outbox.dead"));
        assert!(stops("column", "outbox.message.lane"));
        assert!(stops("key", "outbox.waiting.waiting_pkey"));
        assert!(stops("view", "outbox.status"));
        assert!(!stops("trigger", "wake on outbox.message"));
        assert!(!stops("view", "outbox.debezium"));
        assert!(!stops(
            "constraint",
            "outbox.message.message_has_one_payload"
        ));
    }
}
