//! The values of `log.level`.

use tracing_subscriber::EnvFilter;

#[derive(Debug, thiserror::Error)]
#[error("\"{level}\" is not a level (error, warn, info, debug, trace) or a filter: {source}")]
pub struct LogError {
    level: String,
    source: tracing_subscriber::filter::ParseError,
}

/// The filter that `log.level` describes. It chooses among the relay's own lines only: see `telemetry::logs`.
pub fn log_filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|source| LogError {
            level: level.to_owned(),
            source,
        })
}
