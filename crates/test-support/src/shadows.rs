//! Objects that an attacker can create in a schema of other roles' search_path.

use std::{collections::BTreeSet, path::Path};

use crate::Result;

/// All SQL of ours that a role runs: migrations, roles, the exporter's queries, the relay's statements.
fn our_sql(repository: &Path) -> Result<String> {
    let folders = [
        "migrations/outbox",
        "migrations/inbox",
        "deploy/postgres",
        "deploy/postgres_exporter",
        "src/outbox/sql",
    ];
    let mut all = String::new();
    for folder in folders {
        for file in std::fs::read_dir(repository.join(folder))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                for line in std::fs::read_to_string(path)?.lines() {
                    all.push_str(line.split("--").next().unwrap_or_default());
                    all.push('\n');
                }
            }
        }
    }
    Ok(all)
}

/// Plants, in a schema, a stand-in for every function, operator, type and table of PostgreSQL that our SQL names. A stand-in that
/// runs draws a number from `trap.sprung`.
pub fn shadows(repository: &Path, schema: &str) -> Result<String> {
    let sql = our_sql(repository)?;
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_symbol = |c: char| "+-*/<>=~!@#%^&|".contains(c);
    let names: BTreeSet<&str> = sql
        .split(|c| !is_word(c))
        .filter(|w| !w.is_empty())
        .collect();
    let words: BTreeSet<&str> = sql
        .match_indices('(')
        .filter_map(|(at, _)| sql[..at].rsplit(|c| !is_word(c)).next())
        .filter(|word| !word.is_empty())
        .collect();
    let mut symbols: BTreeSet<&str> = sql
        .split(|c| !is_symbol(c))
        .filter(|s| !s.is_empty())
        .collect();
    // The operators of IN and BETWEEN.
    symbols.extend(["=", "<=", ">="]);
    let list = |names: &BTreeSet<&str>| {
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        format!("{{{}}}", quoted.join(","))
    };
    let planted = include_str!("shadows.sql")
        .replace("{schema}", schema)
        .replace("{words}", &list(&words))
        .replace("{symbols}", &list(&symbols))
        .replace("{names}", &list(&names));
    Ok(planted)
}
