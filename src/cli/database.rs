//! What the commands that act on a database have in common.

use uuid::Uuid;

use super::{CliError, output};
use crate::{config::Source, outbox::session::Session};

/// Connects for one command.
pub(super) async fn session(source: &Source) -> Result<Session, CliError> {
    Ok(Session::connect(&source.database, "outboxd/cli").await?)
}

/// Who does it, for `outbox.operation`: as said, else the login name.
pub(super) fn operator(by: Option<&String>) -> String {
    by.cloned()
        .or_else(|| {
            // A name that is not UTF-8 still says more than none.
            let name = std::env::var_os("USER")?.to_string_lossy().into_owned();
            (!name.is_empty()).then_some(name)
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Ids that were typed and not found are told one by one, and the command fails: a script must not take them for done.
pub(super) fn none_missing(missing: &[Uuid], why: &str) -> Result<(), CliError> {
    if missing.is_empty() {
        return Ok(());
    }
    for id in missing {
        output::note(&format!("{id}: {why}"));
    }
    let of = if missing.len() == 1 { "id" } else { "ids" };
    Err(CliError::Failure(format!(
        "{} message {of} not found",
        missing.len()
    )))
}
