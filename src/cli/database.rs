//! What the commands that act on a database have in common.

use std::io;

use futures_util::future;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::{CliError, output};
use crate::{
    config::Source,
    outbox::{OutboxError, session::Session},
};

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

/// Runs a change in many steps. A signal ends it as an error does, so that the command still says what it did.
pub(super) async fn whole(
    change: impl Future<Output = Result<(), OutboxError>>,
) -> Result<(), CliError> {
    let stops = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let mut stops = stops
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()
        .map_err(|e| CliError::Failure(format!("cannot handle signals: {e}")))?;
    let stopped = future::select_all(stops.iter_mut().map(|stop| Box::pin(stop.recv())));
    tokio::select! {
        biased;
        changed = change => Ok(changed?),
        _ = stopped => Err(CliError::Failure("interrupted by a signal".to_owned())),
    }
}

/// Says how much of a change took place before it ended early. The last step may have been committed without an answer.
pub(super) fn half(messages: u64, done: &str) {
    if messages == 0 {
        output::note(&format!(
            "it ended early, and no message is known to be {done}; outbox.operation has a record if a step was committed"
        ));
        return;
    }
    output::note(&format!(
        "it ended early: at least {messages} messages were {done} before; outbox.operation has the exact number. Run the \
         command again for the others"
    ));
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
