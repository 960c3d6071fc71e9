//! What the start checks, checked again while running: privileges, schema version, tables, columns, the sequence. People
//! change them under a relay that works.

use std::time::Duration;

use tokio::time::Instant;

use super::shared::Shared;
use crate::outbox::{OutboxError, migrate, preflight, session::Session};

const EVERY: Duration = Duration::from_secs(15);

pub struct Inspection {
    at: Instant,
    said: Option<String>,
}

impl Inspection {
    pub fn new() -> Self {
        Self {
            at: Instant::now(),
            said: None,
        }
    }

    /// Returns when the next one is due.
    pub async fn step(
        &mut self,
        session: &Session,
        shared: &Shared,
    ) -> Result<Instant, OutboxError> {
        if Instant::now() < self.at {
            return Ok(self.at);
        }
        let fault = fault(session).await?;
        self.at = Instant::now() + EVERY;
        let source = shared.health.source();
        if fault != self.said {
            match &fault {
                Some(fault) => {
                    tracing::error!(source, fault, "the schema is not as it was at the start");
                }
                None => tracing::info!(source, "the schema is as it was at the start"),
            }
        }
        shared.health.schema(fault.clone());
        self.said = fault;
        Ok(self.at)
    }
}

/// What is wrong, and how to put it right. An error is a server that could not be asked.
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
