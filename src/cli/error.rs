//! What a command fails with.

use crate::{
    broker::BrokerError,
    config::ConfigErrors,
    outbox::{OutboxError, migrate::MigrateError},
};

/// What a command fails with; the exit code follows from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// Wrong, and only a change of configuration, schema or grants mends it.
    #[error("{0}")]
    Setup(String),
    /// A server does not answer, or does not work for now.
    #[error("{0}")]
    Unavailable(String),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failure(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// <https://man.openbsd.org/sysexits>: EX_UNAVAILABLE and EX_CONFIG.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Setup(_) => 78,
            Self::Outbox(e) | Self::Migrate(MigrateError::Outbox(e)) => outbox_code(e),
            Self::Broker(e) if e.needs_a_person() => 78,
            Self::Broker(_) | Self::Unavailable(_) => 69,
            Self::Usage(_) => 2,
            Self::Migrate(MigrateError::Edited { .. }) | Self::Failure(_) | Self::Output(_) => 1,
            Self::Migrate(
                MigrateError::Different { .. }
                | MigrateError::Half { .. }
                | MigrateError::NotOwner { .. }
                | MigrateError::MayNotCreate { .. }
                | MigrateError::ReadOnly(_),
            ) => 78,
        }
    }
}

fn outbox_code(error: &OutboxError) -> u8 {
    match error {
        e if e.needs_a_person() => 78,
        e if e.is_statement_refused() => 1,
        _ => 69,
    }
}
