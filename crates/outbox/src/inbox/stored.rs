//! The result that is stored with an operation.

use serde::{Serialize, de::DeserializeOwned};

use super::{InboxError, within_cap};

/// A stored result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// `None` when the operation was never completed with a result.
    pub bytes: Option<Vec<u8>>,
    pub content_type: Option<String>,
}

impl Stored {
    /// The result as `complete` took it; `None` without one.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, InboxError> {
        self.bytes
            .as_deref()
            .map(serde_json::from_slice)
            .transpose()
            .map_err(InboxError::Result)
    }
}

/// As JSON, within the cap.
pub(super) fn encoded(result: &impl Serialize) -> Result<Vec<u8>, InboxError> {
    let bytes = serde_json::to_vec(result).map_err(InboxError::Result)?;
    within_cap(bytes.len())?;
    Ok(bytes)
}
