//! What `outboxd run` checks before its first claim: all sources at once, so that none waits for another.

use std::time::Duration;

use futures_util::future::join_all;
use tracing::{Instrument, error_span};

use super::{CliError, check};
use crate::{
    config::{Config, Source},
    outbox::{OutboxError, session::Session},
};

/// How long the start waits for the checks of a source. A server that is slower counts as unavailable: the other sources must
/// not wait for it. The relay checks the schema again while it runs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the start for faults that waiting does not cure (a missing schema or grant), with those of all sources at once. The
/// relay itself waits for an unavailable server.
pub(super) async fn ready(config: &Config) -> Result<(), CliError> {
    let looks = config.sources.iter().map(|source| {
        let span = error_span!("start", source = source.name);
        look(source).instrument(span)
    });
    let found = join_all(looks).await;
    let faults = found.into_iter().zip(&config.sources);
    let mut faults: Vec<(&str, CliError)> = faults
        .filter_map(|(found, source)| Some((source.name.as_str(), found?)))
        .collect();
    if config.sources.len() == 1 {
        return faults.pop().map_or(Ok(()), |(_, fault)| Err(fault));
    }
    let texts: Vec<String> = faults
        .iter()
        .map(|(name, fault)| format!("{name}: {fault}"))
        .collect();
    if texts.is_empty() {
        Ok(())
    } else {
        Err(CliError::Setup(texts.join("\n")))
    }
}

/// The fault of a source that waiting does not cure.
async fn look(source: &Source) -> Option<CliError> {
    match tokio::time::timeout(PATIENCE, examine(source)).await {
        Ok(Ok(())) => None,
        Ok(Err(Fault::Stays(fault))) => Some(fault),
        Ok(Err(Fault::Passes(error))) => {
            tracing::warn!(source = source.name, error = %error, "PostgreSQL is unavailable; waiting for it");
            None
        }
        Err(_) => {
            tracing::warn!(
                source = source.name,
                within = ?PATIENCE,
                "PostgreSQL has not answered the checks of the start; waiting for it"
            );
            None
        }
    }
}

enum Fault {
    Stays(CliError),
    Passes(OutboxError),
}

async fn examine(source: &Source) -> Result<(), Fault> {
    check::require_direct(source).await.map_err(Fault::Stays)?;
    let session = match Session::connect(&source.database, "outboxd/start").await {
        Ok(session) => session,
        Err(error) if is_final(&error) => return Err(Fault::Stays(error.into())),
        Err(error) => return Err(Fault::Passes(error)),
    };
    match check::require_ready(&session).await {
        Ok(()) => Ok(()),
        Err(CliError::Outbox(error))
            if !error.needs_a_person() && !error.is_statement_refused() =>
        {
            Err(Fault::Passes(error))
        }
        Err(fault) => Err(Fault::Stays(fault)),
    }
}

/// The connect failed, and a later one would fail as well.
fn is_final(error: &OutboxError) -> bool {
    matches!(error, OutboxError::Config(_) | OutboxError::Tls(_)) || error.is_schema()
}
