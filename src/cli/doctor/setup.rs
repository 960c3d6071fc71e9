//! The schema and this role's privileges. The start of a relay asks the same.

use super::{
    checks::{
        Check, ENCODING, GUARDS, HALF, PARTS, PRIVILEGES, PRODUCERS_PARTS, TRIGGERS, VERSION,
    },
    line::Line,
};
use crate::outbox::{
    OutboxError, migrate,
    parts::{Difference, Weight},
    preflight::{self, Changes},
    schema,
    session::Session,
};

/// Adds a line for each check. An error means that the server did not answer; the lines before it stay.
pub async fn setup(session: &Session, lines: &mut Vec<Line>) -> Result<(), OutboxError> {
    lines.push(encoding(preflight::is_without_encoding(session).await?));
    // Privileges come before the version, because a role without grants cannot read the version.
    let missing = preflight::missing_privileges(session).await?;
    lines.push(privileges(&missing));
    let version = migrate::require_known(session).await;
    if version.is_ok() {
        let known = format!("outbox schema version {}", schema::known());
        lines.push(Line::ok(&VERSION, known));
        lines.push(Line::ok(&HALF, "its version is recorded"));
    }
    let changes = preflight::changes(session).await?;
    if !changes.any {
        // A role lacks nothing of what does not exist.
        lines.retain(|line| line.check != &PRIVILEGES);
    }
    let differs = !changes.differences.is_empty();
    match version {
        Ok(()) => {}
        // The version may be unreadable because a column or a grant is missing, which other lines report.
        Err(OutboxError::Database { .. }) if differs || !missing.is_empty() => {}
        Err(OutboxError::SchemaTooOld { found: None, .. }) if changes.any && differs => {
            lines.push(half(&changes.differences));
            return Ok(());
        }
        Err(error @ (OutboxError::SchemaTooNew { .. } | OutboxError::SchemaTooOld { .. })) => {
            lines.push(Line::fault(&VERSION, error.to_string()));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    lines.extend(parts(changes));
    Ok(())
}

fn encoding(is_without: bool) -> Line {
    if !is_without {
        return Line::ok(&ENCODING, "text is converted to UTF-8");
    }
    Line::fault(
        &ENCODING,
        "the database's encoding is SQL_ASCII: PostgreSQL converts none of its text, and an event that is not UTF-8 could not \
         be sent",
    )
    .with_cure("Keep the outbox in a database with ENCODING 'UTF8'")
}

fn privileges(missing: &[String]) -> Line {
    if missing.is_empty() {
        return Line::ok(&PRIVILEGES, "this role has every privilege");
    }
    Line::fault(
        &PRIVILEGES,
        format!(
            "this role lacks privileges that a relay needs. Run as the owner of schema outbox:\n  {};",
            missing.join(";\n  ")
        ),
    )
    .with_cure(
        "or grant all of them: `outboxd sql --roles`, then GRANT outbox_relay to this role",
    )
}

fn half(differences: &[Difference]) -> Line {
    let missing: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Line::fault(
        &HALF,
        format!(
            "schema outbox is incomplete: it has parts of ours and no recorded version, and lacks\n  {}",
            missing.join("\n  ")
        ),
    )
    .with_cure(
        "Complete it as `outboxd sql` defines it and run `outboxd migrate`, which then records the version; or, if you need \
         nothing in it (the rows of outbox.message are lost): DROP SCHEMA outbox CASCADE, and run `outboxd migrate`",
    )
}

const PUT_BACK: &str = "Put it back as `outboxd sql` defines it, as the owner of schema outbox";

fn parts(changes: Changes) -> [Line; 4] {
    let version = schema::known();
    let line = |check: &'static Check, weight: Weight, which: &str, cure: String| {
        let of = changes.differences.iter().filter(|d| d.weight() == weight);
        let lines: Vec<String> = of.map(ToString::to_string).collect();
        if lines.is_empty() {
            return Line::ok(check, "every part is as it was made");
        }
        let list = lines.join("\n  ");
        let finding = format!(
            "the database has outbox schema version {version}, and parts {which} missing or changed:\n  {list}"
        );
        Line::fault(check, finding).with_cure(cure)
    };
    let restore = format!("{PUT_BACK}, or restore the database");
    [
        line(&PARTS, Weight::Stops, "of it are", restore),
        line(
            &GUARDS,
            Weight::Unsafe,
            "that guard events are",
            PUT_BACK.to_owned(),
        ),
        line(
            &PRODUCERS_PARTS,
            Weight::Lesser,
            "that producers use or that speed needs are",
            PUT_BACK.to_owned(),
        ),
        match &changes.triggers {
            Some(triggers) => Line::warning(&TRIGGERS, triggers.clone()),
            None => Line::ok(&TRIGGERS, "every trigger is the outbox's"),
        },
    ]
}
