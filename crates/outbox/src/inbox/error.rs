//! Why a call of the inbox fails.

/// Largest stored result, in bytes; the schema refuses more.
pub const MAX_RESULT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("inbox: {0}")]
    Database(#[from] tokio_postgres::Error),
    #[error("a stored result has another shape than the handler expects: {0}")]
    Result(serde_json::Error),
    #[error("a result of {bytes} bytes is above {MAX_RESULT}; store a reference to it instead")]
    ResultTooLarge { bytes: usize },
    #[error("a consumer's name must have 1 to 255 bytes")]
    Consumer,
    #[error("a function of the schema inbox returned no row; is it the one of this version?")]
    NoAnswer,
    /// A trigger keeps the rows as they are.
    #[error("{0} does not keep what is written; does a trigger return OLD?")]
    NotWritten(&'static str),
}

pub(crate) fn within_cap(bytes: usize) -> Result<(), InboxError> {
    if bytes > MAX_RESULT {
        Err(InboxError::ResultTooLarge { bytes })
    } else {
        Ok(())
    }
}
