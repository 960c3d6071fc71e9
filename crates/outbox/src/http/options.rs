//! Options: the scope of keys, bounds, and what the layer remembers.

use std::time::Duration;

use http::{HeaderName, Method, StatusCode, header, request::Parts};

use super::key;
use crate::inbox::MAX_RESULT;

/// What the layer keeps of a command once its handler has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Commit the handler's writes and the response.
    Effect,
    /// Roll back the handler's writes, and commit the response: the same request gets the same refusal.
    Refusal,
    /// Roll everything back. The key is free.
    Nothing,
}

/// The default policy: a success is an effect, and a client's error is a refusal. A server's error, and an answer that may change
/// without another request (401, 403, 408, 409, 425, 429), leave nothing.
pub fn keep(status: StatusCode) -> Keep {
    match status.as_u16() {
        200..400 => Keep::Effect,
        401 | 403 | 408 | 409 | 425 | 429 => Keep::Nothing,
        400..500 => Keep::Refusal,
        _ => Keep::Nothing,
    }
}

#[derive(Debug, Clone)]
pub struct IdempotencyOptions {
    /// Methods that are commands; all others pass untouched, without a [`Command`](super::Command).
    pub methods: Vec<Method>,
    /// Refuse a command without a key. If off, such a command runs in a transaction, and may be applied twice.
    pub required: bool,
    /// The scope of a key, besides the caller and the method: by default the path, in its canonical spelling (`/orders/1%32` is
    /// `/orders/12`). Change it for a layer inside a nested router, which sees only the rest of the path.
    pub route: fn(&Parts) -> String,
    /// Decides by the status what is kept.
    pub keep: fn(StatusCode) -> Keep,
    /// Headers that are stored with a response. Do not name headers that carry a session or a cookie.
    pub stored_headers: Vec<HeaderName>,
    /// Largest request body, in bytes; the layer holds it in memory.
    pub max_request: usize,
    /// Time limit for the arrival of a request body.
    pub request_timeout: Duration,
    /// Time limit for a connection from `connect`.
    pub connect_timeout: Duration,
    /// Time limit for a handler's answer, body included.
    pub handler_timeout: Duration,
    /// How long a repetition waits for the first request before it gets 409.
    pub busy_wait: Duration,
    /// The value of `Retry-After` in 409 and 503.
    pub retry_after: Duration,
    /// How long a key and its response are remembered; [`IdempotencyLayer::forget_expired`](super::IdempotencyLayer)
    /// removes them. A repetition that comes later is applied again.
    pub retention: Duration,
}

impl Default for IdempotencyOptions {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: true,
            route: key::resource,
            keep,
            stored_headers: vec![
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::CONTENT_LANGUAGE,
                header::LOCATION,
                header::ETAG,
                header::LAST_MODIFIED,
            ],
            max_request: 1 << 20,
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            handler_timeout: Duration::from_secs(30),
            busy_wait: Duration::from_millis(100),
            retry_after: Duration::from_secs(1),
            retention: Duration::from_secs(24 * 3600),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct IdempotencyError {
    pub option: &'static str,
    pub problem: &'static str,
}

impl IdempotencyOptions {
    pub fn check(&self) -> Result<(), IdempotencyError> {
        let bad = |option, problem| Err(IdempotencyError { option, problem });
        if self.methods.is_empty() {
            return bad("methods", "must name at least one");
        }
        if self.methods.iter().any(Method::is_safe) {
            return bad("methods", "GET, HEAD, OPTIONS and TRACE change nothing");
        }
        if self.max_request == 0 {
            return bad("max_request", "must be above zero");
        }
        // A stored header must not frame the message, because the body is stored whole.
        if [
            header::TRANSFER_ENCODING,
            header::CONTENT_LENGTH,
            header::CONNECTION,
        ]
        .iter()
        .any(|framing| self.stored_headers.contains(framing))
        {
            return bad(
                "stored_headers",
                "must not hold headers that frame a message",
            );
        }
        for (option, duration) in [
            ("request_timeout", self.request_timeout),
            ("connect_timeout", self.connect_timeout),
            ("handler_timeout", self.handler_timeout),
        ] {
            if duration.is_zero() {
                return bad(option, "must be above zero");
            }
        }
        if self.busy_wait < Duration::from_millis(1) || self.busy_wait > self.handler_timeout {
            return bad(
                "busy_wait",
                "must be at least 1 ms and at most handler_timeout",
            );
        }
        // A request may be as old as its time-outs when it claims. With a shorter retention its key could be deleted before.
        let longest = self.request_timeout + self.connect_timeout + 2 * self.handler_timeout;
        if self.retention <= longest {
            return bad("retention", "must be longer than a request can take");
        }
        Ok(())
    }
}

/// Largest stored response, head and body, in bytes.
pub(super) const MAX_STORED: usize = MAX_RESULT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_kept_refusals_are_remembered_and_failures_free_the_key() {
        for (status, kept) in [
            (200, Keep::Effect),
            (201, Keep::Effect),
            (303, Keep::Effect),
            (400, Keep::Refusal),
            (404, Keep::Refusal),
            (422, Keep::Refusal),
            (401, Keep::Nothing),
            (403, Keep::Nothing),
            (408, Keep::Nothing),
            (409, Keep::Nothing),
            (425, Keep::Nothing),
            (429, Keep::Nothing),
            (500, Keep::Nothing),
            (503, Keep::Nothing),
            (101, Keep::Nothing),
        ] {
            assert_eq!(
                keep(StatusCode::from_u16(status).unwrap()),
                kept,
                "{status}"
            );
        }
    }

    #[test]
    fn every_option_that_cannot_work_is_named() {
        let with = |change: fn(&mut IdempotencyOptions)| {
            let mut options = IdempotencyOptions::default();
            change(&mut options);
            options.check().err().map(|error| error.option)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|o| o.methods.clear()), Some("methods"));
        assert_eq!(with(|o| o.methods.push(Method::GET)), Some("methods"));
        assert_eq!(with(|o| o.max_request = 0), Some("max_request"));
        assert_eq!(
            with(|o| o.stored_headers.push(header::CONTENT_LENGTH)),
            Some("stored_headers")
        );
        assert_eq!(
            with(|o| o.request_timeout = Duration::ZERO),
            Some("request_timeout")
        );
        assert_eq!(
            with(|o| o.connect_timeout = Duration::ZERO),
            Some("connect_timeout")
        );
        assert_eq!(
            with(|o| o.handler_timeout = Duration::ZERO),
            Some("handler_timeout")
        );
        assert_eq!(with(|o| o.busy_wait = Duration::ZERO), Some("busy_wait"));
        assert_eq!(
            with(|o| o.busy_wait = Duration::from_secs(31)),
            Some("busy_wait")
        );
        assert_eq!(
            with(|o| o.retention = Duration::from_secs(60)),
            Some("retention")
        );
    }
}
