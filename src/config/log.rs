//! The values of `log.level`.

use tracing_subscriber::EnvFilter;

#[derive(Debug, thiserror::Error)]
#[error("\"{level}\" is not a level (error, warn, info, debug, trace) or a filter: {source}")]
pub struct LogError {
    level: String,
    source: tracing_subscriber::filter::ParseError,
}

/// lapin logs a returned message with its payload at WARN, and no payload may reach a log.
const SILENCED: &str = "lapin=off,amq_protocol=off";

/// The filter that `log.level` describes.
pub fn log_filter(level: &str) -> Result<EnvFilter, LogError> {
    let checked = |text: String| {
        EnvFilter::builder().parse(text).map_err(|source| LogError {
            level: level.to_owned(),
            source,
        })
    };
    checked(level.to_owned())?;
    checked(format!("{level},{SILENCED}"))
}
