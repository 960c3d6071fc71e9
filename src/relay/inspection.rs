//! Repeats the checks of the start while the relay runs: privileges, schema version, and every part of the schema, triggers,
//! functions, views and rules included. People change them under a running relay. A fault makes the relay not ready; what
//! only producers or speed need is a warning.

use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use crate::outbox::{OutboxError, migrate, parts::Weight, preflight, session::Session};

/// An inspection is three queries of the catalog, some 10 ms of the server.
const EVERY: Duration = Duration::from_secs(15);

pub struct Inspection {
    at: Instant,
    logged: Findings,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// What is wrong, and its remedy.
    fault: Option<String>,
    /// The same, for parts that only producers or speed need.
    doubt: Option<String>,
    /// Triggers of somebody's own, which may be meant so.
    triggers: Option<String>,
}

impl Inspection {
    pub fn new() -> Self {
        Self {
            at: Instant::now(),
            logged: Findings::default(),
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
        let found = findings(session).await?;
        self.at = Instant::now() + EVERY;
        let source = context.health.source();
        if found.fault != self.logged.fault {
            match &found.fault {
                Some(fault) => {
                    tracing::error!(source, fault, "the schema is not as it was at the start");
                }
                None => tracing::info!(source, "the schema is as it was at the start"),
            }
        }
        if found.doubt != self.logged.doubt {
            match &found.doubt {
                Some(doubt) => {
                    tracing::warn!(
                        source,
                        doubt,
                        "parts that producers use or that speed needs differ"
                    );
                }
                None => tracing::info!(
                    source,
                    "parts that producers use or that speed needs are complete"
                ),
            }
        }
        if found.triggers != self.logged.triggers
            && let Some(triggers) = &found.triggers
        {
            tracing::warn!(source, "{triggers}");
        }
        context.health.schema(found.fault.clone());
        self.logged = found;
        Ok(self.at)
    }
}

/// An error means that the server did not answer.
async fn findings(session: &Session) -> Result<Findings, OutboxError> {
    let missing = preflight::missing_privileges(session).await?;
    let changes = preflight::changes(session).await?;
    let list = |lesser: bool| -> Option<String> {
        let of = changes
            .differences
            .iter()
            .filter(|part| (part.weight() == Weight::Lesser) == lesser);
        let parts: Vec<String> = of.map(ToString::to_string).collect();
        (!parts.is_empty()).then(|| {
            format!(
                "something was taken away or changed; put it back as `outboxd sql` defines it: {}",
                parts.join("; ")
            )
        })
    };
    let privileges = (!missing.is_empty()).then(|| {
        format!(
            "privileges were taken away; run as the owner of schema outbox: {}",
            missing.join("; ")
        )
    });
    let fault = match privileges.or_else(|| list(false)) {
        Some(fault) => Some(fault),
        None => match migrate::require_known(session).await {
            Ok(()) => None,
            Err(error) if error.is_schema() => Some(error.to_string()),
            Err(error) => return Err(error),
        },
    };
    Ok(Findings {
        fault,
        doubt: list(true),
        triggers: changes.triggers,
    })
}
