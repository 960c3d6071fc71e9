//! docs/reference/schema.md, generated from the comments of the migrations.

use programs::Result;

const HEAD: &str = "\
<!-- Written by `cargo xtask docs`. -->

# Schemas

From the comments in [migrations/](../../migrations/outbox/0001_outbox.sql); `\\d+` in psql shows the same.
[Security](../operating/security.md) says which role may do what.
";

/// One `COMMENT ON kind object IS 'text'`.
struct Comment {
    kind: String,
    object: String,
    text: String,
}

pub fn reference() -> Result<String> {
    let mut text = HEAD.to_owned();
    for schema in ["migrations/outbox", "migrations/inbox"] {
        let entries = std::fs::read_dir(schema)?.map(|entry| Ok(entry?.path()));
        let mut files = entries.collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "sql"));
        files.sort();
        for file in files {
            page(&std::fs::read_to_string(file)?, &mut text);
        }
    }
    Ok(text)
}

fn page(sql: &str, text: &mut String) {
    let comments = comments(sql);
    let of = |kind: &'static str| comments.iter().filter(move |c| c.kind == kind);
    for schema in of("SCHEMA") {
        *text += &format!("\n## {}\n\n{}\n", schema.object, schema.text);
    }
    for table in of("TABLE").chain(of("VIEW")) {
        *text += &format!("\n### {}\n\n{}\n", table.object, table.text);
        let columns = of("COLUMN").filter_map(|c| {
            let name = c.object.strip_prefix(&table.object)?.strip_prefix('.')?;
            let kind = kind_of(sql, &table.object, name);
            Some(format!("| `{name}` | {kind} | {} |\n", c.text))
        });
        let columns: String = columns.collect();
        if !columns.is_empty() {
            *text += &format!("\n| column | type | |\n|---|---|---|\n{columns}");
        }
    }
    let functions = of("FUNCTION").map(|f| format!("| `{}` | {} |\n", f.object, f.text));
    *text += &format!(
        "\n### Functions\n\n| function | |\n|---|---|\n{}",
        functions.collect::<String>()
    );
}

fn comments(sql: &str) -> Vec<Comment> {
    let parsed = sql.split("\nCOMMENT ON ").skip(1).filter_map(|rest| {
        let (head, rest) = rest.split_once(" IS")?;
        let (kind, object) = head.split_once(' ')?;
        let literal = rest.trim_start().strip_prefix('\'')?;
        let end = literal.find("';")?;
        Some(Comment {
            kind: kind.to_owned(),
            object: object.to_owned(),
            text: literal[..end].replace("''", "'").replace('|', "\\|"),
        })
    });
    parsed.collect()
}

/// Type of a table's column; empty for a view.
fn kind_of(sql: &str, table: &str, column: &str) -> String {
    let body = sql
        .split_once(&format!("CREATE TABLE {table} (\n"))
        .map(|(_, rest)| rest);
    let lines = body
        .into_iter()
        .flat_map(str::lines)
        .take_while(|line| !line.starts_with(')'));
    let mut words = lines
        .map(str::split_whitespace)
        .filter(|words| words.clone().next() == Some(column));
    let kind = words.next().and_then(|mut words| words.nth(1));
    kind.map_or(String::new(), |kind| {
        format!("`{}`", kind.trim_end_matches(','))
    })
}
