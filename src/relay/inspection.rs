//! Repeats the checks of the start while the relay runs: privileges, schema version, tables, columns, the sequence. People
//! change them under a running relay.

use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use crate::outbox::{OutboxError, migrate, preflight, session::Session};

const EVERY: Duration = Duration::from_secs(15);

pub struct Inspection {
    at: Instant,
    logged: Option<String>,
}

impl Inspection {
    pub fn new() -> Self {
        Self {
            at: Instant::now(),
            logged: None,
        }
    }

    /// Returns when the next one is due.
    pub async fn step(
        &mut self,
        session: &Session,
        context: &Context,
    ) -> Result<Instant, OutboxError> {
        if Instant::now() < self.at {
            return Ok(self.at);
        }
        let fault = fault(session).await?;
        self.at = Instant::now() + EVERY;
        let source = context.health.source();
        if fault != self.logged {
            match &fault {
                Some(fault) => {
                    tracing::error!(source, fault, "the schema is not as it was at the start");
                }
                None => tracing::info!(source, "the schema is as it was at the start"),
            }
        }
        context.health.schema(fault.clone());
        self.logged = fault;
        Ok(self.at)
    }
}

/// The fault and its remedy. An error means that the server did not answer.
async fn fault(session: &Session) -> Result<Option<String>, OutboxError> {
    let missing = preflight::missing_privileges(session).await?;
    if !missing.is_empty() {
        return Ok(Some(format!(
            "privileges were taken away; run as the owner of schema outbox: {}",
            missing.join("; ")
        )));
    }
    let missing = preflight::missing_parts(session).await?;
    if !missing.is_empty() {
        return Ok(Some(format!(
            "something was taken away or changed; put it back as `outboxd sql` defines it: {}",
            missing.join("; ")
        )));
    }
    match migrate::require_known(session).await {
        Ok(()) => Ok(None),
        Err(error) if error.is_schema() => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}
