//! Why a call of the inbox fails.

/// Largest stored result, in bytes; the schema refuses more.
pub const MAX_RESULT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("inbox: {}", described(.0))]
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

/// With the server's message and hint, which the driver's `Display` leaves out, and without the detail, which may quote a row.
pub(crate) fn described(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return error.to_string();
    };
    let (message, code) = (db.message(), db.code().code());
    match db.hint() {
        Some(hint) => format!("{message} ({code}). {hint}"),
        None => format!("{message} ({code})"),
    }
}

pub(crate) fn within_cap(bytes: usize) -> Result<(), InboxError> {
    if bytes > MAX_RESULT {
        Err(InboxError::ResultTooLarge { bytes })
    } else {
        Ok(())
    }
}
