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

/// What a difference does. In the order of their weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Producers get an error, or something is slower. No event is lost, and none is sent otherwise than it was written.
    Lesser,
    /// The relay works, but an event can be lost, go out in another order or in another version, or the lag is wrong.
    Unsafe,
    /// The relay fails with it, or loses a message's position.
    Stops,
}

/// Triggers and functions without which events are lost, stay hidden, or go out as they were before a correction. Without
/// `kept`, a view that somebody made again over `outbox.message` alone lets a Debezium producer's DELETE delete the event (the
/// view of the migration refuses it). `truncated`, `moved` and `corrected` follow changes by hand.
const GUARDS: [&str; 4] = ["kept", "truncated", "moved", "corrected"];
/// Functions that statements of the relay call, and the view that it reads. The order and the lag rest on their results.
const CALLED: [&str; 3] = ["key_hash", "measure", "status"];
/// Tables whose checks could refuse what the relay writes.
const CHECKED: [&str; 3] = ["lane", "waiting", "dead"];

impl Difference {
    pub fn weight(&self) -> Weight {
        let Part { kind, name, .. } = &self.expected;
        let own = name.split(['.', '(', ' ']).find(|word| *word != "outbox");
        let is = |names: &[&str]| own.is_some_and(|own| names.contains(&own));
        match kind.as_str() {
            "column" if name.starts_with("outbox.debezium.") => Weight::Lesser,
            // The relay gives up a row without such a value, and no other.
            "column" if name.starts_with("outbox.message.") && self.is_only_nullable() => {
                Weight::Unsafe
            }
            "table" if self.is_unlogged() || self.children().is_some() => Weight::Unsafe,
            "table" | "column" | "sequence" | "order" | "key" => Weight::Stops,
            "view" | "function" if is(&CALLED) => {
                if self.here.is_none() {
                    Weight::Stops
                } else {
                    Weight::Unsafe
                }
            }
            "trigger" if is(&GUARDS) => Weight::Unsafe,
            "function" if is(&GUARDS) => Weight::Unsafe,
            "constraint" if self.here.is_some() && is(&CHECKED) => Weight::Unsafe,
            // The marks follow the sequence of that name: they stand still, and retention with them.
            "identity" if name == "outbox.message.id" => Weight::Unsafe,
            // A rule rewrites what the relay or a producer writes.
            "rule" => Weight::Unsafe,
            _ => Weight::Lesser,
        }
    }
}

impl Difference {
    /// The table works, and the server empties it when it crashes.
    fn is_unlogged(&self) -> bool {
        self.expected.kind == "table" && self.here.as_deref() == Some("not logged")
    }

    /// Tables that inherit from this one, and nothing else is different.
    fn children(&self) -> Option<&str> {
        let rest = self.here.as_ref()?.strip_prefix(&self.expected.detail)?;
        rest.strip_prefix(" inherited by ")
    }

    /// Somebody dropped the NOT NULL of a column, and nothing else.
    fn is_only_nullable(&self) -> bool {
        self.here.as_ref() == Some(&self.expected.detail.replacen(" NOT NULL", "", 1))
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Part { kind, name, detail } = &self.expected;
        match &self.here {
            Some(_) if kind == "rule" && detail == NO_RULE => match name.split_once(" on ") {
                Some((rule, table)) => {
                    write!(f, "{kind} {name}: drop it (DROP RULE {rule} ON {table})")
                }
                None => write!(f, "{kind} {name}: drop it"),
            },
            None => write!(f, "{kind} {name}"),
            Some(here) if kind == "identity" => write!(
                f,
                "{kind} {name}: draws from {here}, and not from {detail}: give {here} that name (ALTER SEQUENCE … RENAME TO), \
                 after the other sequence has another"
            ),
            Some(here) if kind == "sequence" => {
                // Only what differs: the increment of two masters is a team's own.
                let here_are: Vec<&str> = here.split(", ").collect();
                let clauses = detail
                    .split(", ")
                    .filter(|clause| !here_are.contains(clause));
                let clauses = clauses.collect::<Vec<&str>>().join(" ");
                write!(
                    f,
                    "{kind} {name}: {detail} (here: {here}; ALTER SEQUENCE {name} {clauses})"
                )
            }
            // A hash means nothing to a person.
            Some(_) if kind == "function" => write!(f, "{kind} {name}: differs here"),
            Some(here) if self.is_unlogged() => write!(
                f,
                "{kind} {name}: {detail} (here: {here}; a crash of PostgreSQL empties it: ALTER TABLE {name} SET LOGGED)"
            ),
            Some(here) => match self.children() {
                Some(children) => write!(
                    f,
                    "{kind} {name}: {children} inherit from it, and the relay takes their rows for its own: ALTER TABLE … NO \
                     INHERIT {name}"
                ),
                None => write!(f, "{kind} {name}: {detail} (here: {here})"),
            },
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

/// How `parts.sql` ends the detail of a trigger that does not fire.
const DISABLED: &str = ", disabled";

/// The detail of a rule that the migrations do not make.
const NO_RULE: &str = "none";

/// Rules that somebody added to tables and views of the schema. They rewrite statements, those of the relay included: a mark
/// becomes nothing, for example. Other additions are a team's own matter.
pub fn added_rules(expected: &[Part], here: &[Part]) -> Vec<Difference> {
    let known = |part: &Part| {
        expected
            .iter()
            .any(|other| other.kind == part.kind && other.name == part.name)
    };
    let ours = |part: &Part| {
        part.name.split_once(" on ").is_some_and(|(_, table)| {
            expected
                .iter()
                .any(|other| matches!(other.kind.as_str(), "table" | "view") && other.name == table)
        })
    };
    here.iter()
        .filter(|part| part.kind == "rule" && !known(part) && ours(part))
        .map(|part| Difference {
            expected: Part {
                detail: NO_RULE.to_owned(),
                ..part.clone()
            },
            here: Some(part.detail.clone()),
        })
        .collect()
}

/// Triggers that somebody added to the messages. A team may have its reasons; but with `sent_at` set, for example, a message counts
/// as sent, and nothing else tells of it.
pub fn added_triggers(expected: &[Part], here: &[Part]) -> Vec<String> {
    let on_messages = |part: &Part| {
        let name = part.name.strip_suffix(" on outbox.message")?;
        let added = part.kind == "trigger" && !part.detail.ends_with(DISABLED);
        (added && !expected.iter().any(|other| other.name == part.name)).then(|| name.to_owned())
    };
    here.iter().filter_map(on_messages).collect()
}

/// At least one of the parts is here, perhaps with another definition.
pub fn has_any_of(expected: &[Part], here: &[Part]) -> bool {
    here.iter().any(|part| {
        expected
            .iter()
            .any(|other| other.kind == part.kind && other.name == part.name)
    })
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
    fn a_changed_sequence_and_a_child_are_named_with_their_statements() {
        let different = |kind: &str, detail: &str, here: &str| Difference {
            expected: Part {
                kind: kind.to_owned(),
                name: "outbox.x".to_owned(),
                detail: detail.to_owned(),
            },
            here: Some(here.to_owned()),
        };
        let expected = "CACHE 1, NO CYCLE, INCREMENT BY 1";
        let sequence = different("sequence", expected, "CACHE 50, NO CYCLE, INCREMENT BY 1");
        let text = sequence.to_string();
        assert!(
            text.ends_with("; ALTER SEQUENCE outbox.x CACHE 1)"),
            "{text}"
        );
        let table = different("table", "logged", "logged inherited by a, b");
        assert_eq!(table.weight(), Weight::Unsafe);
        let text = table.to_string();
        assert!(text.contains("a, b inherit from it") && text.contains("NO INHERIT outbox.x"));
        let other = different("table", "logged", "not logged inherited by a");
        assert_eq!(other.weight(), Weight::Stops);
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
            if part.kind == "column" && part.name == "outbox.message.id" {
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
    fn each_part_weighs_as_much_as_its_absence_harms() {
        let weight = |kind: &str, name: &str| {
            let expected = expected(&OUTBOX);
            let here = without(&expected, |part| {
                part.kind == kind && part.name.starts_with(name)
            });
            let found = differences(&expected, &here);
            found
                .iter()
                .map(Difference::weight)
                .max()
                .unwrap_or_else(|| panic!("{kind} {name}"))
        };
        for (kind, name) in [
            ("table", "outbox.dead"),
            ("column", "outbox.message.lane"),
            ("key", "outbox.waiting.waiting_pkey"),
            ("view", "outbox.status"),
            ("function", "outbox.key_hash("),
            ("function", "outbox.measure("),
        ] {
            assert_eq!(weight(kind, name), Weight::Stops, "{kind} {name}");
        }
        for (kind, name) in [
            ("trigger", "kept on outbox.debezium"),
            ("trigger", "corrected on outbox.message"),
            ("trigger", "moved on outbox.message"),
            ("trigger", "truncated on outbox.message"),
            ("function", "outbox.kept("),
            ("identity", "outbox.message.id"),
        ] {
            assert_eq!(weight(kind, name), Weight::Unsafe, "{kind} {name}");
        }
        for (kind, name) in [
            ("trigger", "wake on outbox.message"),
            ("function", "outbox.wake("),
            ("function", "outbox.enqueue("),
            ("view", "outbox.debezium"),
            ("index", "outbox.waiting_key"),
            ("constraint", "outbox.message.message_has_one_payload"),
        ] {
            assert_eq!(weight(kind, name), Weight::Lesser, "{kind} {name}");
        }
    }

    #[test]
    fn what_the_relay_works_with_and_an_event_can_be_lost_by_does_not_stop_it() {
        let expected = expected(&OUTBOX);
        let mut here = expected.clone();
        for part in &mut here {
            match part.name.as_str() {
                "outbox.message" => part.detail = "not logged".to_owned(),
                "outbox.message.event_type" => part.detail = "text".to_owned(),
                _ => {}
            }
        }
        let found = differences(&expected, &here);
        assert!(found.iter().all(|d| d.weight() == Weight::Unsafe));
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "column outbox.message.event_type: text NOT NULL (here: text)",
                "table outbox.message: logged (here: not logged; a crash of PostgreSQL empties it: ALTER TABLE outbox.message \
                 SET LOGGED)",
            ]
        );
    }

    #[test]
    fn a_rule_on_a_table_of_ours_is_named_with_its_cure_and_one_elsewhere_is_not() {
        let expected = expected(&OUTBOX);
        let mut here = expected.clone();
        for name in ["silent on outbox.message", "theirs on outbox.of_our_own"] {
            here.push(Part {
                kind: "rule".to_owned(),
                name: name.to_owned(),
                detail: "present".to_owned(),
            });
        }
        let found = added_rules(&expected, &here);
        let [rule] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(rule.weight(), Weight::Unsafe);
        assert_eq!(
            rule.to_string(),
            "rule silent on outbox.message: drop it (DROP RULE silent ON outbox.message)"
        );
    }

    #[test]
    fn a_trigger_on_the_messages_is_named_and_one_elsewhere_or_disabled_is_not() {
        let expected = expected(&OUTBOX);
        let mut here = expected.clone();
        for (name, detail) in [
            ("stamps on outbox.message", "CREATE TRIGGER"),
            ("sleeps on outbox.message", "CREATE TRIGGER, disabled"),
            ("pages on outbox.dead", "CREATE TRIGGER"),
        ] {
            here.push(Part {
                kind: "trigger".to_owned(),
                name: name.to_owned(),
                detail: detail.to_owned(),
            });
        }
        assert_eq!(added_triggers(&expected, &here), ["stamps"]);
    }
}
